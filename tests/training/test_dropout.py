"""What is hidden from the diffusion head in training: how often, of which rows, and that it is hidden."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blip3o.bridge import MLPBridge
from blip3o.data.images import ImageDataModule
from blip3o.data.mixture import Weighted
from blip3o.diffusion import FlowHead, PixelCodec
from blip3o.model import Blip3oNext
from blip3o.training.base import Optimization
from blip3o.training.dropout import check_dropout, dropped_rows
from blip3o.training.history import fit_steps
from blip3o.training.joint import JointModule
from blip3o.training.mixed import mixed_losses
from blip3o.training.randomness import row_uniform
from tests.test_editing import pipeline
from tests.tiny import PLAIN_EDITS, generators, perturbed, seeded, tiny_ar, tiny_dit, tiny_images, tiny_model
from tests.tokenizers.test_ta_tok import tiny_ta_tok
from tests.training.test_mixed import Edits, batch_of, model

ROWS = torch.arange(3000)


@pytest.mark.parametrize(
    ("condition", "reference", "both"), [(0.1, 0.1, 0.05), (0.3, 0.1, 0.05), (0.1, 0.4, 0.05), (0.0, 0.2, 0.0)]
)
def test_the_shares_are_those_asked_for_and_half_of_the_rarer_kind_loses_both(
    condition: float, reference: float, both: float
) -> None:
    """With 0.1 and 0.1, InstructPix2Pix's 5 % without text, 5 % without references and 5 % without either."""
    dropped, hidden = dropped_rows(7, ROWS, condition, reference)
    assert hidden is not None
    for rows, share in ((dropped, condition), (hidden, reference), (dropped & hidden, both)):
        spread = 4 * (share * (1 - share) / len(ROWS)) ** 0.5
        assert abs(rows.float().mean().item() - share) <= spread


def test_rows_depend_on_the_seed_and_their_index_alone() -> None:
    dropped, hidden = dropped_rows(0, ROWS[:200], 0.3, 0.3)
    some = torch.tensor([150, 3, 99])
    again_dropped, again_hidden = dropped_rows(0, some, 0.3, 0.3)
    assert hidden is not None and again_hidden is not None
    assert torch.equal(dropped[some], again_dropped) and torch.equal(hidden[some], again_hidden)
    other = dropped_rows(1, ROWS[:200], 0.3, 0.3)[1]
    assert other is not None and not torch.equal(other, hidden)


def test_without_it_the_rows_are_those_of_the_published_training() -> None:
    dropped, hidden = dropped_rows(5, ROWS[:200], 0.1, 0.0)
    assert hidden is None
    assert torch.equal(dropped, row_uniform(5, ROWS[:200], "condition") < 0.1)
    assert torch.equal(dropped, dropped_rows(5, ROWS[:200], 0.1, 0.4)[0]), "nor does it change who loses the text"


def test_shares_that_leave_no_room_are_refused() -> None:
    check_dropout(1.0, 0.0)
    check_dropout(0.5, 0.75)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"reference_dropout \({share}\) must lie in \[0, 1\]"):
            check_dropout(0.1, share)
    with pytest.raises(
        ValueError, match=r"reference_dropout \(0.9\) and condition_dropout \(0.4\) need a share of 1.1"
    ):
        check_dropout(0.4, 0.9)


@pytest.mark.parametrize("route", ["latents", "width", "channels", "all"])
def test_hidden_references_do_not_reach_the_head_and_a_dropped_text_keeps_them(route: str) -> None:
    """The AR model is told of the same pictures; what changes are those that the head is shown."""
    built = pipeline(route).model
    images, references = tiny_images(4), tiny_images(4, seed=3)[:, None]
    small = torch.nn.functional.interpolate(images, size=(28, 28))

    def flow(references: Tensor, hidden: list[bool] | None, dropped: list[bool]) -> Tensor:
        with torch.no_grad():
            return built.losses(
                images,
                ["a circle", "a square", "two circles", "a red square"],
                token_images=small,
                references=references,
                token_references=small[:, None],
                dropped=torch.tensor(dropped),
                hidden_references=None if hidden is None else torch.tensor(hidden),
                generator=generators(4),
            ).flow

    hidden, dropped = [True, True, False, False], [True, False, True, False]
    one, other = (flow(given, hidden, dropped) for given in (references, references.flip(-1)))
    assert (one == other).tolist() == hidden, "who is hidden does not matter, who is shown does"
    shown = flow(references, [False] * 4, [False] * 4)
    assert (one == shown).tolist() == [False, False, False, True]
    assert torch.equal(flow(references, [False] * 4, [False] * 4), flow(references, None, [False] * 4))


def test_a_mixed_batch_hides_the_references_of_the_rows_that_have_some() -> None:
    batch = batch_of([0, 1, 2, 1])
    given: dict[str, Any] = {"supervise": "all", "rendered_rows": torch.arange(4)}
    with torch.no_grad():
        plain, hidden = (
            mixed_losses(
                model(),
                batch,
                batch["caption"],
                hidden_references=None if rows is None else torch.tensor(rows),
                generator=generators(4),
                **given,
            )
            for rows in (None, [True, True, False, False])
        )
    assert torch.equal(plain.cross_entropy, hidden.cross_entropy)
    assert (plain.flow == hidden.flow).tolist() == [True, False, True, True]


def edit_module(**arguments: Any) -> JointModule:
    """References in noise space and after the condition, over a DiT."""
    with seeded(0):
        denoiser = tiny_dit(latent_channels=12, latent_size=16)
        head = FlowHead(denoiser, PixelCodec(2), image_size=32, reference="channels")
        ar = tiny_ar(max_position_embeddings=256)
        built = Blip3oNext(tiny_ta_tok(), ar, MLPBridge, head, PLAIN_EDITS, reference_latents=MLPBridge)
    return JointModule(perturbed(built), Optimization(warmup_steps=1), **arguments)


def trained(**arguments: Any) -> list[float]:
    data = ImageDataModule(
        sources=[Weighted(Edits([8])), Weighted(Edits([8], edits=1))], image_size=32, token_image_size=28, batch_size=4
    )
    return [step["flow"] for step in fit_steps(edit_module(**arguments), data, num_steps=2)]


def test_joint_training_runs_with_it_and_is_as_before_without() -> None:
    plain = trained()
    assert plain == trained(reference_dropout=0.0)
    both = trained(reference_dropout=0.6, condition_dropout=0.4)
    assert both == trained(reference_dropout=0.6, condition_dropout=0.4)
    assert all(torch.tensor(both).isfinite()) and both != trained(condition_dropout=0.4)


def test_validation_guides_edits_alone_by_their_images() -> None:
    module = edit_module(image_guidance_scale=3.0, num_inference_steps=1)
    batch = batch_of([0, 1, 0, 1])
    images = module.eval().predict_step(batch, 0)
    plain = edit_module(num_inference_steps=1).eval().predict_step(batch, 0)
    assert torch.equal(images[[0, 2]], plain[[0, 2]])
    assert (images[[1, 3]] - plain[[1, 3]]).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("setting", [{"reference_dropout": 0.1}, {"image_guidance_scale": 1.5}])
def test_what_needs_a_head_that_sees_references_is_refused_without(setting: dict[str, float]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=rf"{name} \({value}\) is about reference images that .* reference_latents"):
        JointModule(tiny_model(), **setting)
    with pytest.raises(ValueError, match=r"reference_dropout \(0.9\) and condition_dropout \(0.5\)"):
        JointModule(tiny_model(), reference_dropout=0.9, condition_dropout=0.5)
