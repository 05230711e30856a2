"""Decoding by the compiled kernel: it gives what the lean step gives, and says what it can not do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from blip3o import Blip3oPipeline
from blip3o.ar import CausalLM, Sampling
from blip3o.ar import causal_lm as module
from blip3o.ar.compiled import build, step
from blip3o.structures import Generated
from tests.ar.contract import CAPTIONS, GREEDY
from tests.ar.test_lean import BATCHES, KNOWN, _Ready, decoded

compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
FAMILIES = sorted(name for name in KNOWN if not name.startswith("lfm2"))


def both(backbone: CausalLM, *given: Any, monkeypatch: pytest.MonkeyPatch, **named: Any) -> tuple[Generated, Generated]:
    """Decodes by the kernel, which must be taken, and by the lean step."""
    backbone.compile_decoding()
    with monkeypatch.context() as patch:
        patch.setattr(module, "LeanStep", lambda *given, **named: pytest.fail("the kernel was not taken"))
        compiled = decoded(backbone, *given, **named)
    backbone._compiled = False
    return compiled, decoded(backbone, *given, **named)


@compiler
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FAMILIES)
def test_it_gives_what_the_lean_step_gives(
    name: str, batch: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, before = _Ready(name, intermediate_size=48).ready(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for sampling in (GREEDY, Sampling(temperature=1.5, top_k=4, top_p=0.9)):
            compiled, lean = both(backbone, BATCHES[batch], sampling, layers=[0, 1, -1], monkeypatch=monkeypatch)
            assert torch.equal(compiled.ids, lean.ids)
            for one in ("hidden", "log_probs", "layers"):
                torch.testing.assert_close(getattr(compiled, one), getattr(lean, one), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


@compiler
def test_token_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = _Ready("qwen3").ready()
    guided = {"negative": _Ready("qwen3").prompts(backbone, ("a",) * 3), "token_guidance_scale": 2.0}
    compiled, lean = both(backbone, CAPTIONS, **guided, monkeypatch=monkeypatch)
    assert torch.equal(compiled.ids, lean.ids)
    torch.testing.assert_close(compiled.hidden, lean.hidden, rtol=1e-4, atol=1e-4)


@compiler
def test_in_bfloat16_it_differs_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, lean = both(_Ready("qwen3").ready().to(torch.bfloat16), CAPTIONS[:1], monkeypatch=monkeypatch)
    assert compiled.hidden.dtype == torch.bfloat16
    same = (compiled.ids != lean.ids)[0].long().cumsum(0) == 0  # up to the first id that rounding moved
    assert same[:3].all()
    kept = torch.cat([same.new_ones(1), same])
    difference = (compiled.hidden.float() - lean.hidden.float())[0][kept].abs().max()
    assert difference < 0.1 * lean.hidden.float().abs().max()


@compiler
def test_the_kernels_exponential_and_long_attention_are_exact_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores far apart, and more positions than a vector holds."""
    backbone = _Ready("llama").ready()
    with torch.no_grad():
        for layer in backbone.lm.model.layers:
            layer.self_attn.q_proj.weight.mul_(300)
    compiled, lean = both(backbone, CAPTIONS, monkeypatch=monkeypatch)
    assert torch.equal(compiled.ids, lean.ids)
    torch.testing.assert_close(compiled.hidden, lean.hidden, rtol=1e-3, atol=1e-3)


@compiler
def test_it_reads_the_weights_anew_at_every_call() -> None:
    backbone = _Ready("qwen3").ready()
    backbone.compile_decoding()
    before = decoded(backbone, CAPTIONS)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.data.mul_(1.5)
    assert not torch.equal(before.hidden[:, 1:], decoded(backbone, CAPTIONS).hidden[:, 1:])


@compiler
def test_what_it_can_not_do_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = _Ready("qwen3").ready()
    backbone.compile_decoding()
    monkeypatch.setattr(module, "CompiledStep", lambda *given, **named: pytest.fail("the kernel was taken"))
    decoded(backbone, CAPTIONS[:1] * (step.MOST_ROWS + 1))
    with torch.autocast("cpu", torch.bfloat16):
        decoded(backbone, CAPTIONS)
    decoded(backbone.to(torch.float64), CAPTIONS)


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("lfm2", {}, "Llama's layers with SiLU alone"),
        ("llama", {"hidden_act": "gelu"}, "Llama's layers with SiLU alone"),
        ("qwen3", {"intermediate_size": 40}, r"\{'intermediate_size': 40\} are no multiples of 16"),
    ],
)
def test_models_that_the_kernel_does_not_know_are_refused(name: str, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        _Ready(name, **changed).ready().compile_decoding()


def test_weights_that_the_kernel_does_not_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.float64 on cpu, not float32 or bfloat16 on a CPU"):
        _Ready("qwen3").ready().double().compile_decoding()


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`library` without what it remembers, its cache in a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield build.library
    build.library.cache_clear()


@compiler
def test_it_is_compiled_once(anew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anew()
    (made,) = (tmp_path / "cache/blip3o").iterdir()
    assert made.name.startswith("step-") and made.suffix == ".so"
    anew.cache_clear()
    monkeypatch.setattr(build, "_compile", lambda *given: pytest.fail("it was compiled again"))
    anew()


def test_without_a_compiler_the_remedy_is_told(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="there is no C\\+\\+ compiler; install g\\+\\+"):
        anew()


@compiler
def test_a_compiler_that_fails_is_told_of(anew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cpp").write_text("no C++")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "broken.cpp")
    with pytest.raises(ValueError, match=r"ended with code 1 \(.*broken.cpp.*set CXX to a compiler with OpenMP"):
        anew()
    assert not list((tmp_path / "cache/blip3o").iterdir()), "nothing is left behind"


@compiler
def test_a_cache_that_can_not_be_written_is_told_of(anew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME to a folder that can be written"):
        anew()


def test_the_choice_is_not_stored(tmp_path: Path) -> None:
    pipe = Blip3oPipeline.from_pretrained("tiny")
    pipe.model.ar._compiled = True
    again = Blip3oPipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    assert not again.model.ar._compiled


@compiler
def test_the_bundled_model_draws_the_same_picture() -> None:
    pipe = Blip3oPipeline.from_pretrained("tiny")
    pictures = []
    for compiled in (False, True):
        if compiled:
            assert pipe.compile_decoding() is pipe
        out = pipe("two green triangles", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        pictures.append(out)
    assert torch.equal(pictures[0].token_ids, pictures[1].token_ids)
