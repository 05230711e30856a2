"""The contract of the AR family."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blip3o.ar.vocabulary import ImageVocabulary
from blip3o.part import Part
from blip3o.structures import AROutput, Generated

Decoding = Literal["sequential", "jacobi"]


@dataclass(frozen=True)
class Sampling:
    """How image tokens are drawn; the defaults are the published ones.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps that many tokens; 0 keeps all.
        top_p: then keeps the most likely tokens that together reach this probability, in (0, 1].
        decoding: `sequential`, a token a pass; or `jacobi`, several a pass that are drawn from the same distribution
            (`blip3o.ar.jacobi`), for models of attention alone.
        jacobi_window: positions that a pass of `jacobi` reads of a row, at least 2.

    Raises:
        ValueError: on a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 1200
    top_p: float = 0.95
    decoding: Decoding = "sequential"
    jacobi_window: int = 16

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if self.temperature < 0:
            raise ValueError(f"temperature ({self.temperature}) must be at least 0; 0 takes the most likely token.")
        if self.top_k < 0:
            raise ValueError(f"top_k ({self.top_k}) must be at least 0; 0 keeps all tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p ({self.top_p}) must lie in (0, 1]; 1 keeps all tokens.")
        if self.decoding not in get_args(Decoding):
            raise ValueError(f"decoding ({self.decoding!r}) must be one of {list(get_args(Decoding))}.")
        if self.jacobi_window < 2:
            raise ValueError(
                f"jacobi_window ({self.jacobi_window}) must be at least 2: the last token and a draft; for a token a "
                "pass, set decoding to 'sequential'."
            )


