"""The attention setting of whole models: at loading, in saved folders, on the command line and in `blip3o info`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from blip3o import Blip3oPipeline
from blip3o.attention import HasAttention, check_attention, running_in, set_attention
from blip3o.cli import main
from blip3o.info import describe_attention
from blip3o.part import Part
from tests.ar.backbones import causal, vision
from tests.gpus import BFLOAT16, CUDA, pretend
from tests.tiny import generators, tiny_dit, tiny_model
from tests.tokenizers.test_ta_tok import tiny_ta_tok

CPU = torch.device("cpu")
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")


def settings(pipe: Blip3oPipeline) -> dict[str, str]:
    return {name: part.attention for name, part in pipe.model.named_modules() if isinstance(part, HasAttention)}


def latents(pipe: Blip3oPipeline) -> torch.Tensor:
    return pipe("a red circle", generator=generators(1), output_type="latent", num_inference_steps=2).latents


def test_only_the_four_settings_are_known() -> None:
    assert check_attention(None) == "auto"
    with pytest.raises(ValueError, match=r"attention \('fast'\) must be one of auto, flash, sdpa, eager"):
        check_attention("fast")


def test_loading_gives_every_part_the_setting(tiny_folder: Path) -> None:
    stored = Blip3oPipeline.from_pretrained(tiny_folder)
    assert settings(stored) == {"ar": "auto", "diffusion.denoiser": "auto"}
    eager = Blip3oPipeline.from_pretrained(tiny_folder, attention="eager")
    assert settings(eager) == {"ar": "eager", "diffusion.denoiser": "eager"}
    torch.testing.assert_close(latents(eager), latents(stored), rtol=1e-5, atol=1e-5)
    assert eager.model.ar.lm.config._attn_implementation == "eager"  # type: ignore[attr-defined]
    assert stored.model.ar.lm.config._attn_implementation == "sdpa"  # type: ignore[attr-defined]


@WITHOUT_GPU
def test_loading_for_flash_is_refused_at_once(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"attention \('flash'\) can not be used by CausalLM here: there is no CUDA"):
        Blip3oPipeline.from_pretrained(tiny_folder, attention="flash")
    with pytest.raises(ValueError, match="must be one of"):
        Blip3oPipeline.from_pretrained(tiny_folder, attention="math")  # type: ignore[arg-type]


def test_a_setting_that_one_part_can_not_take_changes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    pretend(monkeypatch, built=False)
    with pytest.raises(ValueError, match="can not be used by DiT here: this torch was built without flash kernels"):
        set_attention(model, "flash", CUDA)
    assert settings(Blip3oPipeline(model)) == {"ar": "auto", "diffusion.denoiser": "auto"}
    with pytest.raises(ValueError, match="it computes in float32"):
        set_attention(model, "flash", CUDA, torch.float32)


@WITHOUT_GPU
def test_a_folder_of_a_flash_run_loads_here_and_can_be_run_another_way(tmp_path: Path) -> None:
    pipe = Blip3oPipeline(tiny_model())
    set_attention(pipe.model, "flash")
    folder = pipe.save_pretrained(tmp_path / "model")
    stored = Blip3oPipeline.from_pretrained(folder)
    assert settings(stored) == {"ar": "flash", "diffusion.denoiser": "flash"}
    with pytest.raises(ValueError, match=r"there is no CUDA device; .* set attention to 'auto'"):
        latents(stored)
    again = Blip3oPipeline.from_pretrained(folder, attention="auto")
    assert torch.equal(latents(again), latents(Blip3oPipeline(tiny_model())))


def test_auto_is_stored_as_auto_also_after_it_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Blip3oPipeline(tiny_model())
    lm: Any = pipe.model.ar.lm  # type: ignore[attr-defined]
    with monkeypatch.context() as machine:
        pretend(machine)
        machine.setattr(type(lm), "set_attn_implementation", _set)
        pipe.model.ar.use_attention()  # type: ignore[operator]
    assert lm.config._attn_implementation == "flash_attention_2"
    folder = pipe.save_pretrained(tmp_path / "model")
    assert "flash" not in (folder / "config.yaml").read_text()
    assert latents(Blip3oPipeline.from_pretrained(folder)).isfinite().all()
    assert latents(pipe).isfinite().all(), "the same model, back on the CPU"


def _set(lm: Any, implementation: str) -> None:
    lm.config._attn_implementation_internal = implementation


def test_folders_of_earlier_versions_are_auto(tmp_path: Path) -> None:
    folder = Blip3oPipeline(tiny_model()).save_pretrained(tmp_path / "model")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    parts = config["model"]["init_args"]
    parts["ar"]["init_args"]["attention"] = None
    del parts["diffusion"]["init_args"]["denoiser"]["init_args"]["attention"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert settings(Blip3oPipeline.from_pretrained(folder)) == {"ar": "auto", "diffusion.denoiser": "auto"}


def test_the_numbers_are_autocasts_where_it_is_on() -> None:
    part = tiny_dit()
    assert running_in(part) == (CPU, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert running_in(part) == (CPU, torch.bfloat16)
    assert running_in(part.to(torch.float16)) == (CPU, torch.float16)


def test_a_class_that_states_its_attention_keeps_its_arguments() -> None:
    class Own(Part):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.size = size

    class Attending(Own, HasAttention):
        pass

    part = Attending(3)
    part.set_attention("eager")
    assert part.attention == "eager" and part.init_args == {"size": 3}


@WITHOUT_GPU
def test_info_tells_what_runs_here_and_why_nothing_else() -> None:
    model = tiny_model()
    model.diffusion.denoiser.set_attention("eager")  # type: ignore[union-attr, operator]
    ar, denoiser = describe_attention(model.to("meta"), CPU, torch.float32)
    told = "flash: there is no CUDA device; run it on a GPU; "
    assert (ar.name, ar.setting, ar.kernel, ar.others) == ("ar", "auto", "sdpa", f"{told}eager: would run")
    assert (denoiser.name, denoiser.kernel) == ("diffusion.denoiser", "torch's plain matrix products")
    assert denoiser.others == f"{told}sdpa: would run"
    model.ar.set_attention("flash")  # type: ignore[operator]
    ar = describe_attention(model, CPU, torch.float32)[0]
    assert (ar.kernel, ar.others) == (
        "none: there is no CUDA device; run it on a GPU",
        "sdpa: would run; eager: would run",
    )


def test_info_tells_of_flash_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().to("meta")
    pretend(monkeypatch, capability=(9, 0), flash_3=True)
    ar, denoiser = describe_attention(model, CUDA, BFLOAT16)
    assert (ar.kernel, ar.others) == ("flash_attention_3", "sdpa: would run; eager: would run")
    assert (denoiser.kernel, denoiser.others) == (
        "torch's scaled_dot_product_attention",
        "flash: would run; eager: would run",
    )
    ar = describe_attention(model, CUDA, torch.float32)[0]
    assert ar.kernel == "sdpa" and ar.others.startswith("flash: it computes in float32")


def test_info_tells_of_vision_towers() -> None:
    model = torch.nn.ModuleDict({"tokenizer": tiny_ta_tok(), "ar": vision("qwen3_vl"), "other": causal("mamba")})
    rows = {row.name: row for row in describe_attention(model, CPU, torch.float32)}
    assert rows["ar and its vision tower"].kernel == "sdpa"
    assert rows["other"].kernel == "eager" and "has no flash attention" in rows["other"].others
    for tower in ("tokenizer.encoder", "tokenizer.decoder"):
        assert (rows[tower].setting, rows[tower].kernel, rows[tower].others) == ("", "sdpa", "transformers' own choice")
    assert len(rows) == 4


def test_info_prints_it(tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["info", "--model", str(tiny_folder)]) == 0
    printed = capsys.readouterr().out
    for words in ("in float32", "diffusion.denoiser", "torch's scaled_dot_product_attention", "eager: would run"):
        assert words in printed


@WITHOUT_GPU
def test_the_command_line_takes_the_setting(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generate", "a red circle", "--model", str(tiny_folder), "--output", str(tmp_path / "out.png")]
    assert main([*given, "--attention", "flash"]) == 2
    assert "there is no CUDA device" in capsys.readouterr().err and not (tmp_path / "out.png").exists()
    assert main([*given, "--attention", "eager"]) == 0
    assert (tmp_path / "out.png").exists()


DOCS = (Path(__file__).parents[1] / "docs/performance/attention.md").read_text()


def test_the_page_on_attention_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    assert settings(names["pipe"]) == {"ar": "auto", "diffusion.denoiser": "eager"}


def test_the_yaml_of_the_page_builds() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DOCS, re.DOTALL)
    parser = ArgumentParser(exit_on_error=False)
    for name in (parts := yaml.safe_load(block)):
        parser.add_subclass_arguments(HasAttention, name)
    built = parser.instantiate_classes(parser.parse_object(parts))
    assert (built.ar.attention, built.denoiser.attention) == ("auto", "sdpa")
