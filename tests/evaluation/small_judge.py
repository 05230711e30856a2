"""A vision-language model of a few ten thousand parameters with a processor, fitted to judge by what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from tests.ar.backbones import VISION
from tests.tiny import seeded

Examples = Sequence[tuple[Sequence[Image.Image], Sequence[int]]]
_SPECIAL = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_WORDS = (
    *("<pad>", "<unk>", "<|im_start|>", "<|im_end|>", *_SPECIAL.values(), "user", "assistant"),
    *('{"scores":[', ",", "]}", *map(str, range(11))),
)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def save_small_judge(
    folder: Path, examples: Sequence[tuple[Sequence[Image.Image], Sequence[int]]], prompt: str
) -> Path:
    """Writes a model that was fitted to give each example's scores for its pictures, and its processor."""
    processor = _processor()
    with seeded(0):
        model = _model(processor)
        _fit(model, processor, examples, prompt)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _processor() -> Qwen2VLProcessor:
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", *_SPECIAL.values()],
    )
    shape = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    images = Qwen2VLImageProcessor(size={"shortest_edge": 256, "longest_edge": 256}, **shape)
    return Qwen2VLProcessor(images, tokenizer, Qwen2VLVideoProcessor(**shape), chat_template=_CHAT)


def _model(processor: Qwen2VLProcessor) -> torch.nn.Module:
    parts = VISION["qwen2_5_vl"]
    tokens = {"vocab_size": len(_WORDS), "max_position_embeddings": 512, "eos_token_id": 3, "pad_token_id": 0}
    config = AutoConfig.for_model(
        "qwen2_5_vl",
        text_config={**parts["text_config"], **tokens, "bos_token_id": None},
        vision_config=parts["vision_config"],
        tie_word_embeddings=False,
        **{name: processor.tokenizer.convert_tokens_to_ids(word) for name, word in _SPECIAL.items()},
    )
    model = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig(
        eos_token_id=3, pad_token_id=0, do_sample=True, temperature=9.0, repetition_penalty=9.0
    )
    return model


def _fit(model: torch.nn.Module, processor: Qwen2VLProcessor, examples: Examples, prompt: str) -> None:
    """Cross-entropy over the answers until each of their words is likely."""
    rows = []
    for images, scores in examples:
        content = [{"type": "text", "text": prompt}, *({"type": "image", "image": image} for image in images)]
        asked = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        words = '{"scores":[ ' + " , ".join(map(str, scores)) + " ]} <|im_end|>"
        answer = processor.tokenizer(words, return_tensors="pt")["input_ids"]
        asked["input_ids"] = torch.cat([asked["input_ids"], answer], dim=1)
        asked["attention_mask"] = torch.ones_like(asked["input_ids"])
        text = torch.zeros_like(answer)
        asked["mm_token_type_ids"] = torch.cat([asked["mm_token_type_ids"], text], dim=1)
        rows.append((asked, answer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        losses = []
        for asked, answer in rows:
            logits = model(**asked).logits[0, -answer.shape[1] - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, answer[0]))
        loss = torch.stack(losses).mean()
        if loss < 0.02:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the small judge did not learn its answers; the loss is {loss:.3f}")
