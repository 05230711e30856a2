"""TimmTokenizer: the contract over four kinds of backbones, their weights, and what stays frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from blip3o.tokenizers import EMAVQ, FSQ, LFQ, Quantizer, ResidualVQ, TimmTokenizer
from tests.tiny import rebuilt, seeded
from tests.tokenizers.contract import TrainableTokenizerContract

TINY_VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8}
TINY_SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4}


def tiny(quantizer: Quantizer | None = None, **arguments: object) -> TimmTokenizer:
    values = {"backbone": "vit_tiny_patch16_224", "image_size": 32, "width": 24, "decoder_depth": 1, **arguments}
    if values["backbone"] == "vit_tiny_patch16_224":
        values.setdefault("backbone_args", TINY_VIT)
    with seeded(0):
        return TimmTokenizer(quantizer or FSQ([5, 5, 5]), **values).eval()  # type: ignore[arg-type]


class TestViT(TrainableTokenizerContract):
    falls_to = 0.8

    def tokenizer(self) -> TimmTokenizer:
        return tiny(trainable_backbone=True)


class TestViTFeatures(TrainableTokenizerContract):
    falls_to = 0.8

    def tokenizer(self) -> TimmTokenizer:
        return tiny(decodes_to="features")


class TestConvNeXt(TrainableTokenizerContract):
    falls_to = 0.9

    def tokenizer(self) -> TimmTokenizer:
        return tiny(LFQ(num_bits=6), backbone="test_convnext", image_size=64)


class TestResNetStage(TrainableTokenizerContract):
    """Batch norms and an earlier stage."""

    falls_to = 0.9

    def tokenizer(self) -> TimmTokenizer:
        return tiny(backbone="test_resnet", layer=-3)


class TestSwin(TrainableTokenizerContract):
    """A map with channels last."""

    falls_to = 0.8

    def tokenizer(self) -> TimmTokenizer:
        with seeded(1):
            quantizer = EMAVQ(codebook_size=32, dim=4)
        return tiny(quantizer, backbone="swin_tiny_patch4_window7_224", backbone_args=TINY_SWIN)


class TestResidual(TrainableTokenizerContract):
    """Two tokens a cell, decoded to features."""

    falls_to = 0.8

    def tokenizer(self) -> TimmTokenizer:
        with seeded(1):
            quantizer = ResidualVQ(num_levels=2, level_size=16, dim=4)
        return tiny(quantizer, decodes_to="features")


def test_features_are_the_backbones_own_in_raster_order_after_its_own_normalisation() -> None:
    tokenizer = tiny(backbone="vit_base_patch16_clip_224", backbone_args=TINY_VIT)
    plain = timm.create_model("vit_base_patch16_clip_224", img_size=32, num_classes=0, **TINY_VIT).eval()
    plain.load_state_dict(tokenizer.backbone.model.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    tokens = plain.forward_intermediates(
        ((images + 1) / 2 - mean) / std, indices=[-1], output_fmt="NLC", intermediates_only=True, norm=False
    )[0]
    expected = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(tokenizer.continuous_features(images), expected, rtol=1e-4, atol=1e-4)


def test_a_frozen_backbone_stays_as_it_is_and_another_trains() -> None:
    tokenizer = tiny(backbone="test_resnet", image_size=64).train()
    assert tokenizer.training and not any(module.training for module in tokenizer.backbone.modules())
    before = {key: value.clone() for key, value in tokenizer.backbone.state_dict().items()}
    images = torch.rand(2, 3, 64, 64)
    tokenizer.decode_features(tokenizer.encode(images).features).sum().backward()
    assert all(p.grad is None for p in tokenizer.backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.backbone.state_dict().items())
    trained = tiny(trainable_backbone=True).train()
    trained.decode_features(trained.encode(torch.rand(2, 3, 32, 32)).features).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.backbone.parameters())


def test_pretrained_weights_fill_the_backbone_whole_and_are_not_named_again(tmp_path: Path) -> None:
    with seeded(7):
        source = timm.create_model("test_convnext")
    (tmp_path / "weights").mkdir()
    save_file(source.state_dict(), tmp_path / "weights/model.safetensors")
    first = source.state_dict()["stem.0.weight"]
    for named in ("weights", "weights/model.safetensors"):
        tokenizer = tiny(backbone="test_convnext", image_size=64, pretrained=str(tmp_path / named))
        assert torch.equal(tokenizer.backbone.state_dict()["stem_0.weight"], first)
    assert not torch.equal(tiny(backbone="test_convnext", image_size=64).backbone.state_dict()["stem_0.weight"], first)
    assert tokenizer.config()["init_args"]["pretrained"] is None
    (tmp_path / "weights/model.safetensors").unlink()
    rebuilt(tokenizer).load_state_dict(tokenizer.state_dict())


def test_pretrained_positions_are_resized(tmp_path: Path) -> None:
    with seeded(7):
        source = timm.create_model("vit_tiny_patch16_224", img_size=64, **TINY_VIT)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    tokenizer = tiny(pretrained=str(tmp_path / "vit.safetensors"))
    assert tokenizer.backbone.state_dict()["model.pos_embed"].shape == (1, 17, 16)
    weight = "blocks.1.mlp.fc1.weight"
    assert torch.equal(tokenizer.backbone.state_dict()[f"model.{weight}"], source.state_dict()[weight])


def test_weights_that_do_not_fit_or_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = timm.create_model("test_convnext").state_dict()
    state.pop("stem.0.weight")
    save_file(state, tmp_path / "lacking.safetensors")
    with pytest.raises(ValueError, match=r"(?s)weights in .*lacking.*stem\.0\.weight"):
        tiny(backbone="test_convnext", image_size=64, pretrained=str(tmp_path / "lacking.safetensors"))
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        tiny(pretrained=str(tmp_path / "text.safetensors"))
    with pytest.raises(ValueError, match=r"holds no model\.safetensors"):
        tiny(pretrained=str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"pretrained \(timm/no_such_model\) is no folder, and the hub gave"):
        tiny(pretrained="timm/no_such_model")


def test_what_can_not_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone \(vit_nope\) is no model of timm"):
        tiny(backbone="vit_nope")
    with pytest.raises(ValueError, match=r"image_size \(36\) must be a multiple of .* stride \(8\)"):
        tiny(image_size=36)
    with pytest.raises(ValueError, match=r"backbone_args \{'wings': 2\}"):
        tiny(backbone="test_convnext", backbone_args={"wings": 2})
    with pytest.raises(ValueError, match="make its own features trivial"):
        tiny(decodes_to="features", trainable_backbone=True)
    with pytest.raises(ValueError, match=r"decodes_to \('words'\)"):
        tiny(decodes_to="words")
    thawed = tiny(decodes_to="features")
    thawed.backbone.requires_grad_(True)
    with pytest.raises(ValueError, match="the backbone trains"):
        thawed.reads(torch.zeros(1, 3, 32, 32))
