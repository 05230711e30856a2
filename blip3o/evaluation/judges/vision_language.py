"""A judge on this machine: any vision-language model that transformers can load with its processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from blip3o.evaluation.judges.base import Answer, Judge, Unanswered
from blip3o.loading import check_loading_info, resolve_folder
from blip3o.pipeline import check_device

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a model ships for chats must not bend scores: a penalty on repetition makes a second 4 less likely than a first.
_GREEDY: dict[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
    **{"temperature": None, "top_p": None, "top_k": None},
}


class TransformersJudge(Judge):
    """A model of transformers' image-text-to-text kind (Qwen-VL, InternVL, LLaVA and others), most likely words only.

    One request runs at a time. The model's own code, where it has any, is never run.

    Args:
        model: folder or hub id of the model and its processor.
        device: where it runs.
        dtype: of its weights: `auto` (as they are stored), `float32`, `bfloat16` or `float16`.
        max_new_tokens: greatest length of an answer.

    Raises:
        ValueError: on a value out of range.
    """

    def __init__(self, *, model: str, device: str = "cpu", dtype: str = "auto", max_new_tokens: int = 512) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype ({dtype!r}) must be one of {', '.join(DTYPES)}.")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens ({max_new_tokens}) must be at least 1.")
        self.model = model
        self.device = device
        self.dtype = dtype
        self.max_new_tokens = max_new_tokens
        self.id = f"{model} through transformers"
        self.settings = {"dtype": dtype, "max_new_tokens": max_new_tokens}
        self._loaded: tuple[Any, Any, str] | None = None

    def check(self) -> None:
        """Looks for the device and the model's files, which are fetched where `model` is a hub id."""
        check_device(self.device)
        resolve_folder(self.model, "model")

    def prepare(self) -> None:
        """Loads the model and its processor.

        Raises:
            ValueError: if there is none, it is of another kind, or its weights do not fit.
        """
        if self._loaded is None:
            self.check()
            self._loaded = self._load()

    def _load(self) -> tuple[Any, Any, str]:
        import transformers
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = resolve_folder(self.model, "model")
        try:
            processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=DTYPES[self.dtype], output_loading_info=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises many kinds for what is no model of this kind
            told = " ".join(str(error).split())[:300]
            raise ValueError(f"model ({self.model}) holds no vision-language model with a processor: {told}") from error
        check_loading_info(info, self.model)
        if not hasattr(processor, "image_processor") or not processor.chat_template:
            raise ValueError(
                f"model ({self.model}) has no image processor or no chat template; choose an instruct model."
            )
        # A hub's copy lies in a folder named after its commit.
        commit = f", {folder.name}" if folder.parent.name == "snapshots" else ""
        version = f"{model.config.model_type}, transformers {transformers.__version__}{commit}"
        return model.eval().requires_grad_(False).to(self.device), processor, version

    @torch.no_grad()
    def __call__(self, prompt: str, images: Sequence[Image.Image]) -> Answer:
        """Decodes greedily, so that the same question always has the same answer."""
        self.prepare()
        assert self._loaded is not None
        model, processor, version = self._loaded
        content = [{"type": "text", "text": prompt}, *({"type": "image", "image": image} for image in images)]
        try:
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(self.device)
            ids = model.generate(**inputs, max_new_tokens=self.max_new_tokens, **_GREEDY)
        except torch.cuda.OutOfMemoryError as error:
            raise Unanswered(f"the pictures do not fit into the memory of {self.device}") from error
        words = ids[0, inputs["input_ids"].shape[1] :]
        return Answer(processor.decode(words, skip_special_tokens=True), version)
