"""Any causal language model of transformers as an AR backbone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from blip3o.ar.attention import TransformersAttention, first_kernel
from blip3o.ar.base import Sampling
from blip3o.ar.cache import cache_argument, leaves_out_padding, new_cache, rewindable_cache, state_arguments
from blip3o.ar.compiled.build import library
from blip3o.ar.compiled.step import CompiledStep, check_compilable, compilable
from blip3o.ar.configs import resolve_config, without_notes
from blip3o.ar.jacobi import decode_jacobi
from blip3o.ar.kernel_advice import hide_kernel_advice
from blip3o.ar.lean import LeanStep, fits
from blip3o.ar.learning import TransformersLearning
from blip3o.ar.logits import read_logit_shape
from blip3o.ar.packed import run_packed
from blip3o.ar.sequential import decode_sequentially
from blip3o.ar.start import Wanted, read_prompts, with_negative
from blip3o.ar.steps import LibraryStep, Step, stack_layers
from blip3o.ar.tables import extend_tables, head_of, share_tied, tie_again
from blip3o.ar.text import load_text_tokenizer
from blip3o.ar.vocabulary import ImageVocabulary, check_held, held_layout
from blip3o.attention import AttentionSetting
from blip3o.loading import check_loading_info
from blip3o.structures import AROutput, Generated


class CausalLM(TransformersAttention, TransformersLearning):
    """A transformers causal LM whose vocabulary is extended by image tokens.

    Args:
        config: arguments of the model's transformers config, with `model_type` (such as `qwen3`). The vocabulary
            size may be left out: it is the text tokenizer's.
        text_tokenizer: folder or hub id of a tokenizer, or a list of words for a word-level one.
        attention: kernel of the attention: `auto`, `flash`, `sdpa` or `eager`; see `blip3o.attention`.
        text_size: ids below it are text, and image ids are added from it on. When None, the size of the text
            tokenizer; or where that holds the image tokens too, as the published one does, the first of them.
        table_size: rows of the embedding tables once the vocabulary is extended, where they hold more than it needs;
            as many as it needs when None.

    Raises:
        ValueError: if `model_type` is missing or unknown, or names a model whose logits or state can not be read
            here; or if `text_size` does not suit the text tokenizer.
    """

    _auto: ClassVar[Any] = AutoModelForCausalLM

    def __init__(
        self,
        config: dict[str, Any],
        text_tokenizer: str | list[str],
        attention: AttentionSetting | None = "auto",
        text_size: int | None = None,
        table_size: int | None = None,
    ) -> None:
        super().__init__()
        hide_kernel_advice()
        if "model_type" not in config:
            raise ValueError(f"config ({config}) must name a model_type, such as 'qwen3'.")
        self._text_tokenizer_source = text_tokenizer
        if text_size is not None and _is_remote(text_tokenizer) and torch.get_default_device().type == "meta":
            held, most = None, text_size  # only shapes are asked for, and these are told
        else:
            held = held_layout(self.text_tokenizer)
            most = len(self.text_tokenizer) if held is None else held[0]
        self.text_size = most if text_size is None else text_size
        if not 1 <= self.text_size <= most or (held is not None and self.text_size != most):
            told = f"lie in 1..{most}, the size of" if held is None else f"be {most}, the first image token of"
            raise ValueError(f"text_size ({text_size}) must {told} the text tokenizer.")
        self.table_size = table_size
        self._held_scales = None if held is None else held[1]
        resolved = resolve_config({"vocab_size": self.text_size, **config})
        self.lm: PreTrainedModel = self._auto.from_config(resolved, attn_implementation=first_kernel(attention))
        self.start_attention(attention)
        self.vocabulary = None
        self._compiled = False
        self.register_load_state_dict_pre_hook(_share_tied)
        self.register_load_state_dict_post_hook(_tie_again)
        self._logit_shape = read_logit_shape(self.lm)
        self._check()

    @cached_property
    def text_tokenizer(self) -> PreTrainedTokenizerBase:
        """Reads prompts. One from the hub is fetched when first asked for, where only shapes were asked for so far."""
        return load_text_tokenizer(self._text_tokenizer_source)

    @classmethod
    def from_pretrained(cls, name_or_path: str, attention: AttentionSetting = "auto", dtype: str = "float32") -> Self:
        """From a transformers folder or hub id, with the text tokenizer that lies beside the weights.

        Raises:
            OSError: if there is no such folder or hub id.
            ValueError: if its weights do not fit its config.
        """
        kernel = first_kernel(attention)
        lm, info = cls._auto.from_pretrained(
            name_or_path, attn_implementation=kernel, dtype=getattr(torch, dtype), output_loading_info=True
        )
        check_loading_info(info, name_or_path)
        # The dtype belongs to these weights, not to the architecture: a model is rebuilt and saved in any.
        config = without_notes(lm.config.to_diff_dict())
        with torch.device("meta"):
            backbone = cls(
                config=config, text_tokenizer=name_or_path, attention=attention, **cls._stored_beside(name_or_path)
            )
        backbone.lm = lm
        backbone._check()
        return backbone

    @classmethod
    def _stored_beside(cls, name_or_path: str) -> dict[str, Any]:
        """More arguments of the constructor that a transformers folder holds."""
        return {}

    def _check(self) -> None:
        """Tries the model's cache on a few tokens, where it has weights."""
        self._leaves_out_padding = True
        if any(parameter.is_meta for parameter in self.lm.parameters()):
            return

        def read(ids: Tensor, mask: Tensor, cache: DynamicCache | None) -> Tensor:
            inputs = self._inputs(ids, mask)
            inputs["position_ids"] = inputs["position_ids"][:, -ids.shape[1] :]
            hidden: Tensor = self._run(inputs, mask, cache).last_hidden_state
            return hidden

        training = self.lm.training
        self.lm.eval()
        self._leaves_out_padding = leaves_out_padding(self.lm, read)
        self.lm.train(training)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def context_length(self) -> int:
        """Most positions of a sequence; `sys.maxsize` for a model that counts none, as state-space models."""
        limit = getattr(self.lm.config.get_text_config(), "max_position_embeddings", None)
        return sys.maxsize if limit is None else int(limit)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.lm.config.get_text_config().num_hidden_layers)

    @property
    def head(self) -> Tensor:
        """Output embeddings (V, H)."""
        return head_of(self.lm).weight

    def extend_vocabulary(self, num_codes: int, num_scales: int = 3, codebook: Tensor | None = None) -> ImageVocabulary:
        """Adds image ids; new rows start at the mean of the old ones, image rows at `codebook` where it fits.

        A text tokenizer that holds the image tokens decides the number of scale tokens itself.
        """
        wanted = ImageVocabulary(
            self.text_size, num_codes, num_scales if self._held_scales is None else self._held_scales
        )
        if self.vocabulary is not None:
            if self.vocabulary != wanted:
                raise ValueError(
                    f"the vocabulary holds {self.vocabulary.num_codes} codes and {self.vocabulary.num_scales} scales, "
                    f"not num_codes ({num_codes}) and num_scales ({num_scales}); build the backbone anew."
                )
            return self.vocabulary
        if self._held_scales is not None:
            check_held(self.text_tokenizer, wanted)
        rows = wanted.size if self.table_size is None else self.table_size
        if rows < wanted.size:
            raise ValueError(f"table_size ({rows}) must be at least {wanted.size}, the vocabulary's; leave it out.")
        extend_tables(self.lm, wanted, rows, codebook)
        self.vocabulary = wanted
        return wanted

    def embed(self, input_ids: Tensor) -> Tensor:
        """Input embeddings (B, T, H) of ids (B, T)."""
        return self.lm.get_input_embeddings()(input_ids)

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
        """Hidden states of sequences, and logits over the ids asked for at the positions asked for."""
        if input_ids.shape[1] > self.context_length:
            raise ValueError(
                f"the sequences hold {input_ids.shape[1]} positions, but the model's context {self.context_length}; "
                "shorten the prompts or enlarge max_position_embeddings."
            )
        self.use_attention()
        inputs = self._inputs(input_ids, attention_mask, inputs_embeds, images)
        run = partial(run_packed, self.lm, self._run) if packed else self._run
        output = run(inputs, attention_mask, keep_layers=bool(layers))
        hidden, kept = output.last_hidden_state, stack_layers(output.hidden_states, layers)
        if logits_for is None:
            return AROutput(hidden, layers=kept)
        scored = hidden if logits_at is None else hidden[logits_at]
        return AROutput(hidden, self._logit_shape(self._products(scored, logits_for)), kept)

    @torch.no_grad()
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
        """Decodes image tokens with the model's cache; hidden states and log-probabilities are kept as they come."""
        vocabulary = self._extended()
        if self.lm.training and self.lm.is_gradient_checkpointing:
            raise ValueError(
                "the model is in training mode with gradient_checkpointing, in which transformers' layers forget what "
                "they have read; call eval() before generating."
            )
        self.use_attention()
        rows, several = len(input_ids), sampling.decoding == "jacobi"
        if token_guidance_scale != 1.0:
            input_ids, attention_mask, images = with_negative(
                (input_ids, attention_mask), negative, token_guidance_scale, inputs_embeds, images
            )
        length = input_ids.shape[1] + num_tokens
        if length > self.context_length:
            raise ValueError(
                f"the prompt ({input_ids.shape[1]} tokens) and {num_tokens} image tokens need {length} positions, but "
                f"the model's context holds {self.context_length}; shorten the prompt."
            )
        start = read_prompts(
            self._inputs,
            self._run,
            (rewindable_cache if several else new_cache)(self.lm.config),
            input_ids,
            attention_mask,
            rows=rows,
            inputs_embeds=inputs_embeds,
            images=images,
            keep_layers=bool(layers),
        )
        codes = (vocabulary.first_code, vocabulary.size)
        head = partial(self._products, ids=codes)
        wanted = Wanted(num_tokens, vocabulary.first_code, sampling, generator, token_guidance_scale, layers)
        if several:
            return decode_jacobi(self._run, lambda hidden: self._logit_shape(head(hidden)), start, wanted)
        step: Step
        if self._compiled and compilable(self.lm, start.attention_mask):
            step = CompiledStep(self.lm, start, num_tokens, codes, keep_layers=bool(layers))
        elif fits(self.lm):
            step = LeanStep(self.lm, start, num_tokens, codes, keep_layers=bool(layers))
        else:
            step = LibraryStep(
                self._run, head, start.cache, start.attention_mask, start.position, keep_layers=bool(layers)
            )
        return decode_sequentially(step, lambda hidden: self._logit_shape(step.scores(hidden)), start, wanted)

    def compile_decoding(self) -> None:
        """From now on up to 16 rows are decoded on a CPU by a kernel that this machine's C++ compiler has made.

        It takes seconds once; a cache keeps it, see `blip3o.ar.compiled.build.library`. More rows (token guidance
        doubles them), Jacobi decoding and autocast go on without it, as does a model that is moved to a GPU later. Not
        stored with the model.

        Raises:
            ValueError: if the kernel does not know the model as it is now, or can not be compiled.
        """
        self.use_attention()
        check_compilable(self.lm)
        library()
        self._compiled = True

    def check_sampling(self, sampling: Sampling) -> None:
        """Raises a ValueError where Jacobi decoding is asked for and nothing that the model read can be taken back."""
        if sampling.decoding == "jacobi":
            rewindable_cache(self.lm.config)

    def _products(self, hidden: Tensor, ids: tuple[int, int]) -> Tensor:
        """The head's products (..., ids) of last hidden states (..., H), over a range of ids alone."""
        head, within = head_of(self.lm), slice(*ids)
        return F.linear(hidden, head.weight[within], None if head.bias is None else head.bias[within])

    def _extended(self) -> ImageVocabulary:
        if self.vocabulary is None:
            raise ValueError("the vocabulary has no image tokens; call extend_vocabulary(num_codes) first.")
        return self.vocabulary

    def _inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None = None,
        images: Tensor | None = None,
    ) -> dict[str, Any]:
        """What the decoder reads of whole sequences; positions count from the first token that is no padding."""
        if images is not None:
            raise ValueError(f"images were given, but {type(self).__name__} has no vision tower; leave them out.")
        position_ids = None
        if attention_mask is not None:
            if not self._leaves_out_padding and not attention_mask.all():
                raise ValueError(
                    f"model_type ({self.lm.config.model_type}) takes padding into its state; give rows of one length."
                )
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        named = {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        return {**named, "position_ids": position_ids}

    def _run(
        self,
        inputs: dict[str, Any],
        attention_mask: Tensor | None,
        cache: DynamicCache | None = None,
        keep_layers: bool = False,
    ) -> Any:
        """The decoder without its head."""
        decoder = self.lm.get_decoder()
        named = {key: value for key, value in inputs.items() if key != "position_ids"}
        state = state_arguments(decoder, cache, attention_mask, inputs["position_ids"])
        output = decoder(**named, **state, output_hidden_states=keep_layers)
        if keep_layers and cache_argument(decoder) == "cache_params":
            # State-space models leave the input embeddings out, and add the last layer's states before the final norm.
            first = inputs["inputs_embeds"] if "inputs_embeds" in inputs else self.embed(inputs["input_ids"])
            output.hidden_states = (first, *output.hidden_states[:-2], output.hidden_states[-1])
        return output


def _share_tied(backbone: CausalLM, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Before a state is loaded: a tied table may be stored once."""
    share_tied(backbone.lm, state, f"{prefix}lm.")


def _tie_again(backbone: CausalLM, incompatible: Any) -> None:
    """After a state was loaded: a tied table is one again."""
    tie_again(backbone.lm)


def _is_remote(text_tokenizer: str | list[str]) -> bool:
    return isinstance(text_tokenizer, str) and not Path(text_tokenizer).is_dir()
