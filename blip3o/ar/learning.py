"""What training asks of a backbone around a model of transformers: cross-entropy, packing, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from blip3o.ar.base import ARBackbone
from blip3o.ar.cross_entropy import linear_cross_entropy
from blip3o.ar.logits import LogitShape
from blip3o.ar.packed import check_packs, try_packing
from blip3o.ar.rows_attention import attention_named
from blip3o.ar.tables import head_of
from blip3o.recomputing import same_kernels
from blip3o.structures import AROutput


class TransformersLearning(ARBackbone):
    """Trains a model of transformers.

    Attributes:
        lm: the model.
    """

    lm: PreTrainedModel
    _logit_shape: LogitShape

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
        """A pass and the summed cross-entropy of `targets`, without logits."""
        output = self(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, layers=layers, images=images, packed=packed
        )
        head = head_of(self.lm)
        hidden = output.hidden[targets_at]
        loss = linear_cross_entropy(hidden, head.weight, targets, ids, bias=head.bias, shape=self._logit_shape)
        return output, loss

    def check_packing(self) -> None:
        """Raises a ValueError unless rows that lie end to end are read as each of them alone, which is tried."""
        if self.reads_images:
            raise ValueError(
                f"packing can not be used with {type(self).__name__}, whose positions count an image's rows and "
                "columns; set packing to false."
            )
        check_packs(self.lm)
        if not any(parameter.is_meta for parameter in self.lm.parameters()):
            try_packing(self.lm)

    def enable_gradient_checkpointing(self) -> None:
        """Turns on transformers' own.

        Raises:
            ValueError: if the model has none.
        """
        if not self.lm.supports_gradient_checkpointing:
            raise ValueError(
                f"gradient_checkpointing can not be used with model_type ({self.lm.config.model_type}), for which "
                "transformers has none; set it to false."
            )
        enable = getattr(self.lm, "activation_checkpointing_enable", None) or self.lm.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": _SameAttention(self.lm)})
        # Transformers lets gradients into frozen embeddings for torch's older kind of checkpointing.
        self.lm.disable_input_require_grads()


@dataclass(frozen=True)
class _SameAttention:
    """Torch's `context_fn`: a block's second pass attends as its first did, by kernel and by transformers' name.

    It belongs to one model, and goes with it where that is copied or pickled.
    """

    lm: PreTrainedModel

    def __call__(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        config = self.lm.get_decoder().config
        return same_kernels(partial(attention_named, config, config._attn_implementation))
