"""The command `blip3o reward-server`: its arguments, which load nothing, and what it does."""

from __future__ import annotations

import argparse
from typing import Any


def add_reward_server(commands: Any) -> None:
    """Adds the command to the subparsers of `blip3o`."""
    parser = commands.add_parser("reward-server", help="score pictures for runs on other machines")
    parser.add_argument("--reward", required=True, help="class path of a reward, or YAML with class_path and init_args")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8500, help="port; 0 takes a free one (default: 8500)")
    parser.add_argument("--max_body", type=int, default=2**28, help="bytes of a request at most (default: 256 MiB)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from blip3o.rewards.server import RewardServer, serve
    from blip3o.rewards.spec import read_reward

    serve(RewardServer(read_reward(options.reward), options.host, options.port, options.max_body))
