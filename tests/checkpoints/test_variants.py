"""Released checkpoints of other sizes, switches and configs: each loads, generates the same, and comes back exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, Siglip2VisionModel

from blip3o import Blip3oPipeline, PipelineOutput
from blip3o.bridge import IdleBridge, MLPBridge
from blip3o.checkpoints import export_published, load_published
from blip3o.cli import main
from blip3o.pixels import to_uint8
from tests.published import TEXT, VISION, released_pipeline, text_tokenizer, written
from tests.tiny import PLAIN_EDITS, generators, tiny_images

EDITING: dict[str, dict[str, Any]] = {
    "tokens": {},
    "cross": {"reference_latents": MLPBridge},
    "noise": {"reference": "width"},
    "cross and noise": {"reference_latents": MLPBridge, "reference": "width"},
    "only noise": {"reference_latents": IdleBridge, "reference": "width"},
    "only, without noise": {"reference_latents": IdleBridge},
    "features": {"reference_features": MLPBridge},
    "features and only noise": {
        "reference_features": MLPBridge,
        "reference_latents": IdleBridge,
        "reference": "width",
    },
    "all": {"reference_features": MLPBridge, "reference_latents": MLPBridge, "reference": "width"},
}
SIZES: dict[str, dict[str, Any]] = {
    "wider, deeper": {
        "ar": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4},
        "vision": {"hidden_size": 36, "num_hidden_layers": 4, "num_attention_heads": 3},
        "sana": {"num_layers": 3, "num_attention_heads": 4, "num_cross_attention_heads": 4, "cross_attention_dim": 32},
    },
    "no head_dim": {"ar": {"head_dim": None}},
    "tied": {"ar": {"tie_word_embeddings": True}},
    "larger table": {"table_size": 128},
    "tied, larger table": {"ar": {"tie_word_embeddings": True}, "table_size": 128},
    "attention bias, window": {
        "ar": {"attention_bias": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    },
    "scaled positions": {
        "ar": {
            "rope_theta": 5000.0,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        }
    },
    "positions as newer configs tell them": {
        "ar": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e5}}
    },
    "last layer, deep decoder, wide codes": {
        "tokenizer": {"select_layer": -1, "decoder_depth": 3, "codebook_size": 50, "bottleneck_dim": 32}
    },
    "first layer, other grid": {"tokenizer": {"select_layer": -3}, "vision": {"image_size": 30, "patch_size": 5}},
    "tower without a head": {"vision": {"vision_use_head": False}},
    "tower of any size": {
        "vision": {"model_type": "siglip2_vision_model", "num_patches": 9, "patch_size": 4, "image_size": None}
    },
    "shifts": {"shift": 1.5, "shift_factor": 0.25},
}


def variant(name: str) -> Blip3oPipeline:
    return released_pipeline(**(SIZES | EDITING)[name])


def made(pipe: Blip3oPipeline, *, edits: bool) -> PipelineOutput:
    """Two rows of unlike lengths; with a reference image each where the model edits."""
    images = [Image.fromarray(array).resize((40, 48)) for array in to_uint8(tiny_images(2))]
    prompts = ["a red circle", "two blue squares above a circle"]
    given: dict[str, Any] = {"image": images, "aspect": "square"} if edits else {}
    if edits:
        pipe.model.sequences.template = PLAIN_EDITS  # the small text tokenizer lacks the published wording
    return pipe(prompts, generator=generators(2), num_inference_steps=1, top_k=0, output_type="latent", **given)


def same(first: PipelineOutput, second: PipelineOutput) -> None:
    assert torch.equal(first.token_ids, second.token_ids)
    assert torch.equal(first.hidden_states, second.hidden_states)
    assert torch.equal(first.conditioning.embeds, second.conditioning.embeds)
    assert torch.equal(first.latents, second.latents)


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key


def stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def configs(folder: Path) -> dict[str, Any]:
    """Every config of a checkpoint, without the folder's own name."""
    read = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.rglob("*config.json")}
    read["config.json"].pop("diffusion_name_or_path")
    return read


def check_switches(checkpoint: Path, out: PipelineOutput, *, edits: bool) -> None:
    """The cross-attention projection is there with use_und_image_vae, and used unless only_use_... says otherwise."""
    config = json.loads((checkpoint / "config.json").read_text())
    held = {key.split(".")[1] for key in stored(checkpoint) if "connector" in key}
    assert config["use_und_image_vae"] is ("und_image_vae_connector" in held)
    assert config["use_und_image_vae_as_noise"] is ("und_image_vae_as_noise_connector" in held)
    assert config["use_tar_siglip_features"] is ("tar_siglip_features_connector" in held)
    reads = edits and config["use_und_image_vae"] and not config["only_use_und_image_vae_as_noise"]
    assert out.conditioning.embeds.shape[1] == 1 + out.token_ids.shape[1] + (64 if reads else 0)


