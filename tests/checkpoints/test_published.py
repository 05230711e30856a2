"""The released checkpoints, loaded as our parts: the released code's numbers, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip3o import Blip3oPipeline, PipelineOutput
from blip3o.checkpoints import load_published
from blip3o.pixels import cropped, squeezed
from blip3o.structures import ARStates
from tests.fixtures import FOLDER, described, expected, needs_fixtures

T2I = FOLDER / "t2i"
CAPTIONS = ["a red circle", "a blue square"]

pytestmark = needs_fixtures


@cache
def released(name: str = "t2i") -> Blip3oPipeline:
    folder = FOLDER / name
    return load_published(folder / "checkpoint", diffusion=folder / "sana", vision=folder / "teacher")


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-4)


def test_parity_of_one_prompt_from_ids_to_image() -> None:
    pipe, numbers = released(), expected("t2i")
    run = described("t2i", "run.json")
    given = {"top_k": 1, "num_inference_steps": run["steps"], "guidance_scale": run["guidance_scale"]}
    out = pipe(run["prompts"][0], latents=numbers["t2i.single.noise"], output_type="pt", **given)
    ids, mask = pipe.model.sequences.prompts(run["prompts"][:1])
    assert torch.equal(ids, numbers["t2i.single.input_ids"])
    assert torch.equal(mask.long(), numbers["t2i.single.attention_mask"])
    assert pipe.model.ar.vocabulary is not None
    assert torch.equal(out.token_ids + pipe.model.ar.vocabulary.first_code, numbers["t2i.single.generated"][:, -16:])
    close(out.hidden_states, numbers["t2i.single.hidden_masked"][:, -17:])
    close(out.conditioning.embeds, numbers["t2i.single.condition"])
    close(out.latents, numbers["t2i.single.latents"])
    close(out.images, numbers["t2i.single.image"])


def test_parity_of_a_left_padded_batch_which_gives_each_row_what_it_has_alone() -> None:
    """The released code's padded row ignores its mask in what follows the tokens, so ours is compared with itself."""
    pipe, numbers = released(), expected("t2i")
    run = described("t2i", "run.json")
    given = {"top_k": 1, "num_inference_steps": run["steps"], "guidance_scale": run["guidance_scale"]}
    noise = numbers["t2i.batch.noise"]
    out = pipe(run["prompts"], latents=noise, output_type="latent", **given)
    ids, mask = pipe.model.sequences.prompts(run["prompts"])
    assert torch.equal(ids, numbers["t2i.batch.input_ids"])
    assert torch.equal(mask.long(), numbers["t2i.batch.attention_mask"])
    assert pipe.model.ar.vocabulary is not None
    assert torch.equal(out.token_ids + pipe.model.ar.vocabulary.first_code, numbers["t2i.batch.generated"][:, -16:])
    close(out.hidden_states, numbers["t2i.batch.hidden_masked"][:, -17:])
    close(out.latents[:1], numbers["t2i.batch.latents"][:1])
    for row, prompt in enumerate(run["prompts"]):
        alone = pipe(prompt, latents=noise[row : row + 1], output_type="latent", **given)
        assert torch.equal(alone.token_ids[0], out.token_ids[row])
        close(alone.hidden_states[0], out.hidden_states[row])
        close(alone.latents[0], out.latents[row])


@torch.no_grad()
def test_parity_of_the_training_losses() -> None:
    model, numbers = released().model, expected("t2i")
    pixels, targets = numbers["pixel_values"], numbers["train.target_pixels"]
    losses = model.losses(targets, CAPTIONS, token_images=pixels, supervise="all")
    cross_entropy = losses.cross_entropy / losses.num_tokens
    close(cross_entropy[None], numbers["train.ce"])
    sequences = model.sequences.training(CAPTIONS, model.tokenizer.encode(pixels).ids, "all")
    assert torch.equal(sequences.labels, numbers["train.labels"])
    logits = model.ar(sequences.input_ids, sequences.attention_mask, logits_for=(0, 442)).logits
    close(logits, numbers["train.logits"])  # type: ignore[arg-type]
    hidden = model.ar(sequences.input_ids, sequences.attention_mask).hidden[:, sequences.condition_mask[0]]
    condition = model.bridge(ARStates(hidden))
    sigma = model.diffusion.objective.levels_at(numbers["train.u"])
    flow = model.diffusion.velocity_loss(model.diffusion.encode(targets), numbers["train.noise"], sigma, condition)
    close((cross_entropy + flow.mean())[None], numbers["train.loss"])


def test_sharded_files_and_our_own_format_give_the_same_model(tmp_path: Path) -> None:
    source = copied(tmp_path)
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    shards = {"a.safetensors": sorted(state)[::2], "b.safetensors": sorted(state)[1::2]}
    for name, keys in shards.items():
        save_file({key: state[key] for key in keys}, source / name)
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_published(source, diffusion=T2I / "sana", vision=T2I / "teacher")
    sharded.save_pretrained(tmp_path / "ours")
    again = Blip3oPipeline.from_pretrained(tmp_path / "ours")
    for key, tensor in released().model.state_dict().items():
        assert torch.equal(sharded.model.state_dict()[key], tensor), key
        assert torch.equal(again.model.state_dict()[key], tensor), key


