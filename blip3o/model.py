"""`Blip3oNext`: the four families composed into one model, in pure torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from blip3o.ar.base import ARBackbone, Sampling
from blip3o.bridge.base import Bridge
from blip3o.diffusion.base import Codec, DiffusionHead, Generators
from blip3o.diffusion.guidance import Interval
from blip3o.fitting import (
    build_bridge,
    build_reference_features,
    build_reference_latents,
    check_takes_latents,
    check_token_head,
)
from blip3o.part import Part
from blip3o.prompts import PromptTemplate, SequenceBuilder, Supervise
from blip3o.reading import as_generated, decoded_states, image_codes, prompt_states, sequence_states
from blip3o.references import Told, projected_latents, read_references, told_embeds
from blip3o.rendering import render, seen_references
from blip3o.structures import ARStates, Conditioning, Generated, ModelLosses, Rendered
from blip3o.tokenizers.base import ImageTokenizer

DEFAULT_TEMPLATE = PromptTemplate()


class Blip3oNext(Part):
    """Text to discrete image tokens to hidden states to a condition to latents.

    What lies between text and condition is the bridge's choice (`Bridge.reads`): the states at the image tokens that
    the AR model writes, these tokens' features alone, or, without writing any, the states at the prompt or at learned
    queries after it.

    Args:
        tokenizer: image tokenizer; its ids are what the AR model learns to write.
        ar: AR backbone; its vocabulary is extended by the tokenizer's codes.
        bridge: called with `(ar.hidden_size, diffusion.cond_dim)`, such as `MLPBridge` or
            `functools.partial(MLPBridge, depth=3)`; one that reads token features is called again, with
            `(tokenizer.feature_dim, diffusion.cond_dim)`. A bridge that has these widths already is used as it is.
        diffusion: diffusion head. One that reads the tokens themselves leaves the bridge unused; it is then frozen.
        template: wording of the prompts.
        reference_features: editing by features: called with `(tokenizer.continuous_dim, ar.hidden_size)`, it projects
            the tokenizer's continuous features of the reference images, which then take the place of their tokens'
            embeddings in the prompt.
        reference_latents: editing by latents: called with `(diffusion.latent_channels, diffusion.cond_dim)`, it
            projects the latents of the reference images, which then follow the condition.

    Without either, reference images are told to the AR model by their tokens alone, or by its own vision tower where it
    has one (`VisionLanguageLM`); a head may also take their latents in noise space (`FlowHead.reference`).

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
        self.bridge = build_bridge(bridge, tokenizer, ar, diffusion)
        if diffusion.reads == "tokens":
            check_token_head(diffusion, tokenizer, self.bridge, references_in_condition=reference_latents is not None)
            self.bridge.requires_grad_(False)  # unused
        self.reference_features = self.reference_latents = None
        if reference_features is not None:
            self.reference_features = build_reference_features(reference_features, tokenizer, ar)
        if reference_latents is not None:
            self.reference_latents = build_reference_latents(reference_latents, diffusion)
        ar.extend_vocabulary(tokenizer.codebook_size, max(3, tokenizer.num_scales), self.codebook())
        self.template = template

    @cached_property
    def sequences(self) -> SequenceBuilder:
        """Lays out prompts and training sequences."""
        assert self.ar.vocabulary is not None, "it was extended"
        return SequenceBuilder(self.ar.text_tokenizer, self.ar.vocabulary, self.template)

    @torch.no_grad()
    def codebook(self) -> Tensor | None:
        """The codes (num_codes, D) that the AR model's image rows start from, where they are as wide as its states."""
        if self.tokenizer.feature_dim != self.ar.hidden_size:
            return None
        return self.tokenizer.embed(torch.arange(self.tokenizer.codebook_size)[:, None])[:, 0]

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
        images: Tensor | None,
        captions: Sequence[str],
        *,
        token_images: Tensor | None = None,
        image_ids: Tensor | None = None,
        latents: Tensor | None = None,
        references: Tensor | None = None,
        token_references: Tensor | None = None,
        supervise: Supervise = "all",
        rendered_rows: Tensor | slice = slice(None),
        dropped: Tensor | None = None,
        hidden_references: Tensor | None = None,
        packing: bool = False,
        generator: Generators = None,
    ) -> ModelLosses:
        """Cross-entropy of the image tokens and the diffusion head's losses, from one AR pass.

        Where the bridge needs no image tokens, none are written: there is no cross-entropy then, of no tokens, and the
        AR model trains through the bridge alone.

        Args:
            images: (B, 3, H, W) in [-1, 1], what the diffusion head learns to render; None where `latents`, and where
                tokens are needed `image_ids`, take their place.
            captions: B captions.
            token_images: (B, 3, h, w) in [-1, 1], the same pictures at the image tokenizer's size; `images` when None.
            image_ids: (B, N) codes that the image tokenizer gave before; it is then not asked.
            latents: (B, c, h, w) normalised latents that the head's codec gave before; it is then not asked.
            references: (B, R, 3, H, W) in [-1, 1], reference images; captions are then instructions.
            token_references: (B, R, 3, h, w), the same at the image tokenizer's size; `references` when None.
            supervise: where cross-entropy is taken; with `image` it is taken over the image ids alone, the set that
                decoding draws from.
            rendered_rows: rows that train the diffusion head, an index (R,) or a slice.
            dropped: (R,) bool, rows whose condition is replaced by the null condition: zeros before the bridge and,
                unless `hidden_references` says other, in place of the references' latents after it.
            hidden_references: (R,) bool, rows whose references the diffusion head does not see, with zeros in place of
                their latents after the condition and in noise space; the AR model is told of them all the same.
            packing: read the rows end to end, without padding, for an AR model that passes its `check_packing`.
            generator: source of noise and timesteps, one or one for each of the R rows.

        Raises:
            ValueError: if neither images nor what takes their place are given, or the head takes no latents.
        """
        target = images if latents is None else latents
        if target is None:
            raise ValueError("images and latents are both None; give one: it is what the diffusion head learns.")
        if latents is not None:
            check_takes_latents(self.diffusion)
        told = self._told(references if token_references is None else token_references)
        if self.bridge.needs_tokens:
            codes = image_codes(self.tokenizer, images if token_images is None else token_images, image_ids)
            states, cross_entropy, num_tokens = self._taught(captions, codes, supervise, told, packing)
        else:
            if len(captions) != len(target):
                raise ValueError(f"captions ({len(captions)}) and images ({len(target)}) must have one length.")
            states = self._asked(captions, told, known_words=True, packed=packing)
            cross_entropy = num_tokens = torch.zeros((), device=target.device)
        states = states[rendered_rows]
        if dropped is not None:
            states = states.drop(dropped)
        condition = self.bridge(states)
        if self.reference_latents is not None and references is not None:
            gone, seen = dropped if hidden_references is None else hidden_references, references[rendered_rows]
            condition = condition.followed_by(projected_latents(self.diffusion, self.reference_latents, seen, gone))
        beside = seen_references(self.diffusion, references)
        beside = None if beside is None else beside[rendered_rows]
        given: dict[str, Any] = {} if latents is None else {"latents": target[rendered_rows]}
        if beside is not None and hidden_references is not None:
            given["hidden"] = hidden_references
        pixels = target[rendered_rows] if latents is None else None
        flow = self.diffusion.loss(pixels, condition, beside, generator=generator, **given)
        return ModelLosses(cross_entropy, num_tokens, flow)

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
        """Image tokens for captions, and the states that the bridge reads.

        Where the bridge needs no image tokens, none are decoded: the ids are (B, 0), the sampling and the guidance of
        tokens do nothing, and the states are those of one pass over the prompts.

        Args:
            captions: B captions, or instructions where there are references.
            sampling: how tokens are drawn.
            generator: source of the draws.
            token_guidance_scale: classifier-free guidance of the AR model against an empty caption, for models that
                were trained with dropped captions; 1 turns it off.
            token_references: (B, R, 3, h, w) in [-1, 1], reference images at the image tokenizer's size.
        """
        told = self._told(token_references)
        if not self.bridge.needs_tokens:
            return as_generated(self._asked(captions, told))
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
            self._prompt_embeds(ids, told),
            self.bridge.ar_layers or None,
            told.images,
        )

    def condition(self, tokens: Generated, references: Tensor | None = None) -> tuple[Conditioning, Conditioning]:
        """The condition of decoded tokens and of reference images (B, R, 3, H, W), and the null condition."""
        states = decoded_states(self.bridge, self.tokenizer, tokens)
        condition, null = self.bridge(states), self.bridge(states.null())
        if self.reference_latents is not None and references is not None:
            projected = projected_latents(self.diffusion, self.reference_latents, references)
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
        image_guidance_scale: float | None = None,
        size: tuple[int, int] | None = None,
        guidance_interval: Interval | None = None,
        step_cache: float | None = None,
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
            image_guidance_scale: guidance by the references that the diffusion head sees, `guidance_scale` being that
                by the text; 1 leaves them in all branches. When None, one scale guides by the text and the latents
                after the condition, as published.
            size: height and width in pixels of what is rendered, and of `references`; the head's own when None.
            guidance_interval: noise levels (low, high) that the diffusion head is guided at; all when None.
            step_cache: how much a step's beginning may differ from the last full one to skip blocks; 0 or None skips
                none.

        Raises:
            ValueError: if `image_guidance_scale` is given where the diffusion head sees no references, or the head can
                not do what else is asked for.
        """
        self.diffusion.check_rendering(guidance_interval=guidance_interval, step_cache=step_cache)
        if image_guidance_scale is not None and references is None:
            raise ValueError(f"image_guidance_scale ({image_guidance_scale}) needs `references`; leave it out.")
        self.check_shown("image_guidance_scale", image_guidance_scale)
        tokens = self.write(
            captions,
            sampling=sampling,
            generator=generator,
            token_guidance_scale=token_guidance_scale,
            token_references=references if token_references is None else token_references,
        )
        return render(
            self,
            tokens,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=generator,
            latents=latents,
            references=references,
            image_guidance_scale=image_guidance_scale,
            size=size,
            guidance_interval=guidance_interval,
            step_cache=step_cache,
        )

    @property
    def shows_references(self) -> bool:
        """Whether the diffusion head itself sees reference images, in noise space or after the condition."""
        projects = self.reference_latents is not None and self.reference_latents.num_positions(1) != 0
        return projects or getattr(self.diffusion, "reference", None) is not None

    def check_shown(self, name: str, value: float | None) -> None:
        """Raises where a setting of what the diffusion head sees of reference images is given, and it sees none."""
        if value is not None and not self.shows_references:
            raise ValueError(
                f"{name} ({value}) is about reference images that the diffusion head sees, but in this model the AR "
                "model alone is told of them; leave it out, or build the model with reference_latents or with "
                "FlowHead(reference=...)."
            )

    def _taught(
        self, captions: Sequence[str], image_ids: Tensor, supervise: Supervise, told: Told, packed: bool
    ) -> tuple[ARStates, Tensor, Tensor]:
        """What the bridge reads of sequences with their image tokens (B, N), the summed cross-entropy and its count."""
        sequences = self.sequences.training(captions, image_ids, supervise, references=told.ids)
        vocabulary = self.sequences.vocabulary
        first = vocabulary.first_code if supervise == "image" else 0
        scored, targets = sequences.next_tokens()
        output, cross_entropy = self.ar.cross_entropy(
            sequences.input_ids,
            sequences.attention_mask,
            targets=targets,
            targets_at=scored,
            ids=(first, vocabulary.size),
            inputs_embeds=told_embeds(
                self.ar, self.reference_features, sequences.input_ids, sequences.reference_mask, told
            ),
            layers=self.bridge.ar_layers or None,
            images=told.images,
            packed=packed,
        )
        states = sequence_states(self.bridge, self.tokenizer, output, sequences.condition_mask, image_ids)
        return states, cross_entropy, scored.sum()

    def _asked(self, captions: Sequence[str], told: Told, known_words: bool = False, packed: bool = False) -> ARStates:
        """What the bridge reads of prompts alone."""
        prompts = self.sequences.prompts(captions, references=told.ids, known_words=known_words)
        ids, mask = (t.to(self.device) for t in prompts)
        return prompt_states(self.ar, self.bridge, ids, mask, self._prompt_embeds(ids, told), told.images, packed)

    def _told(self, images: Tensor | None) -> Told:
        """What the AR model is told of reference images (B, R, 3, h, w)."""
        return read_references(self.tokenizer, self.ar, images, with_features=self.reference_features is not None)

    def _prompt_embeds(self, ids: Tensor, told: Told) -> Tensor | None:
        """Input embeddings of prompts (B, T), where they are other than those of the ids."""
        return told_embeds(self.ar, self.reference_features, ids, ids >= self.sequences.vocabulary.first_code, told)
