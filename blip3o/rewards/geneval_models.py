"""The two models behind the GenEval reward, from transformers: an instance detector and a namer of colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from blip3o.loading import check_loading_info, resolve_folder
from blip3o.rewards.geneval_rules import Found

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
COLOR_PROMPTS = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
CLASSES: tuple[str, ...] = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
    *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
"""The 80 classes of COCO in COCO's order, under the names that GenEval gives them."""
LEAST_SCORE = 0.3
"""Confidence below which nothing counts, whatever the task."""
GREY = (0x99, 0x99, 0x99)


def best_device() -> str:
    """The GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class InstanceDetector:
    """Mask2Former for COCO's instances.

    Args:
        name_or_path: folder or hub id.
        device: where it runs.
        shortest_edge: pixels to which the shorter side of a picture is resized.
        longest_edge: greatest length of the longer side.

    Raises:
        ValueError: if there is no such model, its weights do not fit, or it has other classes than COCO's 80.
    """

    def __init__(self, name_or_path: str, device: str, shortest_edge: int = 800, longest_edge: int = 1333) -> None:
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        folder = resolve_folder(name_or_path, "detector")
        model, info = Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
        check_loading_info(info, str(name_or_path))
        if model.config.num_labels != len(CLASSES):
            raise ValueError(
                f"detector ({name_or_path}) knows {model.config.num_labels} classes; use one for the {len(CLASSES)} "
                "of COCO."
            )
        self.model = model.eval().requires_grad_(False).to(device)
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        self.size = {"shortest_edge": shortest_edge, "longest_edge": longest_edge}

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> list[dict[str, list[tuple[Found, np.ndarray]]]]:
        """For every picture of (B, H, W, 3) uint8, its detections by class, each with its mask (H, W) bool."""
        inputs = self.processor(images=list(images), size=self.size, return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        results = self.processor.post_process_instance_segmentation(
            outputs, threshold=LEAST_SCORE, target_sizes=[images.shape[1:3]] * len(images), return_binary_maps=True
        )
        return [_by_class(result) for result in results]


def _by_class(result: dict[str, Any]) -> dict[str, list[tuple[Found, np.ndarray]]]:
    """Detections by class; boxes are those of the masks."""
    found: dict[str, list[tuple[Found, np.ndarray]]] = {}
    for segment, mask in zip(result["segments_info"], _masks(result), strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
        found.setdefault(CLASSES[segment["label_id"]], []).append((Found(box, float(segment["score"])), mask))
    return found


def _masks(result: dict[str, Any]) -> list[np.ndarray]:
    if not result["segments_info"]:
        return []
    masks = result["segmentation"]
    return list(rearrange(masks, "... h w -> (...) h w").bool().cpu().numpy())


class ColorClassifier:
    """CLIP as a judge of colour: an object, cut out by its mask, against ten colours in three wordings.

    Args:
        name_or_path: folder or hub id.
        device: where it runs.

    Raises:
        ValueError: if there is no such model or its weights do not fit.
    """

    def __init__(self, name_or_path: str, device: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        folder = resolve_folder(name_or_path, "clip")
        model, info = CLIPModel.from_pretrained(folder, output_loading_info=True)
        check_loading_info(info, str(name_or_path))
        self.model = model.eval().requires_grad_(False).to(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.processor: Any = CLIPImageProcessor.from_pretrained(folder)
        self._words: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, image: np.ndarray, name: str, found: Sequence[tuple[Found, np.ndarray]]) -> list[Found]:
        """The objects of class `name` with their colours; the mask of each is (H, W) bool."""
        if not found:
            return []
        crops = [_cut_out(image, one, mask) for one, mask in found]
        pixels = self.processor(images=crops, return_tensors="pt")["pixel_values"].to(self.model.device)
        features = F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1)
        best = (features @ self._colors_of(name).T).argmax(-1).tolist()
        return [replace(one, color=COLORS[index]) for (one, _), index in zip(found, best, strict=True)]

    def _colors_of(self, name: str) -> torch.Tensor:
        """Unit vectors (colours, D): the means of each colour's wordings."""
        if name not in self._words:
            texts = [text.format(color=color, name=name) for color in COLORS for text in COLOR_PROMPTS]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.model.device)
            features = F.normalize(
                _pooled(self.model.get_text_features(tokens["input_ids"], tokens["attention_mask"])), dim=-1
            )
            mean = rearrange(features, "(c t) d -> c t d", c=len(COLORS)).mean(1)
            self._words[name] = F.normalize(mean, dim=-1)
        return self._words[name]


def _cut_out(image: np.ndarray, one: Found, mask: np.ndarray) -> Image.Image:
    """The object on grey, cut to its box."""
    alone = np.where(mask[..., None], image, np.array(GREY, dtype=np.uint8))
    left, top, right, bottom = one.box
    return Image.fromarray(alone).crop((left, top, right, bottom))


def _pooled(output: Any) -> torch.Tensor:
    """The projected features, which newer versions of transformers wrap."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