def test_the_checkpoint_names_its_diffusion_folder(tmp_path: Path) -> None:
    source = copied(tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"diffusion_name_or_path": str(T2I / "sana")}))
    load_published(source, vision=T2I / "teacher")


def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(T2I / "checkpoint", tmp_path / "checkpoint"))


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """Edits the tensors of a checkpoint."""

    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return edit


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


GAIN = "model.diffusion_connector.3.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing tensor": (changed(lambda s: s.pop(GAIN)), r"bridge: missing: model\.diffusion_connector\.3\.weight"),
    "renamed tensor": (
        changed(lambda s: s.update({"model.diffusion_conector.3.weight": s.pop(GAIN)})),
        r"tensors of no known part: model\.diffusion_conector\.3\.weight",
    ),
    "wrong shape": (
        changed(lambda s: s.update({"model.norm.weight": torch.ones(63)})),
        r"model\.safetensors does not fit .*ar: mis-shaped: model\.norm\.weight \(63,\) instead of \(64,\)",
    ),
    "truncated file": (truncated, r"model\.safetensors is damaged"),
    "pickle only": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        r"pytorch_model\.bin is a pickle, which is never opened",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json is missing"),
    "no codebook": (
        changed(lambda s: s.pop("model.vision_tower.vision_tower.bottleneck.regularizer.embedding.weight")),
        "holds no codebook",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    harm, told = DAMAGE[damage]
    source = copied(tmp_path)
    harm(source)
    with pytest.raises(ValueError, match=told):
        load_published(source, diffusion=T2I / "sana", vision=T2I / "teacher")


def test_folders_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"checkpoint \(nonesuch\) is unknown"):
        load_published("nonesuch")
    with pytest.raises(ValueError, match=r"diffusion \(nonesuch\) is unknown"):
        load_published(T2I / "checkpoint", diffusion="nonesuch")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        load_published(T2I / "checkpoint", diffusion=T2I / "sana", vision=T2I / "sana")


def edited(**arguments: object) -> PipelineOutput:
    run, numbers = described("edit", "run.json"), expected("edit")
    given = {"top_k": 1, "num_inference_steps": run["steps"], "guidance_scale": run["guidance_scale"]}
    picture = Image.open(FOLDER / "edit/image0.png")
    return released("edit")(
        run["prompts"][0], image=picture, latents=numbers["edit.noise"], **{"output_type": "pt", **given, **arguments}
    )


def test_parity_of_an_edit_from_the_picture_to_the_picture() -> None:
    pipe, numbers = released("edit"), expected("edit")
    picture = Image.open(FOLDER / "edit/image0.png")
    close(squeezed(picture, 56), numbers["pixel_values"][0])
    close(cropped(picture, 32), numbers["edit.vae_pixels"][0])
    close(pipe.model.diffusion.encode(numbers["edit.vae_pixels"]), numbers["edit.reference_latents"])
    out = edited()
    assert pipe.model.ar.vocabulary is not None
    first = pipe.model.ar.vocabulary.first_code
    codes = pipe.model.tokenizer.encode(numbers["pixel_values"][:1]).ids
    ids, _ = pipe.model.sequences.prompts(described("edit", "run.json")["prompts"], references=codes)
    assert torch.equal(ids, numbers["edit.input_ids"])
    assert torch.equal(out.token_ids + first, numbers["edit.generated"][:, -16:])
    close(out.latents, numbers["edit.latents"])
    close(out.images, numbers["edit.image"])


def test_an_editing_checkpoint_still_makes_pictures_from_text() -> None:
    noise = expected("edit")["edit.noise"]
    out = released("edit")("a red circle", latents=noise, top_k=1, num_inference_steps=2, output_type="latent")
    assert out.latents.shape == noise.shape
    assert out.conditioning.embeds.shape[1] == 17


def test_an_editing_checkpoint_is_saved_whole(tmp_path: Path) -> None:
    released("edit").save_pretrained(tmp_path / "ours")
    names = {path.name for path in (tmp_path / "ours").glob("*.safetensors")}
    assert names == {f"{part}.safetensors" for part in ("tokenizer", "ar", "bridge", "diffusion", "reference_latents")}
    again = Blip3oPipeline.from_pretrained(tmp_path / "ours")
    for key, tensor in released("edit").model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], tensor), key


def test_a_config_that_turns_off_what_the_tensors_hold_is_refused(tmp_path: Path) -> None:
    source = Path(shutil.copytree(FOLDER / "edit/checkpoint", tmp_path / "checkpoint"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"use_und_image_vae": False}))
    with pytest.raises(ValueError, match=r"holds tensors of \['reference_latents'\], which .*config\.json turns off"):
        load_published(source, diffusion=FOLDER / "edit/sana", vision=FOLDER / "edit/teacher")