@pytest.mark.parametrize("name", [*SIZES, *EDITING])
def test_a_variant_loads_generates_the_same_and_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    original = variant(name)
    checkpoint = written(original, tmp_path / "released")
    assert main(["convert", str(checkpoint), str(tmp_path / "converted")]) == 0
    converted = Blip3oPipeline.from_pretrained(tmp_path / "converted")
    assert main(["export", str(tmp_path / "converted"), str(tmp_path / "back")]) == 0
    equal(converted.model.state_dict(), original.model.state_dict())
    out = made(converted, edits=name in EDITING)
    same(out, made(original, edits=name in EDITING))
    check_switches(checkpoint, out, edits=name in EDITING)
    equal(stored(tmp_path / "back"), stored(checkpoint))
    assert configs(tmp_path / "back") == configs(checkpoint)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reading_in_noise_space_alone_is_what_the_config_makes_of_the_same_tensors(tmp_path: Path) -> None:
    both = written(variant("cross and noise"), tmp_path / "both")
    edit_json(both / "config.json", only_use_und_image_vae_as_noise=True)
    only = load_published(both)
    assert isinstance(only.model.reference_latents, IdleBridge)
    assert not any(p.requires_grad for p in only.model.reference_latents.parameters())
    images = tiny_images(2)
    small = torch.nn.functional.interpolate(images, size=(28, 28))
    only.model.losses(
        images,
        ["a red circle", "a circle"],
        token_images=small,
        references=images.flip(-1)[:, None],
        token_references=small[:, None],
        dropped=torch.tensor([True, False]),
        generator=generators(2),
    ).flow.sum().backward()


@pytest.mark.parametrize("stores_head", [True, False])
def test_a_tied_head_is_read_with_and_without_its_own_tensor(tmp_path: Path, stores_head: bool) -> None:
    original = variant("tied")
    checkpoint = written(original, tmp_path / "released")
    state = stored(checkpoint)
    assert "lm_head.weight" not in state
    if stores_head:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        save_file(state, checkpoint / "model.safetensors")
    loaded = load_published(checkpoint)
    assert loaded.model.ar.head is loaded.model.ar.lm.get_input_embeddings().weight
    same(made(loaded, edits=False), made(original, edits=False))
    back = export_published(loaded.save_pretrained(tmp_path / "ours"), tmp_path / "back")
    again = load_published(back)
    assert again.model.ar.head is again.model.ar.lm.get_input_embeddings().weight
    assert torch.equal(again.model.ar.head, original.model.ar.head)
    if stores_head:
        state["lm_head.weight"][0] += 1
        save_file(state, checkpoint / "model.safetensors")
        with pytest.raises(
            ValueError, match=r"model\.safetensors: lm\.model\.embed_tokens\.weight and lm\.lm_head\.weight differ"
        ):
            load_published(checkpoint)


@pytest.mark.parametrize("num_scales", [2, 5])
def test_other_numbers_of_scale_tokens(tmp_path: Path, num_scales: int) -> None:
    original = released_pipeline(text_tokenizer=text_tokenizer(tmp_path / "text", num_scales))
    checkpoint = written(original, tmp_path / "released")
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["num_scale_tokens"] == num_scales
    assert config["image_start_token_id"] == TEXT + 2 + num_scales
    loaded = load_published(checkpoint)
    assert loaded.model.ar.vocabulary == original.model.ar.vocabulary
    same(made(loaded, edits=False), made(original, edits=False))
    back = export_published(loaded.save_pretrained(tmp_path / "ours"), tmp_path / "back")
    assert configs(back) == configs(checkpoint)
    edit_json(checkpoint / "config.json", num_scale_tokens=4, image_start_token_id=7)
    told = rf"config\.json .*image_start_token_id 7 instead of {TEXT + 2 + num_scales}, num_scale_tokens 4 instead"
    with pytest.raises(ValueError, match=told):
        load_published(checkpoint)


@pytest.mark.parametrize("name", ["scaled positions", "positions as newer configs tell them", "no head_dim"])
@torch.no_grad()
def test_an_exported_config_builds_the_same_language_model_in_transformers(tmp_path: Path, name: str) -> None:
    """Also one older than `rope_parameters`: positions are told by `rope_theta` and `rope_scaling`."""
    original = variant(name)
    checkpoint = written(original, tmp_path / "released")
    config = json.loads((checkpoint / "config.json").read_text())
    assert "rope_parameters" not in config and config["rope_theta"] > 0
    given = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **given)).eval()
    keys = {key: value for key, value in stored(checkpoint).items() if key in lm.state_dict()}
    lm.load_state_dict(keys)
    ids = torch.arange(20)[None]
    wanted = original.model.ar(ids, logits_for=(0, 60)).logits
    torch.testing.assert_close(lm(ids).logits[..., :60], wanted, rtol=1e-4, atol=1e-5)


