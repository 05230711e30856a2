"""`Blip3oPipeline`: prompts in, images out; save and load."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from blip3o.ar.base import Decoding
from blip3o.attention import AttentionSetting, set_attention
from blip3o.call_inputs import checked_generators, checked_latents
from blip3o.checkpoints import CONFIG_NAME, MODEL_FILES, load_model, save_model
from blip3o.diffusion.base import Codec, Generators
from blip3o.diffusion.guidance import Interval
from blip3o.loading import resolve_folder
from blip3o.model import Blip3oNext
from blip3o.pixels import to_uint8
from blip3o.reference_images import Aspect, Images, as_references, check_images
from blip3o.settings import PUBLISHED_SETTINGS, GenerationDefaults, check_settings, check_whole
from blip3o.structures import Conditioning

OutputType = Literal["pil", "np", "pt", "latent"]
ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class PipelineOutput:
    """What a call returns.

    Attributes:
        images: list of PIL images; or float arrays or tensors in [0, 1], (B, H, W, 3) or (B, 3, H, W); or normalised
            latents (B, c, h, w).
        token_ids: (B, N) int64 image tokens; N is 0 where the bridge needs none.
        hidden_states: (B, 1 + N, H) the AR model's at the scale token and the image tokens; where there are none,
            (B, L, H) at the prompt (zero at padding) or at the learned queries.
        conditioning: what the diffusion head was conditioned on: embeds (B, L, C) and their mask.
        latents: (B, c, h, w) normalised latents.
    """

    images: Any
    token_ids: Tensor
    hidden_states: Tensor
    conditioning: Conditioning
    latents: Tensor


class Blip3oPipeline:
    """Generates images from prompts.

    Args:
        model: the composed model; it is put into evaluation mode.
        defaults: arguments of calls that leave them out.
    """

    def __init__(self, model: Blip3oNext, defaults: GenerationDefaults = PUBLISHED_SETTINGS) -> None:
        self.model = model.eval()
        self.defaults = defaults

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        attention: AttentionSetting | None = None,
        codec_dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> Self:
        """Loads a bundled model by name, a folder, or a hub id (`owner/name`).

        Args:
            name_or_path: which model.
            device: where it goes.
            dtype: of its weights; float32 when None.
            attention: kernel of all parts with attention, see `blip3o.attention`; each part's stored one when None.
            codec_dtype: of the diffusion head's codec, which decodes latents to pixels; `dtype` when None. With `dtype`
                bfloat16, float32 here keeps rounding out of the pixels.
            trust_remote_code: also import classes from outside blip3o, transformers, diffusers, timm and torch.

        Raises:
            ValueError: if there is none, it is damaged, or the device or the attention can not be used; where the name
                is unknown, the message lists the bundled ones.
        """
        check_device(device)
        folder = find_model(name_or_path)
        model, generation = load_model(folder, trust_remote_code=trust_remote_code)
        defaults = GenerationDefaults.stored(generation, folder / CONFIG_NAME)
        if attention is not None:
            set_attention(model, attention, torch.device(device), dtype)
        exact = [(codec, copy.deepcopy(codec.state_dict())) for codec in _codecs(model) if codec_dtype is not None]
        model.to(device, dtype)
        for codec, state in exact:  # not by way of `dtype`, which would have rounded it
            codec.to(dtype=codec_dtype).load_state_dict(state)
        return cls(model, defaults)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves the model as `torch.nn.Module.to` does; returns the pipeline."""
        self.model.to(*args, **kwargs)
        return self

    def enable_tiling(self) -> Self:
        """Has codecs take large pictures in overlapping tiles (`Codec.enable_tiling`); returns the pipeline.

        Raises:
            ValueError: if the model has no codec that can.
        """
        codecs = _codecs(self.model)
        if not codecs:
            raise ValueError(f"{type(self.model.diffusion).__name__} has no codec that could work in tiles.")
        for codec in codecs:
            codec.enable_tiling()
        return self

    def compile_decoding(self) -> Self:
        """Has the AR model decode a few rows on a CPU by a compiled kernel (`CausalLM.compile_decoding`).

        Returns the pipeline.

        Raises:
            ValueError: if its AR model has none, or it can not be compiled.
        """
        self.model.ar.compile_decoding()
        return self

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> Path:
        """Writes `config.yaml`, one safetensors file a part and the text tokenizer."""
        return save_model(self.model, folder, generation=self.defaults.given(), dtype=dtype)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        image: Images | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        token_guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_interval: Interval | None = None,
        step_cache: float | None = None,
        decoding: Decoding | None = None,
        jacobi_window: int | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        aspect: Aspect = "keep",
    ) -> PipelineOutput:
        """Generates `num_images_per_prompt` images for every prompt, in the order of the prompts.

        Args:
            prompt: a prompt or a batch of them; with `image`, editing instructions.
            image: reference images: PIL images, uint8 or [0, 1] arrays (H, W, 3), or such tensors (3, H, W). For one
                prompt, a picture or a list of up to four; for a batch of prompts, a list with a picture or a list of
                pictures for each, as many for one as for another. They are turned as their EXIF tags say, and what is
                transparent is white.
            num_inference_steps: denoising steps, at least 1.
            guidance_scale: classifier-free guidance of the diffusion head, at least 0; 1 turns it off.
            image_guidance_scale: with `image`, in a model whose diffusion head sees it (noise space, or
                `reference_latents`): guidance by the images, `guidance_scale` being that by the text, as in
                InstructPix2Pix; at least 0, and 1 leaves the images in all branches. It asks for a model trained with
                `reference_dropout`. The published way when None: one scale, for the text and the images' latents after
                the condition together.
            token_guidance_scale: classifier-free guidance of the AR model, at least 0; 1 turns it off.
            temperature: of the image tokens; 0 takes the most likely ones.
            top_k: most likely image tokens kept; 0 keeps all.
            top_p: probability mass of the image tokens kept, in (0, 1].
            guidance_interval: noise levels (low, high), 0 <= low < high <= 1, outside which the diffusion head is not
                guided, which also saves time (arXiv 2404.07724); (0, 1) turns it off.
            step_cache: where the work of the denoiser's first block differs by less than this share from that at the
                last full step, the other blocks' work is that step's (`blip3o.diffusion.step_cache`); 0 turns it off.
            decoding: `sequential`, an image token a pass; or `jacobi`, several, of the same distribution
                (`blip3o.ar.jacobi`).
            jacobi_window: positions that a pass of `jacobi` reads of an image, at least 2.
            num_images_per_prompt: at least 1.
            generator: one for the batch or one for each image, on the model's device or the CPU.
            latents: initial noise (images, c, h, w).
            output_type: `pil`, `np`, `pt` or `latent`.
            aspect: of an edit: `keep` the proportions of the first picture at about the head's number of pixels, where
                its denoiser and codec can; or `square`, the picture's central square. A denoiser of squares alone, such
                as `DiT`, renders these in either case.

        Raises:
            ValueError: on a value out of range; nothing has been generated then.
        """
        prompts = check_prompts(prompt)
        for one in prompts if image is not None else ():
            self._check_edits(one)
        for one in prompts:
            if unknown := self.model.sequences.unknown_words(one):
                raise ValueError(f"prompt ({one!r}) holds words the model does not know: {unknown}; use others.")
        check_whole("num_images_per_prompt", num_images_per_prompt, 1)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type ({output_type!r}) must be 'pil', 'np', 'pt' or 'latent'.")
        given: dict[str, Any] = {
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "token_guidance_scale": token_guidance_scale,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "guidance_interval": guidance_interval,
            "step_cache": step_cache,
            "decoding": decoding,
            "jacobi_window": jacobi_window,
        }
        settings = self.defaults.updated(**given)
        check_settings(settings)
        captions = [caption for caption in prompts for _ in range(num_images_per_prompt)]
        references: dict[str, Any] = {}
        if image is not None:
            self.model.check_shown("image_guidance_scale", settings.image_guidance_scale)
            rows = check_images(image, len(prompts), alone=isinstance(prompt, str))
            references = self._references(rows, num_images_per_prompt, aspect)
            references["image_guidance_scale"] = settings.image_guidance_scale
        elif image_guidance_scale is not None:
            raise ValueError(f"image_guidance_scale ({image_guidance_scale}) was given without image; leave it out.")
        generator = checked_generators(generator, len(captions), self.model.device)
        if latents is not None:
            latents = checked_latents(latents, len(captions)).to(self.model.device)
        rendered = self.model.generate(
            captions,
            **settings.writing(),
            **settings.rendering(),
            generator=generator,
            latents=latents,
            **references,
        )
        images: Any = rendered.latents
        if output_type != "latent":
            with torch.no_grad():
                images = _as_output(self.model.diffusion.decode(rendered.latents), output_type)
        tokens = rendered.tokens
        return PipelineOutput(images, tokens.ids, tokens.hidden, rendered.conditioning, rendered.latents)

    def _references(self, rows: list[list[Image.Image]], repeats: int, aspect: Aspect) -> dict[str, Any]:
        """The reference images as the model takes them, each row `repeats` times, and the size to render."""
        references = as_references(rows, self.model.diffusion, self.model.tokenizer.image_size, aspect)
        return {
            name: value.repeat_interleave(repeats, dim=0).to(self.model.device) if isinstance(value, Tensor) else value
            for name, value in references.items()
        }

    def _check_edits(self, instruction: str) -> None:
        """Raises where nothing tells that the model edits: it has no part for it, and can not read the wording."""
        model = self.model
        if model.ar.reads_images or model.reference_features is not None or model.shows_references:
            return
        if unknown := model.sequences.unknown_edit_words(instruction):
            raise ValueError(
                f"image was given, but this model was not made to edit: its text tokenizer lacks {unknown}, which "
                "template.edit puts around the instruction; leave image out, or use a model that edits."
            )


