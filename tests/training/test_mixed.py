"""A batch of text to image and edits has the loss of the two kinds alone, weighted by their tokens and rows."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.bridge import MLPBridge
from blip3o.data.images import ImageDataModule
from blip3o.data.mixture import Weighted
from blip3o.diffusion import FlowHead, PixelCodec, Sana
from blip3o.model import Blip3oNext
from blip3o.structures import ModelLosses
from blip3o.training.base import Optimization
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from blip3o.training.mixed import mixed_latents, mixed_losses
from tests.data.pictures import Numbers
from tests.tiny import PLAIN_EDITS, generators, perturbed, seeded, tiny_ar, tiny_images, tiny_model, tiny_sana
from tests.tokenizers.test_ta_tok import tiny_ta_tok

CAPTIONS = ["a red circle", "a circle and a square", "two circles", "a red square left of a blue circle"]


def edit_model() -> Blip3oNext:
    """TA-Tok reads 28 pixels, the head renders 32; references reach it as tokens, features and latents."""
    with seeded(0):
        denoiser = Sana(tiny_sana(in_channels=12, out_channels=12).init_args["config"])
        head = FlowHead(denoiser, PixelCodec(patch_size=2), image_size=32)
        ar = tiny_ar(max_position_embeddings=256)
        model = Blip3oNext(
            tiny_ta_tok(), ar, MLPBridge, head, PLAIN_EDITS, reference_features=MLPBridge, reference_latents=MLPBridge
        )
    return perturbed(model, std=0.2)


model = cache(edit_model)


def small(images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(images, size=(28, 28))


def batch_of(counts: list[int]) -> dict[str, Any]:
    """Rows with as many references as `counts` says, padded to two."""
    images = tiny_images(12)
    references = images[4:12].reshape(4, 2, 3, 32, 32).clone()
    tokens = small(images[4:12]).reshape(4, 2, 3, 28, 28).clone()
    for row, count in enumerate(counts):
        references[row, count:] = tokens[row, count:] = 0
    return {
        "index": torch.arange(4),
        "caption": CAPTIONS,
        "image": images[:4],
        "token_image": small(images[:4]),
        "num_references": torch.tensor(counts),
        "references": references,
        "token_references": tokens,
    }


def losses_of(batch: dict[str, Any], rendered: list[int], dropped: list[bool]) -> ModelLosses:
    return mixed_losses(
        model(),
        batch,
        batch["caption"],
        supervise="all",
        rendered_rows=torch.tensor(rendered),
        dropped=torch.tensor(dropped),
        generator=[generators(4)[row] for row in rendered],
    )


def alone(batch: dict[str, Any], row: int, *, dropped: bool) -> ModelLosses:
    """The model's own losses of one row."""
    count = int(batch["num_references"][row])
    given = {"references": batch["references"], "token_references": batch["token_references"]} if count else {}
    return model().losses(
        batch["image"][row : row + 1],
        [batch["caption"][row]],
        token_images=batch["token_image"][row : row + 1],
        **{name: value[row : row + 1, :count] for name, value in given.items()},  # type: ignore[arg-type]
        dropped=torch.tensor([dropped]),
        generator=[generators(4)[row]],
    )


@pytest.mark.parametrize("counts", [[0, 1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1], [2, 0, 1, 0]])
def test_a_mixed_batch_has_the_sums_of_its_rows_alone(counts: list[int]) -> None:
    batch, dropped = batch_of(counts), [False, True, False, True]
    whole = losses_of(batch, [0, 1, 2, 3], dropped)
    rows = [alone(batch, row, dropped=dropped[row]) for row in range(4)]
    assert int(whole.num_tokens) == sum(int(row.num_tokens) for row in rows)
    torch.testing.assert_close(whole.cross_entropy, torch.stack([row.cross_entropy for row in rows]).sum())
    torch.testing.assert_close(whole.flow, torch.cat([row.flow for row in rows]))


