"""RewardGuards and RolloutSheet: each symptom is named once, a run can be stopped, and sheets show best and worst."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Callback
from PIL import Image

from blip3o.training.guards import RewardGuards
from blip3o.training.rollout_sheet import RolloutSheet
from tests.training.toy import Scripted, fit, grpo

NAN = float("nan")
MIXED = [0, 1, 0, 1, 0, 1, 0, 1]


def warned(module: Any, *callbacks: Callback, **arguments: Any) -> tuple[list[str], int]:
    """What a run warned of, and how many steps it took."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(module, callbacks=list(callbacks), **arguments)
    told = [str(one.message) for one in caught if " at step " in str(one.message)]
    return told, len(history.steps)


def test_rewards_that_never_differ_are_named_once_and_again_after_they_did() -> None:
    module = grpo(rewards=[Scripted(0.5, 0.5, 0.5, MIXED, 0.5, 0.5)])
    told, steps = warned(module, RewardGuards(patience=2), steps=6)
    assert steps == 6
    assert [text.split(":")[0] for text in told] == ["constant reward at step 2", "constant reward at step 6"]
    assert "Usual causes: a reward for another kind of prompt" in told[0]


def test_no_numbers_are_named_and_may_stop_the_run() -> None:
    told, steps = warned(grpo(rewards=[Scripted(MIXED, [NAN, *MIXED[1:]])]), RewardGuards(stop=True), steps=5)
    assert steps == 2
    assert len(told) == 1 and told[0].startswith("not a number at step 2: share of rewards that are NaN 0.125")
    assert told[0].endswith("the run stops here (stop=True).")


def test_drift_from_the_reference_is_named() -> None:
    told, _ = warned(grpo(rewards=[Scripted(MIXED)], beta=1e-6), RewardGuards(max_kl=1e-3), steps=3)
    assert [text.split(":")[0].split(" at ")[0] for text in told] == ["reference drift"]
    assert warned(grpo(rewards=[Scripted(MIXED)], beta=1e-6), RewardGuards(max_kl=None), steps=3)[0] == []


class HeldOut(Callback):
    """Scores that fall at every validation."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("val/score", self.scores.pop(0))


@pytest.mark.parametrize(
    ("held_out", "found"), [((0.9, 0.8, 0.7), True), ((0.9, 0.8, 0.85), False), ((0.7, 0.8, 0.9), False)]
)
def test_a_held_out_score_that_falls_while_the_reward_rises_is_named(held_out: tuple[float, ...], found: bool) -> None:
    rising = [[0, 1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1]]
    rewards = [score for one in rising for score in (one, one)]  # a step, then its validation
    told, _ = warned(
        grpo(rewards=[Scripted(*rewards)]),
        HeldOut(*held_out),
        RewardGuards(held_out="val/score"),
        steps=3,
        limit_val_batches=1,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
    )
    assert [text.split(" at ")[0] for text in told] == (["reward hacking"] if found else [])
    if found:
        assert "val/score fell from 0.9 to 0.7 while the reward of training rose from 0.5 to 0.875" in told[0]


def test_what_a_guard_saw_survives_a_restart() -> None:
    guard = RewardGuards(patience=5)
    guard._alike, guard._raised = 3, {"reference drift"}
    guard._pairs.append((0.1, 0.2))
    again = RewardGuards(patience=5)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict() != RewardGuards().state_dict()
    with pytest.raises(ValueError, match=r"patience \(0\)"):
        RewardGuards(patience=0)
    with pytest.raises(ValueError, match=r"max_kl \(0\.0\) must be above 0"):
        RewardGuards(max_kl=0.0)


def test_sheets_show_the_best_and_the_worst(tmp_path: Path) -> None:
    scores = [0, 1, NAN, 0.5, 0, 0, 0, 0]
    kept: list[np.ndarray] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
            kept.append(outputs["images"])

    sheet = RolloutSheet(every_n_steps=2, num_prompts=1)
    fit(grpo(rewards=[Scripted(scores)]), steps=3, callbacks=[Keep(), sheet], default_root_dir=tmp_path)
    paths = sorted((tmp_path / "rollouts").iterdir())
    assert [path.name for path in paths] == ["000001.png", "000003.png"]
    pixels = np.asarray(Image.open(paths[0]).convert("RGB"))
    assert (pixels[12:44, 12:44] == kept[0][0, 1]).all()  # the best
    assert (pixels[12:44, 56:88] == kept[0][0, 0]).all()  # the worst
    with pytest.raises(ValueError, match=r"every_n_steps \(0\)"):
        RolloutSheet(every_n_steps=0)