def find_model(name_or_path: str | Path) -> Path:
    """The folder of a bundled name, a folder or a hub id.

    Raises:
        ValueError: if there is none.
    """
    bundled = sorted(path.parent.name for path in ASSETS.glob("*/config.yaml"))
    if str(name_or_path) in bundled:
        return ASSETS / str(name_or_path)
    others = f"a bundled name ({', '.join(bundled) or 'none is bundled'}), "
    return resolve_folder(name_or_path, "name_or_path", others, wanted=MODEL_FILES)


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        ValueError: if there is none, or one is empty or no string.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt) if isinstance(prompt, Sequence) else [prompt]
    if not prompts:
        raise ValueError("prompt ([]) must hold at least one prompt.")
    for one in prompts:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"prompt ({one!r}) must be a string with at least one word.")
    return prompts


def check_device(device: str | torch.device) -> None:
    """Raises a ValueError unless tensors can be made on `device`."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device ({device}) can not be used here; pass 'cpu', or 'cuda' where there is a GPU."
        ) from error


def _codecs(model: Blip3oNext) -> list[Codec]:
    """The codecs of a model's diffusion head."""
    return [module for module in model.diffusion.modules() if isinstance(module, Codec)]


def _as_output(images: Tensor, output_type: OutputType) -> Any:
    """Images (B, 3, H, W) in [-1, 1] as asked for."""
    if output_type == "pil":
        return [Image.fromarray(array) for array in to_uint8(images)]
    pixels = (images.float() + 1) / 2
    return pixels if output_type == "pt" else rearrange(pixels, "b c h w -> b h w c").cpu().numpy()