class ARBackbone(Part):
    """A causal model over text and image ids.

    Attributes:
        text_tokenizer: reads prompts.
        vocabulary: id ranges, or None until `extend_vocabulary`.
        reads_images: whether reference images are read by a vision tower of its own, not as image tokens.
    """

    reads_images: ClassVar[bool] = False
    text_tokenizer: PreTrainedTokenizerBase
    vocabulary: ImageVocabulary | None

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width H of the hidden states; a bridge is built with it as its input width."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Most positions of a sequence; `sys.maxsize` where there is no limit."""

    @property
    def num_layers(self) -> int:
        """Number of layers whose hidden states can be asked for.

        Raises:
            ValueError: if the backbone does not say.
        """
        raise ValueError(f"{type(self).__name__} does not say its num_layers; define the property.")

    @abstractmethod
    def extend_vocabulary(self, num_codes: int, num_scales: int = 3, codebook: Tensor | None = None) -> ImageVocabulary:
        """Adds image ids after the text vocabulary; does nothing if they are there already.

        Args:
            num_codes: codebook size.
            num_scales: number of scale tokens; a text tokenizer that holds the image tokens has its own.
            codebook: (num_codes, D) starting values of the image rows, used where D equals the hidden size.

        Raises:
            ValueError: if the vocabulary has been extended with other numbers.
        """

    def image_ids(self, num_images: int, height: int, width: int) -> list[int]:
        """Ids that stand in a prompt for reference images, one after the other, for a backbone that reads them itself.

        Args:
            num_images: pictures of a row.
            height: of each, in pixels.
            width: of each, in pixels.

        Raises:
            ValueError: if the backbone reads no images.
        """
        raise ValueError(f"{type(self).__name__} has no vision tower; tell it of images by their image tokens.")

    @abstractmethod
    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings (B, T, H) of ids (B, T)."""

    @abstractmethod
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        logits_for: tuple[int, int] | None = None,
        logits_at: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        layers: Sequence[int] | None = None,
        images: Tensor | None = None,
        packed: bool = False,
    ) -> AROutput:
        """Hidden states of sequences, and logits where they are asked for.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) bool, False at (left) padding; None for no padding.
            logits_for: range of ids to score; no logits when None.
            logits_at: (B, T) bool, positions to score; the logits are then (positions, ids). All when None.
            inputs_embeds: (B, T, H) input embeddings in place of those of the ids.
            layers: layers whose hidden states are returned too: 0 the input embeddings, i those after layer i;
                negative ones count from the end, -1 being `hidden` itself, after the final norm.
            images: (B, R, 3, h, w) in [-1, 1], the reference images whose `image_ids` the sequences hold; only for a
                backbone that `reads_images`.
            packed: read the rows end to end, without their padding, at which states are then zero; only for a backbone
                that passes `check_packing`, and others need no such argument.

        Raises:
            ValueError: if the sequences are longer than the context, or the images do not fit them.
        """

    def cross_entropy(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        *,
        targets: Tensor,
        targets_at: Tensor,
        ids: tuple[int, int],
        inputs_embeds: Tensor | None = None,
        layers: Sequence[int] | None = None,
        images: Tensor | None = None,
        packed: bool = False,
    ) -> tuple[AROutput, Tensor]:
        """A pass over whole sequences, and the cross-entropy of what they are to go on with, summed.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) bool, False at (left) padding; None for no padding.
            targets: (P,) int64 in the range `ids`, the ids that follow.
            targets_at: (B, T) bool, the P positions that they follow.
            ids: range of the ids that compete.
            inputs_embeds: as for `forward`, as are the rest.
            layers: whose hidden states are returned too.
            images: reference images.
            packed: read the rows end to end.

        Returns:
            The output without logits, and a scalar in float32.
        """
        more = {"packed": True} if packed else {}
        output = self(
            input_ids,
            attention_mask,
            logits_for=ids,
            logits_at=targets_at,
            inputs_embeds=inputs_embeds,
            layers=layers,
            images=images,
            **more,
        )
        loss = F.cross_entropy(output.logits.float(), targets - ids[0], reduction="sum")
        return replace(output, logits=None), loss

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises a ValueError where `generate` could not draw tokens so, whatever the prompt."""

    def compile_decoding(self) -> None:
        """From now on tokens are decoded by a kernel that is compiled on this machine, where that helps.

        Raises:
            ValueError: if the backbone has none, or it can not be compiled.
        """
        raise ValueError(f"decoding of {type(self).__name__} can not be compiled; decode without compile_decoding.")

    def check_packing(self) -> None:
        """Raises a ValueError unless `packed` can be asked for."""
        raise ValueError(f"packing can not be used with {type(self).__name__}, which has none; set packing to false.")

    def enable_gradient_checkpointing(self) -> None:
        """From now on training computes activations again in the backward pass, in place of keeping them.

        Raises:
            ValueError: if the backbone can not.
        """
        raise ValueError(
            f"gradient_checkpointing can not be used with {type(self).__name__}, which has none; set it to false."
        )

    @abstractmethod
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        sampling: Sampling = Sampling(),
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        negative: tuple[Tensor, Tensor] | None = None,
        token_guidance_scale: float = 1.0,
        inputs_embeds: Tensor | None = None,
        layers: Sequence[int] | None = None,
        images: Tensor | None = None,
    ) -> Generated:
        """Decodes image tokens with a cache, each state kept as it comes.

        Args:
            input_ids: (B, T) int64 left-padded prompts that end with the scale token.
            attention_mask: (B, T) bool.
            num_tokens: tokens an image, N.
            sampling: temperature, top-k, top-p, and how many tokens a pass gives.
            generator: source of the draws, one or one a row.
            negative: ids and mask (B, T') of the unconditional prompts, for token guidance.
            token_guidance_scale: classifier-free guidance on the logits; 1 turns it off.
            inputs_embeds: (B, T, H) input embeddings of the prompts in place of those of their ids; without token
                guidance only.
            layers: layers whose hidden states are kept too, as for `forward`.
            images: (B, R, 3, h, w) in [-1, 1], reference images as in `forward`; the negative prompts hold the same.

        Returns:
            ids (B, N) in [0, num_codes), hidden states (B, 1 + N, H), log-probabilities (B, N), and the states
            (B, K, 1 + N, H) of the layers asked for.

        Raises:
            ValueError: if the sequences are longer than the context, what is given does not fit together, or
                `sampling.decoding` can not be used with this model.
        """
