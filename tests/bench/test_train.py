"""Training: one loss and one gradient on every side, encoded data where the model takes it, and memory of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.bench import peak, released
from blip3o.bench import train as module
from blip3o.bench.shapes import NANO, build
from blip3o.bench.train import ENCODED, LIVE, RELEASED, TrainingBench, bench_train, peak_memory
from blip3o.model import Blip3oNext
from blip3o.structures import ModelLosses


@pytest.mark.parametrize("supervise", ["all", "answer", "image"])
def test_all_sides_have_one_loss_and_one_gradient(supervise: Any) -> None:
    told = TrainingBench(build(NANO, 2), supervise).check()
    assert told.startswith(f"{LIVE}: loss ")


def test_steps_are_timed_and_leave_the_weights_as_they_are() -> None:
    report = bench_train(NANO, repeats=1)
    assert list(report.times)[:2] == [RELEASED, LIVE] and report.baseline == RELEASED
    assert list(report.times[LIVE]) == ["forward", "backward", "optimizer", "total"]
    assert report.settings["autocast"] == "bfloat16" and not report.notes
    bench = TrainingBench(build(NANO, 2), "image")
    before = {key: value.clone() for key, value in bench.model.state_dict().items()}
    bench.step(bench.live, module.Stopwatch(torch.device("cpu")))
    assert all(torch.equal(value, before[key]) for key, value in bench.model.state_dict().items())
    assert bench.optimizer.state, "the optimizer has worked"


def test_activations_are_computed_again_where_asked() -> None:
    for again in (False, True):
        bench = TrainingBench(build(NANO, 2), "image", gradient_checkpointing=again)
        assert bench.model.ar.lm.is_gradient_checkpointing is again
    assert bench_train(NANO, repeats=1, gradient_checkpointing=True).settings["gradient_checkpointing"] is True


def test_nothing_is_timed_where_losses_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    own = released.losses
    monkeypatch.setattr(released, "losses", lambda *given, **named: 1.001 * own(*given, **named))
    monkeypatch.setattr(module, "compare", lambda *given: pytest.fail("it was timed"))
    with pytest.raises(ValueError, match="so there is nothing to time"):
        bench_train(NANO)


def test_tokenizer_and_codec_are_frozen_and_the_rest_trains() -> None:
    model = TrainingBench(build(NANO, 1), "image").model
    frozen = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"tokenizer", "diffusion"}
    assert all(p.requires_grad for p in model.diffusion.denoiser.parameters())
    assert not any(p.requires_grad for p in model.diffusion.codec.parameters())


def test_encoded_data_is_a_side_where_the_model_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = TrainingBench(build(NANO, 2), "image")
    seen: dict[str, Any] = {}

    def losses(
        self: Blip3oNext,
        images: Tensor | None,
        captions: list[str],
        *,
        image_ids: Tensor | None = None,
        latents: Tensor | None = None,
        **rest: Any,
    ) -> ModelLosses:
        seen.update(images=images, image_ids=image_ids, latents=latents)
        return ModelLosses(torch.ones(()), torch.tensor(2), torch.tensor([1.0, 2.0]))

    monkeypatch.setattr(Blip3oNext, "losses", losses)
    assert bench.sides[ENCODED]().item() == 2.0
    assert seen["images"] is None and seen["image_ids"].shape == (2, 36) and seen["latents"].shape == (2, 4, 8, 8)


def test_the_process_prints_bytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peak.sys, "argv", ["peak", '["released procedure", "nano", 1, "all", true, "cpu", "bfloat16"]'])
    peak.main()
    assert 5e7 < int(capsys.readouterr().out) < 1e11


def test_the_most_that_was_resident_is_read_off_the_system(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t  900 kB\nVmHWM:\t  300 kB\nVmRSS:\t  200 kB\n")
    assert peak.most_resident(status) == 300 * 1024
    assert peak.most_resident(tmp_path / "none") > 5e7, "elsewhere the process's own count"


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    assert 5e7 < peak_memory(LIVE, "nano", 1, "image", True, "cpu", "float32") < 4e9


def test_a_process_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sys", SimpleNamespace(executable="false"))
    with pytest.raises(ValueError, match="the process that measures the memory of blip3o failed: no message"):
        peak_memory(LIVE, "nano", 1, "image", True, "cpu", "float32")
