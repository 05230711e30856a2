"""`Blip3oNext`: the four families composed into one model, in pure torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blip3o.ar.base import ARBackbone, Sampling
from blip3o.bridge.base import Bridge
from blip3o.diffusion.base import DiffusionHead, Generators
from blip3o.part import Part
from blip3o.prompts import PromptTemplate, SequenceBuilder, Supervise
from blip3o.structures import IGNORE_INDEX, ARStates, Conditioning, Generated
from blip3o.tokenizers.base import ImageTokenizer

DEFAULT_TEMPLATE = PromptTemplate()


@dataclass(frozen=True)
class ModelLosses:
    """Losses of a batch, not yet reduced over it.

    Attributes:
        cross_entropy: scalar, summed over the supervised tokens.
        num_tokens: scalar, how many tokens that were.
        flow: (R,) the diffusion head's losses of the rows it was trained on.
    """

    cross_entropy: Tensor
    num_tokens: Tensor
    flow: Tensor


@dataclass(frozen=True)
class Rendered:
    """Generated images with what they came from.

    Attributes:
        tokens: the decoded image tokens.
        conditioning: what the diffusion head was conditioned on.
        latents: (B, c, h, w) normalised latents.
    """

    tokens: Generated
    conditioning: Conditioning
    latents: Tensor


class Blip3oNext(Part):
    """Text to discrete image tokens to hidden states to a condition to latents.

    Args:
        tokenizer: image tokenizer; its ids are what the AR model learns to write.
        ar: AR backbone; its vocabulary is extended by the tokenizer's codes.
        bridge: called with `(ar.hidden_size, diffusion.cond_dim)`, such as `MLPBridge` or
            `functools.partial(MLPBridge, depth=3)`.
        diffusion: diffusion head.
        template: wording of the prompts.

    Raises:
        ValueError: if two parts do not fit together.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        ar: ARBackbone,
        bridge: Callable[[int, int], Bridge],
        diffusion: DiffusionHead,
        template: PromptTemplate = DEFAULT_TEMPLATE,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.ar = ar
        self.diffusion = diffusion
        self.bridge = bridge(ar.hidden_size, diffusion.cond_dim)
        if self.bridge.reads != "image_tokens":
            raise ValueError(
                f"bridge ({type(self.bridge).__name__}) reads {self.bridge.reads!r}, but this model gives the states "
                "of 'image_tokens' only; choose a bridge that reads those."
            )
        widths = (self.bridge.in_features, self.bridge.out_features)
        if widths != (ar.hidden_size, diffusion.cond_dim):
            raise ValueError(
                f"the bridge maps {widths[0]} to {widths[1]} features, but the AR model gives {ar.hidden_size} and the "
                f"diffusion head takes {diffusion.cond_dim}; pass a callable that uses the two widths it is given."
            )
        codebook = None
        if tokenizer.feature_dim == ar.hidden_size:
            with torch.no_grad():
                codebook = tokenizer.embed(torch.arange(tokenizer.codebook_size)[:, None])[:, 0]
        vocabulary = ar.extend_vocabulary(tokenizer.codebook_size, max(3, tokenizer.num_scales), codebook)
        self.template = template
        self.sequences = SequenceBuilder(ar.text_tokenizer, vocabulary, template)

    def config(self) -> dict[str, Any]:
        """`class_path` and `init_args`, the bridge without its two widths, which the other parts decide."""
        bridge = self.bridge.config()
        for width in ("in_features", "out_features"):
            bridge["init_args"].pop(width, None)
        parts = {"tokenizer": self.tokenizer.config(), "ar": self.ar.config(), "bridge": bridge}
        parts |= {"diffusion": self.diffusion.config(), "template": asdict(self.template)}
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": parts}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def losses(
        self,
        images: Tensor,
        captions: Sequence[str],
        *,
        token_images: Tensor | None = None,
        supervise: Supervise = "all",
        rendered_rows: Tensor | slice = slice(None),
        dropped: Tensor | None = None,
        generator: Generators = None,
    ) -> ModelLosses:
        """Cross-entropy of the image tokens and the diffusion head's losses, from one AR pass.

        Args:
            images: (B, 3, H, W) in [-1, 1], what the diffusion head learns to render.
            captions: B captions.
            token_images: (B, 3, h, w) in [-1, 1], the same pictures at the image tokenizer's size; `images` when None.
            supervise: where cross-entropy is taken; with `image` it is taken over the image ids alone, the set that
                decoding draws from.
            rendered_rows: rows that train the diffusion head, an index (R,) or a slice.
            dropped: (R,) bool, rows whose condition is replaced by the null condition.
            generator: source of noise and timesteps, one or one for each of the R rows.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            image_ids = self.tokenizer.encode(
                images if token_images is None else token_images
            ).ids  # in the tokenizer's own precision: they are the target
        sequences = self.sequences.training(captions, image_ids, supervise)
        vocabulary = self.sequences.vocabulary
        first = vocabulary.first_code if supervise == "image" else 0
        labels = F.pad(sequences.labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        # A padding position predicts nothing: the first token of a row is given, whatever the padding.
        scored = (labels != IGNORE_INDEX) & sequences.attention_mask
        output = self.ar(
            sequences.input_ids,
            sequences.attention_mask,
            logits_for=(first, vocabulary.size),
            logits_at=scored,
        )
        cross_entropy = F.cross_entropy(output.logits.float(), labels[scored] - first, reduction="sum")
        # The condition positions are a contiguous block that ends at the same distance from the right in every row.
        hidden = output.hidden[:, sequences.condition_mask[0]][rendered_rows]
        states = ARStates(hidden, hidden.new_ones(hidden.shape[:2], dtype=torch.bool))
        if dropped is not None:
            states = states.drop(dropped)
        flow = self.diffusion.loss(images[rendered_rows], self.bridge(states), generator=generator)
        return ModelLosses(cross_entropy, scored.sum(), flow)

    @torch.no_grad()
    def write(
        self,
        captions: Sequence[str],
        *,
        sampling: Sampling = Sampling(),
        generator: Generators = None,
        token_guidance_scale: float = 1.0,
    ) -> Generated:
        """Image tokens for captions.

        Args:
            captions: B captions.
            sampling: how tokens are drawn.
            generator: source of the draws.
            token_guidance_scale: classifier-free guidance of the AR model against an empty caption, for models that
                were trained with dropped captions; 1 turns it off.
        """
        prompts = [t.to(self.device) for t in self.sequences.prompts(captions)]
        negative = None
        if token_guidance_scale != 1:
            ids, mask = (t.to(self.device) for t in self.sequences.prompts([""] * len(captions)))
            negative = (ids, mask)
        return self.ar.generate(
            prompts[0], prompts[1], self.tokenizer.num_tokens(), sampling, generator, negative, token_guidance_scale
        )

    def condition(self, tokens: Generated) -> tuple[Conditioning, Conditioning]:
        """The condition of decoded tokens, and the null condition."""
        states = ARStates(tokens.hidden, tokens.ids.new_ones(tokens.hidden.shape[:2], dtype=torch.bool))
        return self.bridge(states), self.bridge(states.null())

    @torch.no_grad()
    def generate(
        self,
        captions: Sequence[str],
        *,
        num_inference_steps: int = 30,
        guidance_scale: float = 2.0,
        sampling: Sampling = Sampling(),
        token_guidance_scale: float = 1.0,
        generator: Generators = None,
        latents: Tensor | None = None,
    ) -> Rendered:
        """Captions to image tokens and latents; `diffusion.decode` turns these into pixels.

        Args:
            captions: B captions.
            num_inference_steps: denoising steps.
            guidance_scale: classifier-free guidance of the diffusion head; 1 turns it off.
            sampling: how image tokens are drawn.
            token_guidance_scale: classifier-free guidance of the AR model; 1 turns it off.
            generator: source of all randomness, one or one a row.
            latents: initial noise (B, c, h, w).
        """
        tokens = self.write(captions, sampling=sampling, generator=generator, token_guidance_scale=token_guidance_scale)
        conditioning, negative = self.condition(tokens)
        drawn = self.diffusion.sample(
            conditioning,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative=negative,
            generator=generator,
            latents=latents,
        )
        return Rendered(tokens, conditioning, drawn)