def test_a_mixed_batch_has_the_weighted_mean_of_the_two_kinds() -> None:
    batch = batch_of([0, 1, 0, 1])
    whole = losses_of(batch, [0, 1, 2, 3], [False] * 4)
    kinds = []
    for rows in ([0, 2], [1, 3]):
        part = {
            name: [value[i] for i in rows] if isinstance(value, list) else value[rows] for name, value in batch.items()
        }
        kind = mixed_losses(
            model(),
            part,
            part["caption"],
            supervise="all",
            rendered_rows=torch.arange(2),
            generator=[generators(4)[row] for row in rows],
        )
        kinds.append(kind)
    one, two = kinds
    tokens = one.num_tokens + two.num_tokens
    mean = (one.cross_entropy / one.num_tokens) * (one.num_tokens / tokens)
    mean = mean + (two.cross_entropy / two.num_tokens) * (two.num_tokens / tokens)
    torch.testing.assert_close(whole.cross_entropy / whole.num_tokens, mean)
    torch.testing.assert_close(whole.flow.mean(), (one.flow.mean() + two.flow.mean()) / 2)


@pytest.mark.parametrize("rendered", [[1, 3], [0, 2], [3]])
def test_some_rows_render_though_a_kind_has_none_of_them(rendered: list[int]) -> None:
    batch = batch_of([0, 1, 0, 1])
    losses = losses_of(batch, rendered, [False] * len(rendered))
    expected = torch.cat([alone(batch, row, dropped=False).flow for row in rendered])
    torch.testing.assert_close(losses.flow, expected)


@pytest.mark.parametrize("counts", [[0, 0, 0, 0], [1, 0, 1, 2]])
def test_all_that_trains_has_a_gradient_with_and_without_edits(counts: list[int]) -> None:
    """So that processes with and without edits in their batches have the same gradients to exchange."""
    module = JointModule(edit_model())
    losses = mixed_losses(
        module.model,
        batch_of(counts),
        CAPTIONS,
        supervise="all",
        rendered_rows=torch.tensor([1]),
        generator=generators(1),
    )
    (losses.cross_entropy + losses.flow.sum()).backward()
    trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in module.model.named_parameters() if p.grad is not None}
    features = module.model.reference_features
    assert features is not None
    assert any(bool(p.grad.any()) for p in features.parameters() if p.grad is not None) == any(counts)


def test_without_references_the_numbers_are_the_models_own() -> None:
    plain, images = tiny_model(), tiny_images(4)
    given: dict[str, Any] = {"supervise": "all", "dropped": torch.tensor([False, True])}
    expected = plain.losses(images, CAPTIONS, rendered_rows=torch.tensor([0, 2]), generator=generators(2), **given)
    batch = {"index": torch.arange(4), "image": images}
    actual = mixed_losses(plain, batch, CAPTIONS, rendered_rows=torch.tensor([0, 2]), generator=generators(2), **given)
    for name in ("cross_entropy", "num_tokens", "flow"):
        assert torch.equal(getattr(actual, name), getattr(expected, name))


def test_mixed_rows_are_drawn_as_each_would_be_alone() -> None:
    batch, settings = batch_of([0, 2, 0, 1]), {"num_inference_steps": 2}
    drawn = mixed_latents(model(), batch, generator=generators(4), **settings)
    for row, count in ((0, 0), (1, 2), (3, 1)):
        names = ("references", "token_references") if count else ()
        references = {name: batch[name][row : row + 1, :count] for name in names}
        expected = model().generate([CAPTIONS[row]], generator=[generators(4)[row]], **references, **settings)
        torch.testing.assert_close(drawn[row], expected.latents[0], rtol=0, atol=1e-4)


class Edits(Numbers):
    """Captions that the tiny text tokenizer knows."""

    def read(self, shard: str, start: int) -> Any:
        for row in super().read(shard, start):
            yield type(row)(row.key, "a red circle", row.image, row.references)


def test_joint_training_runs_on_mixed_batches() -> None:
    sources = [Weighted(Edits([8])), Weighted(Edits([8], edits=1)), Weighted(Edits([8], edits=2))]
    data = ImageDataModule(sources=sources, image_size=32, token_image_size=28, batch_size=6, seed=1)
    counts = next(iter(data.train_dataloader()))["num_references"].tolist()
    assert len(set(counts)) == 3
    steps = fit_steps(JointModule(edit_model(), Optimization(warmup_steps=1)), data, num_steps=3)
    assert all(torch.tensor(list(step.values())).isfinite().all() for step in steps)
    assert steps[2]["cross_entropy"] < steps[0]["cross_entropy"]
