"""Left-padded batches: every row has what it has alone, also with references, token guidance and several of both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from blip3o import Blip3oPipeline, PipelineOutput
from blip3o.pipeline import GenerationDefaults
from tests.published import released_pipeline
from tests.test_editing import ROUTES, pictures, pipeline
from tests.tiny import generators, tiny_model

PROMPTS = ["a circle", "two red squares left of a green triangle"]


def generated(pipe: Blip3oPipeline, prompts: list[str], seed: int, images: Any, **settings: Any) -> PipelineOutput:
    given = {} if images is None else {"image": images}
    drawn = generators(len(prompts), first_seed=seed)
    return pipe(prompts, generator=drawn, output_type="latent", num_inference_steps=1, **given, **settings)


def check_rows(pipe: Blip3oPipeline, references: list[list[Image.Image]] | None = None, **settings: Any) -> None:
    """All prompts together, then each alone."""
    lengths = pipe.model.sequences.prompts(PROMPTS)[1].sum(1).tolist()
    assert len(set(lengths)) == len(PROMPTS), "rows of one length are not padded"
    batch = generated(pipe, PROMPTS, 0, references, **settings)
    assert len(batch.token_ids.unique(dim=0)) == len(PROMPTS), "rows that are alike prove nothing"
    for row, prompt in enumerate(PROMPTS):
        images = None if references is None else references[row : row + 1]
        alone = generated(pipe, [prompt], row, images, **settings)
        assert torch.equal(alone.token_ids[0], batch.token_ids[row])
        torch.testing.assert_close(alone.hidden_states[0], batch.hidden_states[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.conditioning.embeds[0], batch.conditioning.embeds[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.latents[0], batch.latents[row], rtol=1e-4, atol=1e-4)


GUIDED = [{}, {"token_guidance_scale": 3.0}, {"token_guidance_scale": 0.5, "guidance_scale": 4.0}]


@pytest.mark.parametrize("settings", GUIDED, ids=["plain", "guided", "both guided"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_prompts(settings: dict[str, float], temperature: float) -> None:
    check_rows(Blip3oPipeline(tiny_model(), GenerationDefaults(top_k=0)), temperature=temperature, **settings)


# Noise space takes one reference, and token guidance is not for projected features.
CASES = [
    (route, count, guided)
    for route, parts in ROUTES.items()
    for count, guided in ((1, False), (1, True), (3, False))
    if (count == 1 or "reference" not in parts) and not (guided and "reference_features" in parts)
]


@pytest.mark.parametrize(("route", "count", "guided"), CASES)
def test_rows_of_instructions_with_references_of_their_own(route: str, count: int, guided: bool) -> None:
    shown = pictures(len(PROMPTS) * count)
    references = [shown[row * count : (row + 1) * count] for row in range(len(PROMPTS))]
    check_rows(pipeline(route), references, **({"token_guidance_scale": 3.0} if guided else {}))


@pytest.mark.parametrize("editing", [False, True])
def test_rows_of_a_released_checkpoint_in_its_own_wording(editing: bool) -> None:
    """Whole chat prompts, and every switch of editing at once."""
    pipe = released_pipeline(**(ROUTES["all"] if editing else {}))
    check_rows(pipe, [[picture] for picture in pictures(len(PROMPTS))] if editing else None)
