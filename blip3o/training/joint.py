"""Joint training: the AR model learns to write image tokens while the diffusion head learns to render them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blip3o.ar.base import Sampling
from blip3o.checkpoints import load_all_weights
from blip3o.data.shards import EncodedIndex
from blip3o.diffusion.base import Codec, Denoiser
from blip3o.diffusion.guidance import Interval
from blip3o.model import Blip3oNext
from blip3o.pipeline import GenerationDefaults, check_settings
from blip3o.prompts import Supervise
from blip3o.training.attention import fast_attention
from blip3o.training.base import Optimization, TrainingModule
from blip3o.training.dropout import check_dropout, dropped_rows
from blip3o.training.fingerprint import check_encoders
from blip3o.training.freezing import freeze
from blip3o.training.mixed import mixed_latents, mixed_losses
from blip3o.training.randomness import row_generators, row_uniform


class JointModule(TrainingModule):
    """Cross-entropy plus flow matching on captioned images and edits (BLIP3o-NEXT's joint loss).

    A batch holds `index`, `caption` and `image`, and may hold `token_image`, `num_references`, `references` and
    `token_references`; rows with and without references train in one batch (`blip3o.training.mixed`). What the frozen
    encoders would make of the pictures may take their place, as `image_ids` and `latents` (`EncodedDataModule`).

    All randomness of a row is a pure function of (seed, row index), so that batches may be split over processes and
    runs resumed without changing a number.

    Args:
        model: the composed model.
        optimization: optimizer and schedule.
        weights: what to start parts from, by attribute path in the model, such as
            `{"tokenizer": "tokenizer.safetensors", "ar": "Qwen/Qwen3-0.6B"}`; see `blip3o.checkpoints.load_weights`.
            A part whose entry is None starts from scratch, so that a variant can take away what its base gives.
        trainable: patterns of parameter names in the model (`fnmatch`) that train, the rest being frozen; all but
            the image tokenizer and the codecs when None.
        cross_entropy_weight: weight of the cross-entropy (mean over supervised tokens; 0 where the bridge needs no
            image tokens and none are learnt).
        flow_weight: weight of the diffusion head's loss (mean over rows).
        supervise: tokens that carry cross-entropy.
        render_every: only rows whose index is a multiple of it train the diffusion head, which saves time where the
            AR model needs the larger part of the compute.
        condition_dropout: share of rows whose condition is dropped, for guidance of the diffusion head.
        caption_dropout: share of rows whose caption is dropped, for guidance of the AR model.
        seed: of noise, timesteps and what is dropped.
        sampling: how tokens are drawn in validation and prediction.
        num_inference_steps: denoising steps in validation and prediction.
        guidance_scale: guidance of the diffusion head in validation and prediction.
        token_guidance_scale: guidance of the AR model in validation and prediction.
        reference_dropout: share of rows whose references are hidden from the diffusion head, as guidance by references
            needs; some lose their condition too (`blip3o.training.dropout`). 0 is the published training.
        image_guidance_scale: guidance by reference images in validation and prediction, see `Blip3oPipeline.__call__`.
        guidance_interval: noise levels (low, high) that are guided in validation and prediction; all when None.
        step_cache: the denoiser's skipping of blocks in validation and prediction, see `Blip3oPipeline.__call__`.
        packing: the AR model reads the rows of a batch end to end, without padding (`blip3o.ar.packed`). Losses and
            gradients are the same; where prompts differ in length it saves the time that padding takes.
        gradient_checkpointing: the AR model and the denoiser compute their activations again in the backward pass, in
            place of keeping them. Losses and gradients are the same; a second forward pass buys the memory.

    Where gradients are accumulated, each batch's mean weighs the same, packed or not. With `supervise` other than `all`
    every row has as many supervised tokens, so that this is the mean over all tokens of the accumulated batches.

    Raises:
        ValueError: if `weights` names a part that the model lacks or a source that does not fit it, if `trainable`
            holds a pattern without a match or one that matches what stays frozen, if a part can not do `packing` or
            `gradient_checkpointing`, or if a number is out of range.
    """

    def __init__(
        self,
        model: Blip3oNext,
        optimization: Optimization = Optimization(),
        weights: dict[str, str | None] | None = None,
        trainable: list[str] | None = None,
        cross_entropy_weight: float = 1.0,
        flow_weight: float = 1.0,
        supervise: Supervise = "all",
        render_every: int = 1,
        condition_dropout: float = 0.1,
        caption_dropout: float = 0.0,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        num_inference_steps: int = 25,
        guidance_scale: float = 2.0,
        token_guidance_scale: float = 1.0,
        reference_dropout: float = 0.0,
        image_guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
        step_cache: float | None = None,
        packing: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(optimization, seed)
        if render_every < 1:
            raise ValueError(f"render_every ({render_every}) must be at least 1.")
        for name, share in (("condition_dropout", condition_dropout), ("caption_dropout", caption_dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} ({share}) must lie in [0, 1]; it is the share of rows that is dropped.")
        check_dropout(condition_dropout, reference_dropout)
        self.model = model
        self.model.check_shown("reference_dropout", reference_dropout or None)
        self.model.check_shown("image_guidance_scale", image_guidance_scale)
        self.model.diffusion.check_rendering(guidance_interval=guidance_interval, step_cache=step_cache)
        load_all_weights(self.model, weights)
        _choose_trainable(self.model, trainable)
        self.packing = packing
        if packing:
            self.model.ar.check_packing()
        if gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        self.cross_entropy_weight = cross_entropy_weight
        self.flow_weight = flow_weight
        self.supervise: Supervise = supervise
        self.render_every = render_every
        self.condition_dropout = condition_dropout
        self.caption_dropout = caption_dropout
        self.reference_dropout = reference_dropout
        self.generation_defaults = GenerationDefaults(
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            token_guidance_scale=token_guidance_scale,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            image_guidance_scale=image_guidance_scale,
            guidance_interval=guidance_interval,
            step_cache=step_cache,
            decoding=sampling.decoding,
            jacobi_window=sampling.jacobi_window,
        )
        check_settings(self.generation_defaults)
        model.ar.check_sampling(sampling)

    def check_encoders(self, index: EncodedIndex) -> None:
        """Raises a ValueError unless this model's encoders made the data of an encoded folder."""
        check_encoders(index, self.model)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The weighted loss, averaged over the tokens and rows of all processes."""
        index = batch["index"]
        dropped_captions = row_uniform(self.seed, index, "caption") < self.caption_dropout
        captions = ["" if d else c for c, d in zip(batch["caption"], dropped_captions.tolist(), strict=True)]
        rows = torch.nonzero(index % self.render_every == 0)[:, 0]
        if len(rows) == 0:
            raise ValueError(
                f"render_every ({self.render_every}) leaves the diffusion head no row of a batch of {len(index)}; make "
                "it at most the batch size of one process."
            )
        chosen = index[rows]
        dropped, hidden = dropped_rows(self.seed, chosen, self.condition_dropout, self.reference_dropout)
        with fast_attention(self.device):
            losses = mixed_losses(
                self.model,
                batch,
                captions,
                supervise=self.supervise,
                rendered_rows=rows,
                dropped=dropped,
                hidden_references=hidden,
                packing=self.packing,
                generator=row_generators(self.seed, chosen, "noise", self.device),
            )
        # Gradients are averaged over processes, so each divides its sums by the mean count.
        cross_entropy = losses.cross_entropy / self._mean_over_processes(losses.num_tokens)
        flow = losses.flow.sum() / self._mean_over_processes(torch.tensor(len(losses.flow), device=self.device))
        loss = self.cross_entropy_weight * cross_entropy + self.flow_weight * flow
        self.log_dict(
            {"train/loss": loss, "train/cross_entropy": cross_entropy, "train/flow": flow},
            prog_bar=True,
            sync_dist=True,
        )
        return loss

    def evaluation_step(self, batch: dict[str, Any], stage: str) -> Tensor:
        """Losses on held-out rows, and images generated for their captions or instructions."""
        index = batch["index"]
        generator = row_generators(self.seed, index, "validation", self.device)
        rows = torch.arange(len(index), device=index.device)
        losses = mixed_losses(
            self.model,
            batch,
            batch["caption"],
            supervise=self.supervise,
            rendered_rows=rows,
            packing=self.packing,
            generator=generator,
        )
        values = {
            f"{stage}/cross_entropy": losses.cross_entropy / losses.num_tokens.clamp(min=1),
            f"{stage}/flow": losses.flow.mean(),
        }
        self.log_dict(values, batch_size=len(index), sync_dist=True)
        return self.predict_step(batch, 0)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] for the captions of a batch, or edits where its rows have references."""
        settings = self.generation_defaults
        latents = mixed_latents(
            self.model,
            batch,
            **settings.writing(),
            **settings.rendering(),
            image_guidance_scale=settings.image_guidance_scale,
            generator=row_generators(self.seed, batch["index"], "generate", self.device),
        )
        return self.model.diffusion.decode(latents)

    def _mean_over_processes(self, count: Tensor) -> Tensor:
        """The mean count, 1 where it is 0 and so are the sums that it divides."""
        mean = self.trainer.strategy.reduce(count.float(), reduce_op="mean")
        return mean + (mean == 0)


def _choose_trainable(model: Blip3oNext, patterns: list[str] | None) -> None:
    """Freezes what `patterns` do not match, and the image tokenizer and the codecs always: they make the targets."""
    if patterns is not None:
        freeze(model, patterns)
    targets = [model.tokenizer, *(module for module in model.diffusion.modules() if isinstance(module, Codec))]
    if patterns is not None and any(p.requires_grad for target in targets for p in target.parameters()):
        raise ValueError(
            f"trainable ({patterns}) matches parameters of the image tokenizer or a codec, which make the targets of "
            "joint training; train them on their own first and leave them out here."
        )
    for target in targets:
        target.requires_grad_(False)
    model.train()


def enable_gradient_checkpointing(model: Blip3oNext) -> None:
    """From now on the AR model and the denoisers compute activations again; a head without one keeps what it keeps."""
    model.ar.enable_gradient_checkpointing()
    for module in model.diffusion.modules():
        if isinstance(module, Denoiser):
            module.enable_gradient_checkpointing()