def test_keys_of_the_training_code_in_the_config_are_passed_over(tmp_path: Path) -> None:
    original = released_pipeline()
    checkpoint = written(original, tmp_path / "released")
    edit_json(checkpoint / "config.json", delay_load=True, image_aspect_ratio="square", mm_tunable_parts="all")
    same(made(load_published(checkpoint), edits=False), made(original, edits=False))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("typed", [True, False])
def test_the_towers_config_may_be_a_whole_siglip_or_its_vision_part(tmp_path: Path, whole: bool, typed: bool) -> None:
    original = released_pipeline()
    checkpoint = written(original, tmp_path / "released")
    part = VISION | ({"model_type": "siglip_vision_model"} if typed else {})
    full = {"vision_config": part, "text_config": {"hidden_size": 8}, "initializer_factor": 1.0}
    config = full | ({"model_type": "siglip"} if typed else {}) if whole else part
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision/config.json").write_text(json.dumps(config | {"transformers_version": "4.51.3"}))
    same(made(load_published(checkpoint, vision=tmp_path / "vision"), edits=False), made(original, edits=False))


def test_a_whole_siglip2_config_tells_the_type_of_its_vision_part(tmp_path: Path) -> None:
    checkpoint = written(variant("tower of any size"), tmp_path / "released")
    vision = json.loads((checkpoint / "vision/config.json").read_text())
    assert vision["model_type"] == "siglip2"
    del vision["vision_config"]["model_type"]
    (checkpoint / "vision/config.json").write_text(json.dumps(vision))
    tokenizer: Any = load_published(checkpoint).model.tokenizer
    assert isinstance(tokenizer.encoder, Siglip2VisionModel)
    assert (tokenizer.image_size, tokenizer.grid_size) == (12, 3)


def test_the_codecs_and_the_schedulers_configs_decide_the_normalisation_and_the_shift(tmp_path: Path) -> None:
    checkpoint = written(variant("shifts"), tmp_path / "released")
    vae = json.loads((checkpoint / "diffusion/vae/config.json").read_text())
    assert (vae["scaling_factor"], vae["shift_factor"]) == (0.5, 0.25)
    head: Any = load_published(checkpoint).model.diffusion
    assert (float(head.codec.scaling_factor), float(head.codec.shift_factor), head.objective.shift) == (0.5, 0.25, 1.5)
    scheduler = checkpoint / "diffusion/scheduler/scheduler_config.json"
    edit_json(checkpoint / "diffusion/vae/config.json", scaling_factor=0.41407)  # no number of float32
    loaded = load_published(checkpoint)
    back = export_published(loaded.save_pretrained(tmp_path / "ours", dtype=torch.bfloat16), tmp_path / "back")
    told = configs(checkpoint)
    told["config.json"]["torch_dtype"] = "bfloat16"
    assert configs(back) == told
    edit_json(scheduler, base_shift=0.5, max_image_seq_len=4096, use_karras_sigmas=False, shift_terminal=None)
    assert load_published(checkpoint).model.diffusion.objective.shift == 1.5
    scheduler.write_text("{}")
    assert load_published(checkpoint).model.diffusion.objective.shift == 1.0
    # As `FlowMatchEulerDiscreteScheduler.from_pretrained` does of another scheduler's config.
    scheduler.write_text(json.dumps({"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0}))
    assert load_published(checkpoint).model.diffusion.objective.shift == 1.0


def test_what_diffusers_reads_is_beside_an_exported_checkpoint(tmp_path: Path) -> None:
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel

    original = released_pipeline(shift=2.5)
    folder = written(original, tmp_path / "released") / "diffusion"
    head: Any = original.model.diffusion
    for cls, name, ours in (
        (SanaTransformer2DModel, "transformer", head.denoiser.transformer),
        (AutoencoderDC, "vae", head.codec.vae),
    ):
        equal(cls.from_pretrained(folder, subfolder=name).state_dict(), ours.state_dict())
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler").config.shift == 2.5


def test_half_precision_comes_back_in_half_precision(tmp_path: Path) -> None:
    checkpoint = written(variant("all"), tmp_path / "released", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in stored(checkpoint).values()} == {torch.bfloat16}
    loaded = load_published(checkpoint)
    back = export_published(loaded.save_pretrained(tmp_path / "ours"), tmp_path / "back")
    equal(stored(back), stored(checkpoint))
