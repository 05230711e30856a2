"""GenEvalReward with tiny random models: it runs, and its self-test refuses them; with known detections it is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from blip3o.rewards.geneval import GenEvalReward
from blip3o.rewards.geneval_models import CLASSES, COLORS, InstanceDetector, _by_class, _cut_out
from blip3o.rewards.geneval_rules import Found, Outcome, judge
from blip3o.rewards.geneval_selftest import FOLDER, PICTURES, check_pictures
from tests.rewards.judges import write_judges


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An untrained detector and an untrained CLIP, saved as transformers saves them."""
    return write_judges(tmp_path_factory.mktemp("judges"))


def test_untrained_models_fail_the_self_test_loudly(folders: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"self-test: .*misjudge .*stop_sign\.png: expected stop sign>=1, found 0"):
        GenEvalReward(*folders, device="cpu").prepare()


def test_it_runs_where_the_self_test_is_off(folders: tuple[str, str]) -> None:
    reward = GenEvalReward(*folders, device="cpu", self_test=False, batch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    lines = list(PICTURES.values())
    assert reward(images, ["a"] * 3, [*lines, lines[0]]).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="must list what the picture includes"):
        reward(images[:1], ["a"], [{}])


def test_what_the_detector_returns_is_read(folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained detector is sure of nothing, so everything counts here."""
    monkeypatch.setattr("blip3o.rewards.geneval_models.LEAST_SCORE", 0.0)
    detector = InstanceDetector(folders[0], "cpu", shortest_edge=64, longest_edge=96)
    images = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), dtype=np.uint8)
    for seen in detector(images):
        found = [pair for pairs in seen.values() for pair in pairs]
        assert found and set(seen) <= set(CLASSES)
        for one, mask in found:
            assert mask.shape == (48, 64) and mask.dtype == bool and mask.any() and 0 <= one.score < 0.3
            left, top, right, bottom = (int(edge) for edge in one.box)
            assert mask[top:bottom, left:right].sum() == mask.sum()


def test_colors_come_from_the_object_cut_out_on_grey(folders: tuple[str, str]) -> None:
    reward = GenEvalReward(*folders, device="cpu", self_test=False)
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    image[..., 0] = 200
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:10, 8:20] = True
    mask[5, 8] = False
    found = Found((8, 5, 20, 10), 0.9)
    cut = np.asarray(_cut_out(image, found, mask))
    assert cut.shape == (5, 12, 3)
    assert cut[0, 0].tolist() == [0x99] * 3 and cut[2, 2].tolist() == [200, 0, 0]
    named = reward.colors(image, "cat", [(found, mask), (found, mask)])
    assert [one.box for one in named] == [found.box] * 2 and {one.color for one in named} < set(COLORS)
    assert reward.colors(image, "cat", []) == []
    words = reward.colors._colors_of("cat")
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(10))


def test_detections_get_geneval_s_names_and_the_boxes_of_their_masks() -> None:
    assert len(set(CLASSES)) == 80
    assert (CLASSES[11], CLASSES[64], CLASSES[65], CLASSES[66], CLASSES[74]) == (
        "stop sign",
        "computer mouse",
        "tv remote",
        "computer keyboard",
        "clock",
    )
    masks = torch.zeros(2, 20, 30)
    masks[0, 3:7, 10:12] = 1
    masks[1, 0:1, 29:30] = 1
    segments = [{"label_id": 11, "score": 0.8}, {"label_id": 74, "score": 0.5}]
    found = _by_class({"segmentation": masks, "segments_info": segments})
    assert [one for one, _ in found["stop sign"]] == [Found((10, 3, 12, 7), 0.8)]
    assert [one for one, _ in found["clock"]] == [Found((29, 0, 30, 1), 0.5)]
    assert _by_class({"segmentation": None, "segments_info": []}) == {}


class Seen:
    """A judge that is told what is in each picture."""

    def __init__(self, *objects: dict[str, list[Found]]) -> None:
        self.objects = objects

    def outcomes(self, images: np.ndarray, metadata: Sequence[Any]) -> list[Outcome]:
        assert images.shape == (2, 384, 384, 3)
        return [judge(objects, line) for objects, line in zip(self.objects, metadata, strict=True)]


def test_the_self_test_passes_what_sees_right_and_nothing_else() -> None:
    sign, clock = {"stop sign": [Found((0, 0, 9, 9), 0.9, "red")]}, {"clock": [Found((0, 0, 9, 9), 0.9)]}
    check_pictures(Seen(sign, clock), "models")
    for wrong in (Seen(clock, sign), Seen(sign, {}), Seen({**sign, **clock}, clock)):
        with pytest.raises(ValueError, match="self-test: the models misjudge"):
            check_pictures(wrong, "models")
    blue = {"stop sign": [Found((0, 0, 9, 9), 0.9, "blue")]}
    with pytest.raises(ValueError, match="expected red stop sign, found blue"):
        check_pictures(Seen(blue, clock), "models")


def test_the_bundled_pictures_show_a_red_sign_and_a_pale_clock() -> None:
    sign, clock = (np.asarray(Image.open(FOLDER / name).convert("RGB")).astype(int) for name in PICTURES)
    assert sign[110, 186, 0] > 150 > 60 > sign[110, 186, 1]
    assert clock[150, 192].min() > 200


def test_wrong_models_are_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"detector \(/nowhere\) is unknown"):
        GenEvalReward("/nowhere", folders[1]).prepare()
    with pytest.raises(ValueError, match=r"clip \(/nowhere\) is unknown"):
        GenEvalReward(folders[0], "/nowhere").prepare()
    config = Mask2FormerConfig.from_pretrained(folders[0], num_labels=3)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows 3 classes; use one for the 80"):
        GenEvalReward(str(tmp_path), folders[1]).prepare()
    with pytest.raises(ValueError, match=r"form \('x'\)"):
        GenEvalReward(form="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"batch_size \(0\)"):
        GenEvalReward(batch_size=0)
