"""EMA-VQ and residual VQ in two processes: every codebook moves by the vectors of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from blip3o.tokenizers import EMAVQ, Quantizer, ResidualVQ
from tests.tiny import seeded


def built(name: str) -> Quantizer:
    """Without revival, whose draws differ between one process and two."""
    with seeded(0):
        if name == "ema":
            return EMAVQ(codebook_size=6, dim=3, decay=0.8, revive_below=0.0)
        return ResidualVQ(num_levels=2, level_size=6, dim=3, decay=0.8, revive_below=0.0)


def given(step: int) -> torch.Tensor:
    return 3 + torch.randn(40, 3, generator=torch.Generator().manual_seed(step))


def run(rank: int, folder: str) -> None:
    """Trains on this process's half; builds the quantizers before the processes find each other, as a run does."""
    quantizers = {name: built(name) for name in ("ema", "residual")}
    reviving = EMAVQ(codebook_size=6, dim=3, decay=0.5, revive_below=0.5)
    reviving.load_state_dict(quantizers["ema"].state_dict())
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for step in range(3):
        for quantizer in (*quantizers.values(), reviving):
            quantizer.quantize(given(step)[rank::2])
    states = {name: quantizer.state_dict() for name, quantizer in quantizers.items()}
    torch.save({**states, "reviving": reviving.state_dict()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_move_the_codebook_as_one_does(tmp_path: Path) -> None:
    mp.spawn(run, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name in ("ema", "residual"):
        one = built(name)
        for step in range(3):
            one.quantize(given(step))
        for key, value in one.state_dict().items():
            torch.testing.assert_close(first[name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
    for name, state in first.items():
        assert all(torch.equal(value, second[name][key]) for key, value in state.items()), name
    moved = first["reviving"]["vq._codebook.embed"]
    assert (moved > 0.3).all(), "codes that no vector uses were put among the vectors, which lie around 3"
