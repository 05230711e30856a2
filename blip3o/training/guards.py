"""Guards of training by rewards: they name what goes wrong and what usually causes it, and may stop the run."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class RewardGuards(Callback):
    """Watches the metrics of a run and warns, once for every stretch that something goes wrong.

    It looks for rewards that do not differ within any group for `patience` steps in a row; numbers that are no numbers,
    in rewards or gradients; a divergence from the reference above `max_kl`; and a held-out score that fell at
    `hacking_patience` validations in a row while the reward of training rose.

    Args:
        patience: steps.
        max_kl: limit of `train/kl`, nats a token, or a number of the latents; None for none.
        held_out: metric of validation that should rise; `val/score` of `ShapesScore` judges apart from the reward.
        hacking_patience: validations.
        stop: whether a warning also ends the run, after its step or validation.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        patience: int = 20,
        max_kl: float | None = 1.0,
        held_out: str = "val/reward",
        hacking_patience: int = 2,
        stop: bool = False,
    ) -> None:
        for name, value in (("patience", patience), ("hacking_patience", hacking_patience)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1.")
        if max_kl is not None and not max_kl > 0:
            raise ValueError(f"max_kl ({max_kl}) must be above 0; None sets no limit.")
        self.patience = patience
        self.max_kl = max_kl
        self.held_out = held_out
        self.stop = stop
        self._alike = 0
        self._rewards: list[float] = []
        self._pairs: deque[tuple[float, float]] = deque(maxlen=hacking_patience + 1)
        self._raised: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at what the step logged."""
        seen = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        reward = seen.get("train/reward", math.nan)
        self._rewards.append(reward)
        self._alike = self._alike + 1 if seen.get("train/zero_spread") == 1 else 0
        self._report(
            trainer,
            "constant reward",
            self._alike >= self.patience,
            f"for {self._alike} steps no group held two different rewards (mean {reward:.3g}), so nothing is learnt. "
            "Usual causes: a reward for another kind of prompt or picture, prompts that are all solved or all out of "
            "reach, a temperature near 0",
        )
        bad = {name: seen.get(f"train/{name}", 0.0) for name in ("nan_rewards", "skipped_updates")}
        self._report(
            trainer,
            "not a number",
            any(value > 0 for value in bad.values()) or not math.isfinite(reward),
            f"share of rewards that are NaN {bad['nan_rewards']:.3g}, of updates skipped for their gradient "
            f"{bad['skipped_updates']:.3g}. Usual causes: a reward that fails on some pictures; a learning rate too "
            "high; half precision",
        )
        kl = seen.get("train/kl", 0.0)
        self._report(
            trainer,
            "reference drift",
            self.max_kl is not None and kl > self.max_kl,
            f"the divergence from the reference is {kl:.3g} nats, above max_kl ({self.max_kl}). Usual causes: "
            "a learning rate too high, beta too low, a reward that asks for something degenerate",
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares held-out score and reward with those of earlier validations."""
        score = trainer.callback_metrics.get(self.held_out)
        if trainer.sanity_checking or score is None or not self._rewards:
            return
        self._pairs.append((sum(self._rewards) / len(self._rewards), float(score)))
        self._rewards = []
        pairs = list(self._pairs)
        self._report(
            trainer,
            "reward hacking",
            len(pairs) == self._pairs.maxlen and all(b[0] > a[0] and b[1] < a[1] for a, b in pairwise(pairs)),
            f"{self.held_out} fell from {pairs[0][1]:.3g} to {pairs[-1][1]:.3g} while the reward of training rose "
            f"from {pairs[0][0]:.3g} to {pairs[-1][0]:.3g}. Usual causes: a fault of the reward that the model "
            "exploits, too few prompts, beta too low",
        )

    def _report(self, trainer: Trainer, symptom: str, holds: bool, told: str) -> None:
        """Warns when a symptom appears, and again only after it had gone."""
        if not holds:
            self._raised.discard(symptom)
            return
        if symptom not in self._raised:
            self._raised.add(symptom)
            end = "; the run stops here (stop=True)." if self.stop else "."
            rank_zero_warn(f"{symptom} at step {trainer.global_step}: {told}{end}")
        if self.stop:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, so that a resumed run warns as an undisturbed one."""
        return {
            "alike": self._alike,
            "rewards": list(self._rewards),
            "pairs": list(self._pairs),
            "raised": sorted(self._raised),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self._alike = state_dict["alike"]
        self._rewards = list(state_dict["rewards"])
        self._pairs.extend(tuple(pair) for pair in state_dict["pairs"])
        self._raised = set(state_dict["raised"])
