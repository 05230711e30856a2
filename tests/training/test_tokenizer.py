"""TokenizerModule: it reconstructs what the tokenizer reads, and says what its rows lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import Trainer

from blip3o.data.shapes import ShapesDataModule
from blip3o.diffusion import PixelCodec
from blip3o.tokenizers import FSQ, DiffusersVQ, ImageTokenizer, ResidualVQ, TATok, TimmTokenizer, TrainableTokenizer
from blip3o.tokenizers.usage import codebook_usage, count_codes
from blip3o.training.base import Optimization
from blip3o.training.callbacks import ShapesScore
from blip3o.training.history import fit_steps
from blip3o.training.tokenizer import TokenizerModule
from tests.tiny import seeded, tiny_images, tiny_tokenizer

FAST = Optimization(lr=1e-2, warmup_steps=1)


VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TA_TOK_TRAINS = ["encode_task.*", "bottleneck_*", "quantizer.*", "decode*"]


def build(name: str) -> TrainableTokenizer:
    with seeded(0):
        if name == "ta_tok":
            return TATok(VISION, codebook_size=32, bottleneck_dim=6, decoder_depth=1, temperature=None)
        if name == "diffusers":
            blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
            config = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4, "num_vq_embeddings": 32, **blocks}
            return DiffusersVQ(config, image_size=32)
        if name == "residual":
            return tiny_tokenizer(ResidualVQ(num_levels=2, level_size=16, dim=4))
        return TimmTokenizer(
            FSQ([5, 5, 5]),
            image_size=32,
            backbone_args=VIT,
            width=24,
            decoder_depth=1,
            decodes_to="features" if name == "timm features" else "pixels",
        )


def data(describe: int | None = None) -> ShapesDataModule:
    return ShapesDataModule(world="shapes-mini", batch_size=8, num_val=1, num_prompts=1, describe=describe)


@pytest.mark.parametrize("latents", [False, True], ids=["pixels", "latents"])
def test_reconstruction_improves(latents: bool) -> None:
    codec = {"codec": PixelCodec(patch_size=4), "patch_size": 2} if latents else {}
    module = TokenizerModule(tiny_tokenizer(FSQ([8, 8, 8]), **codec), FAST)
    steps = fit_steps(module, data(), num_steps=30)
    assert steps[-1]["reconstruction"] < 0.6 * steps[0]["reconstruction"]
    assert "align" not in steps[0]


def test_alignment_improves() -> None:
    width = data(4)._make_row(0)["descriptors"].shape[-1]
    steps = fit_steps(TokenizerModule(tiny_tokenizer(), FAST, align_weight=1.0, align_dim=width), data(4), num_steps=30)
    assert steps[-1]["align"] < 0.8 * steps[0]["align"]


@pytest.mark.parametrize(
    ("describe", "told"),
    [
        (None, r"align_weight \(1\.0\) needs rows with `descriptors`; set the data's `describe` to .* \(4\)"),
        (2, r"descriptors have shape \(8, 4, \d+\) instead of \(8, 16, 7\)"),
    ],
)
def test_rows_without_the_descriptors_asked_for_are_refused(describe: int | None, told: str) -> None:
    module = TokenizerModule(tiny_tokenizer(), FAST, align_weight=1.0, align_dim=7)
    with pytest.raises(ValueError, match=told):
        fit_steps(module, data(describe), num_steps=1)


@pytest.mark.parametrize("name", ["timm", "timm features", "diffusers", "ta_tok", "residual"])
def test_any_tokenizer_that_reconstructs_trains_and_reports_its_codebook(name: str) -> None:
    tokenizer = build(name)
    options: dict[str, Any] = {"trainable": TA_TOK_TRAINS} if name == "ta_tok" else {}
    if tokenizer.decodes_to == "features":
        options["cosine_weight"] = 1.0
    steps = fit_steps(TokenizerModule(tokenizer, FAST, **options), data(), num_steps=25)
    measured = ("reconstruction", "cosine") if tokenizer.decodes_to == "features" else ("reconstruction",)
    for loss in measured:
        assert steps[-1][loss] < 0.9 * steps[0][loss]
    assert all(0 < step["usage"] <= 1 and 1 <= step["perplexity"] <= tokenizer.codebook_size for step in steps)


def test_validation_reports_the_codebook_over_the_whole_set() -> None:
    tokenizer = tiny_tokenizer()
    rows = ShapesDataModule(world="shapes-mini", batch_size=4, num_val=10, num_prompts=1)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    for _ in range(2):  # counted anew every time
        logged = trainer.validate(TokenizerModule(tokenizer, FAST), rows, verbose=False)[0]
    rows.setup("validate")
    ids = torch.cat([tokenizer.encode(batch["image"]).ids for batch in rows.val_dataloader()])
    assert len(ids) == 10
    expected = codebook_usage(count_codes(ids, 64))
    assert logged["val/usage"] == pytest.approx(expected.usage.item())
    assert logged["val/perplexity"] == pytest.approx(expected.perplexity.item(), rel=1e-5)
    first = codebook_usage(count_codes(ids[:4], 64))
    assert logged["val/perplexity"] != pytest.approx(first.perplexity.item(), rel=1e-5)


def test_features_are_validated_as_features_and_not_scored_as_pictures() -> None:
    module = TokenizerModule(build("timm features"), FAST)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    logged = Trainer(accelerator="cpu", **quiet).validate(module, data(), verbose=False)[0]
    images = next(iter(module.trainer.val_dataloaders))["image"]
    with torch.no_grad():
        tokens = module.tokenizer.encode(images)
        error = (module.tokenizer.decode(tokens.ids) - module.tokenizer.reads(images)).abs().mean()
    assert logged["val/l1"] == pytest.approx(error.item(), rel=1e-5)
    with pytest.raises(ValueError, match="TokenizerModule gives no images in validation"):
        Trainer(accelerator="cpu", callbacks=[ShapesScore("shapes-mini")], **quiet).validate(module, data())


def test_a_residual_token_is_aligned_cell_by_cell() -> None:
    width = data(4)._make_row(0)["descriptors"].shape[-1]
    module = TokenizerModule(build("residual"), FAST, align_weight=1.0, align_dim=width)
    steps = fit_steps(module, data(4), num_steps=30)
    assert steps[-1]["align"] < 0.8 * steps[0]["align"]


def test_what_can_not_be_trained_by_reconstruction_is_refused() -> None:
    class Reader(ImageTokenizer):
        """Gives ids alone."""

        codebook_size = feature_dim = image_size = grid_size = 4  # type: ignore[assignment]
        encode = embed = decode = lambda self, given: given  # type: ignore[assignment]

    with pytest.raises(ValueError, match=r"tokenizer \(Reader\) can not be trained by reconstruction"):
        TokenizerModule(Reader())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cosine_weight \(1\.0\) needs a tokenizer that decodes to features"):
        TokenizerModule(tiny_tokenizer(), cosine_weight=1.0)
    with pytest.raises(ValueError, match="match no parameter"):
        TokenizerModule(tiny_tokenizer(), trainable=["backbone.*"])
    with pytest.raises(ValueError, match="the vision tower trains"):
        fit_steps(TokenizerModule(build("ta_tok"), FAST), data(), num_steps=1)
    frozen = TokenizerModule(build("ta_tok"), FAST, trainable=TA_TOK_TRAINS).tokenizer
    trains = {name.split(".")[0] for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert trains == {"encode_task", "bottleneck_in", "bottleneck_out", "quantizer", "decoder", "decode_task"}
    frozen.reads(tiny_images(1))
