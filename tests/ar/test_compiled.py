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
from blip3o.cli import main
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
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [*FAMILIES, "qwen3 wide"])
def test_in_bfloat16_it_differs_by_rounding_alone(name: str, batch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {"head_dim": 80, "num_key_value_heads": 2} if name == "qwen3 wide" else {}
    backbone = _Ready(name, **wide).ready().to(torch.bfloat16)
    compiled, lean = both(backbone, BATCHES[batch], layers=[1, -1], monkeypatch=monkeypatch)
    assert compiled.hidden.dtype == torch.bfloat16
    same = (compiled.ids != lean.ids).long().cumsum(1) == 0  # up to the first id that rounding moved
    assert same[:, :2].all()
    kept = torch.cat([same.new_ones(len(same), 1), same], 1)
    assert compiled.layers is not None and lean.layers is not None
    layers = zip(compiled.layers.unbind(1), lean.layers.unbind(1), strict=True)
    for own, other in ((compiled.hidden, lean.hidden), *layers):
        difference = (own.float() - other.float())[kept].abs().max()
        assert difference < 0.04 * other.float().abs().max()


@compiler
@pytest.mark.parametrize(
    "changed",
    [
        {"head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
        {"head_dim": 80},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    ],
    ids=["four vectors a head", "five vectors a head", "tied", "yarn"],
)
def test_other_shapes(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, lean = both(_Ready("qwen3", **changed).ready(), CAPTIONS, monkeypatch=monkeypatch)
    assert torch.equal(compiled.ids, lean.ids)
    torch.testing.assert_close(compiled.hidden, lean.hidden, rtol=1e-4, atol=1e-4)


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
def test_it_reads_the_weights_anew_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = _Ready("qwen3").ready()
    both(backbone, CAPTIONS, monkeypatch=monkeypatch)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.data.mul_(1.5)
    compiled, lean = both(backbone, CAPTIONS, monkeypatch=monkeypatch)
    torch.testing.assert_close(compiled.hidden, lean.hidden, rtol=1e-4, atol=1e-4)


@compiler
def test_what_it_can_not_do_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = _Ready("qwen3").ready()
    backbone.compile_decoding()
    monkeypatch.setattr(module, "CompiledStep", lambda *given, **named: pytest.fail("the kernel was taken"))
    decoded(backbone, CAPTIONS[:1] * (step.MOST_ROWS + 1))
    with torch.autocast("cpu", torch.bfloat16):
        decoded(backbone, CAPTIONS)
    ids, mask = _Ready("qwen3").prompts(backbone, CAPTIONS)
    mask = mask.clone()
    mask[:, -2] = False  # hidden, but no padding at the left
    backbone.generate(ids, mask, 2, GREEDY)
    decoded(backbone.to(torch.float64), CAPTIONS)


@compiler
def test_masks_of_whole_numbers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = _Ready("qwen3").ready()
    ids, mask = _Ready("qwen3").prompts(backbone, CAPTIONS[:1])
    backbone.compile_decoding()
    expected = backbone.generate(ids, mask, 8, GREEDY)
    assert torch.equal(backbone.generate(ids, mask.long(), 8, GREEDY).hidden, expected.hidden)


@compiler
def test_the_attention_setting_of_now_counts() -> None:
    backbone = _Ready("qwen3").ready()
    backbone.set_attention("eager")
    with pytest.raises(ValueError, match="an attention setting other than 'eager'"):
        backbone.compile_decoding()
    backbone.set_attention("sdpa")
    backbone.compile_decoding()


@compiler
def test_the_command_line_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    own = module.CompiledStep
    monkeypatch.setattr(module, "CompiledStep", lambda *given, **named: taken.append(1) or own(*given, **named))
    command = ["generate", "a red circle", "--num_inference_steps", "2", "--output", str(tmp_path / "out.png")]
    assert main(command) == 0 and not taken
    assert main([*command, "--compile_decoding"]) == 0 and taken


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
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler; install g\+\+"):
        anew()
    monkeypatch.setenv("CXX", "c++-of-mine -v")
    with pytest.raises(ValueError, match=r"CXX \(c\+\+-of-mine\) is not there"):
        anew()


@compiler
def test_a_compiler_that_fails_is_told_of(anew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cpp").write_text("no C++")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "broken.cpp")
    with pytest.raises(
        ValueError, match=r"ended with code 1 \(.*broken.cpp.*set CXX to a C\+\+17 compiler with OpenMP"
    ):
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
