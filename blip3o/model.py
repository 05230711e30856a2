"""`Blip3oNext`: the four families composed into one model, in pure torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from blip3o.ar.base import ARBackbone, Sampling
from blip3o.bridge.base import Bridge
from blip3o.diffusion.base import Codec, DiffusionHead, Generators
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


@dataclass(frozen=True)
class Told:
    """What the AR model is told of reference images.

    Attributes:
        ids: (B, R N) codes, None without references.
        features: (B, R N, F) continuous features, None where they are not asked for.
    """

    ids: Tensor | None = None
    features: Tensor | None = None


class Blip3oNext(Part):
    """Text to discrete image tokens to hidden states to a condition to latents.

    Args:
        tokenizer: image tokenizer; its ids are what the AR model learns to write.
        ar: AR backbone; its vocabulary is extended by the tokenizer's codes.
        bridge: called with `(ar.hidden_size, diffusion.cond_dim)`, such as `MLPBridge` or
            `functools.partial(MLPBridge, depth=3)`.
        diffusion: diffusion head.
        template: wording of the prompts.
        reference_features: editing by features: called with `(tokenizer.continuous_dim, ar.hidden_size)`, it projects
            the tokenizer's continuous features of the reference images, which then take the place of their tokens'
            embeddings in the prompt.
        reference_latents: editing by latents: called with `(diffusion.latent_channels, diffusion.cond_dim)`, it
            projects the latents of the reference images, which then follow the condition.

    Without either, reference images are told to the AR model by their tokens alone; a head may also take their latents
    in noise space (`FlowHead.reference`).

    Raises:
        ValueError: if two parts do not fit together.
    """

    reference_features: Bridge | None
    reference_latents: Bridge | None

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        ar: ARBackbone,
        bridge: Callable[[int, int], Bridge],
        diffusion: DiffusionHead,
        template: PromptTemplate = DEFAULT_TEMPLATE,
        reference_features: Callable[[int, int], Bridge] | None = None,
        reference_latents: Callable[[int, int], Bridge] | None = None,
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
        self.reference_features = self.reference_latents = None
        if reference_features is not None:
            if tokenizer.continuous_dim is None:
                raise ValueError(
                    f"reference_features needs a tokenizer with continuous features, and {type(tokenizer).__name__} "
                    "has none; leave it out, or use TATok."
                )
            self.reference_features = reference_features(tokenizer.continuous_dim, ar.hidden_size)
        if reference_latents is not None:
            self.reference_latents = reference_latents(diffusion.latent_channels, diffusion.cond_dim)
        needed = tokenizer.num_tokens() + 2
        if needed >= ar.context_length:
            raise ValueError(
                f"the tokenizer writes {tokenizer.num_tokens()} tokens an image, which with two markers and a prompt "
                f"do not fit the AR model's context ({ar.context_length}); enlarge max_position_embeddings."
            )
        codebook = None
        if tokenizer.feature_dim == ar.hidden_size:
            with torch.no_grad():
                codebook = tokenizer.embed(torch.arange(tokenizer.codebook_size)[:, None])[:, 0]
        vocabulary = ar.extend_vocabulary(tokenizer.codebook_size, max(3, tokenizer.num_scales), codebook)
        self.template = template
        self.sequences = SequenceBuilder(ar.text_tokenizer, vocabulary, template)

    def config(self) -> dict[str, Any]:
        """`class_path` and `init_args`, bridges without their two widths, which the other parts decide."""
        parts: dict[str, Any] = {name: part.config() for name, part in self.parts().items()}
        for name, part in self.parts().items():
            if isinstance(part, Bridge):
                for width in ("in_features", "out_features"):
                    parts[name]["init_args"].pop(width, None)
        parts["template"] = asdict(self.template)
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": parts}

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the image tokenizer and the codecs, which make the targets and stay as they are."""
        super().train(mode)
        for module in (self.tokenizer, *self.diffusion.modules()):
            if isinstance(module, ImageTokenizer | Codec):
                module.eval()
        return self

    def parts(self) -> dict[str, Part]:
        """The parts by their names: the four families', and the bridges for editing where there are any."""
        parts = {"tokenizer": self.tokenizer, "ar": self.ar, "bridge": self.bridge, "diffusion": self.diffusion}
        editing = {"reference_features": self.reference_features, "reference_latents": self.reference_latents}
        return parts | {name: part for name, part in editing.items() if part is not None}

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
        references: Tensor | None = None,
        token_references: Tensor | None = None,
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
            references: (B, R, 3, H, W) in [-1, 1], reference images; captions are then instructions.
            token_references: (B, R, 3, h, w), the same at the image tokenizer's size; `references` when None.
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
        told = self._read(references, token_references)
        sequences = self.sequences.training(captions, image_ids, supervise, references=told.ids)
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
            inputs_embeds=self._embeds(sequences.input_ids, sequences.reference_mask, told),
        )
        cross_entropy = F.cross_entropy(output.logits.float(), labels[scored] - first, reduction="sum")
        # The condition positions are a contiguous block that ends at the same distance from the right in every row.
        hidden = output.hidden[:, sequences.condition_mask[0]][rendered_rows]
        states = ARStates(hidden)
        if dropped is not None:
            states = states.drop(dropped)
        condition = self.bridge(states)
        if self.reference_latents is not None and references is not None:
            projected = self._projected_latents(references[rendered_rows])
            if dropped is not None:
                projected = projected.masked_fill(dropped[:, None, None], 0.0)
            condition = condition.followed_by(projected)
        beside = self._beside(references)
        flow = self.diffusion.loss(
            images[rendered_rows], condition, None if beside is None else beside[rendered_rows], generator=generator
        )
        return ModelLosses(cross_entropy, scored.sum(), flow)

    @torch.no_grad()
    def write(
        self,
        captions: Sequence[str],
        *,
        sampling: Sampling = Sampling(),
        generator: Generators = None,
        token_guidance_scale: float = 1.0,
        token_references: Tensor | None = None,
    ) -> Generated:
        """Image tokens for captions.

        Args:
            captions: B captions, or instructions where there are references.
            sampling: how tokens are drawn.
            generator: source of the draws.
            token_guidance_scale: classifier-free guidance of the AR model against an empty caption, for models that
                were trained with dropped captions; 1 turns it off.
            token_references: (B, R, 3, h, w) in [-1, 1], reference images at the image tokenizer's size.
        """
        told = self._read(token_references, token_references)
        ids, mask = (t.to(self.device) for t in self.sequences.prompts(captions, references=told.ids))
        negative = None
        if token_guidance_scale != 1:
            empty = self.sequences.prompts([""] * len(captions), references=told.ids)
            negative = (empty[0].to(self.device), empty[1].to(self.device))
        return self.ar.generate(
            ids,
            mask,
            self.tokenizer.num_tokens(),
            sampling,
            generator,
            negative,
            token_guidance_scale,
            self._embeds(ids, ids >= self.sequences.vocabulary.first_code, told),
        )

    def condition(self, tokens: Generated, references: Tensor | None = None) -> tuple[Conditioning, Conditioning]:
        """The condition of decoded tokens and of reference images (B, R, 3, H, W), and the null condition."""
        states = ARStates(tokens.hidden)
        condition, null = self.bridge(states), self.bridge(states.null())
        if self.reference_latents is not None and references is not None:
            projected = self._projected_latents(references)
            return condition.followed_by(projected), null.followed_by(torch.zeros_like(projected))
        return condition, null

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
        references: Tensor | None = None,
        token_references: Tensor | None = None,
    ) -> Rendered:
        """Captions to image tokens and latents; `diffusion.decode` turns these into pixels.

        Args:
            captions: B captions, or instructions where there are references.
            num_inference_steps: denoising steps.
            guidance_scale: classifier-free guidance of the diffusion head; 1 turns it off.
            sampling: how image tokens are drawn.
            token_guidance_scale: classifier-free guidance of the AR model; 1 turns it off.
            generator: source of all randomness, one or one a row.
            latents: initial noise (B, c, h, w).
            references: (B, R, 3, H, W) in [-1, 1], reference images at the diffusion head's size.
            token_references: (B, R, 3, h, w), the same at the image tokenizer's size; `references` when None.
        """
        tokens = self.write(
            captions,
            sampling=sampling,
            generator=generator,
            token_guidance_scale=token_guidance_scale,
            token_references=references if token_references is None else token_references,
        )
        conditioning, negative = self.condition(tokens, references)
        drawn = self.diffusion.sample(
            conditioning,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative=negative,
            generator=generator,
            latents=latents,
            references=self._beside(references),
        )
        return Rendered(tokens, conditioning, drawn)

    @torch.no_grad()
    def _read(self, references: Tensor | None, token_references: Tensor | None) -> Told:
        """What the tokenizer reads from reference images (B, R, 3, h, w)."""
        images = references if token_references is None else token_references
        if images is None:
            return Told()
        flat = rearrange(images, "b r c h w -> (b r) c h w")
        with torch.autocast(flat.device.type, enabled=False):
            ids = rearrange(self.tokenizer.encode(flat).ids, "(b r) n -> b (r n)", b=len(images))
            if self.reference_features is None:
                return Told(ids)
            features = rearrange(self.tokenizer.continuous_features(flat), "(b r) n f -> b (r n) f", b=len(images))
        return Told(ids, features)

    def _embeds(self, input_ids: Tensor, reference_mask: Tensor, told: Told) -> Tensor | None:
        """Input embeddings (B, T, H) whose reference positions hold projected features; None where there are none."""
        if told.features is None or self.reference_features is None:
            return None
        projected = self.reference_features(ARStates(told.features)).embeds
        embeds = self.ar.embed(input_ids)
        return embeds.masked_scatter(reference_mask[..., None].to(embeds.device), projected.to(embeds.dtype))

    def _projected_latents(self, references: Tensor) -> Tensor:
        """Latents of reference images (B, R, 3, H, W) as condition positions (B, R h w, C)."""
        assert self.reference_latents is not None
        with torch.no_grad(), torch.autocast(references.device.type, enabled=False):
            latents = self.diffusion.encode(rearrange(references, "b r c h w -> (b r) c h w"))
        positions = rearrange(latents, "(b r) c h w -> b (r h w) c", b=len(references))
        return self.reference_latents(ARStates(positions)).embeds

    def _beside(self, references: Tensor | None) -> Tensor | None:
        """The references that the diffusion head takes for itself: none where only the bridges read them."""
        return references if getattr(self.diffusion, "reference", None) is not None else None
