"""An untrained detector and an untrained CLIP, small and saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from tests.tiny import seeded


def write_judges(folder: Path) -> tuple[str, str]:
    """The folders of the detector and of CLIP, in `folder`."""
    detector, clip = folder / "detector", folder / "clip"
    stages = ["stage1", "stage2", "stage3", "stage4"]
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, out_features=stages)
    sizes = {"hidden_dim": 32, "mask_feature_size": 32, "feature_size": 32, "num_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 16, "encoder_feedforward_dim": 16}
    with seeded(0):
        config = Mask2FormerConfig(backbone_config=swin, num_labels=80, num_queries=8, **sizes, **layers)
        Mask2FormerForUniversalSegmentation(config).save_pretrained(detector)
        Mask2FormerImageProcessor().save_pretrained(detector)
        part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {**part, "vocab_size": 300, "max_position_embeddings": 32, "eos_token_id": 1}
        vision = {**part, "image_size": 32, "patch_size": 16}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(clip)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(clip)
    letters = {"<pad>": 0, "</s>": 1, **{chr(code): code + 2 for code in range(32, 127)}}
    core = Tokenizer(models.BPE(letters, []))
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>").save_pretrained(clip)
    return str(detector), str(clip)
