"""Whether the parts of a model fit together: what does not is refused, naming both parts and what to change."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from blip3o.ar.base import ARBackbone
from blip3o.bridge.base import Bridge
from blip3o.diffusion.base import DiffusionHead
from blip3o.tokenizers.base import ImageTokenizer

BridgeFactory = Callable[[int, int], Bridge]
"""Called with the width of what the bridge reads and the width that it has to give; or a bridge of these widths."""


def build_bridge(factory: BridgeFactory, tokenizer: ImageTokenizer, ar: ARBackbone, diffusion: DiffusionHead) -> Bridge:
    """The bridge between the AR model (or the image tokenizer, where it reads token features) and the diffusion head.

    Raises:
        ValueError: if it does not fit one of them.
    """
    bridge = factory if isinstance(factory, Bridge) else _at_its_width(factory, tokenizer, ar, diffusion.cond_dim)
    given, giver = ar.hidden_size, "AR model"
    if bridge.reads == "token_embeds":
        given, giver = tokenizer.feature_dim, "image tokenizer"
    widths = (bridge.in_features, bridge.out_features)
    if widths != (given, diffusion.cond_dim):
        raise ValueError(
            f"the bridge maps {widths[0]} to {widths[1]} features, but the {giver} gives {given} and the "
            f"diffusion head takes {diffusion.cond_dim}; pass a callable that uses the two widths it is given, such as "
            "the bridge's class."
        )
    if bridge.ar_layers:
        _check_layers(bridge, ar)
    _check_context(bridge, tokenizer, ar)
    length = condition_length(bridge, tokenizer)
    if length == 0:
        raise ValueError(
            f"bridge ({type(bridge).__name__}) gives no condition position, so that diffusion "
            f"({type(diffusion).__name__}) would learn without a condition; use it as reference_latents, and another, "
            "such as MLPBridge, as the bridge."
        )
    try:
        diffusion.check_condition(length, _condition_grid(bridge, tokenizer))
    except ValueError as error:
        raise ValueError(
            f"bridge ({type(bridge).__name__}, reads {bridge.reads!r}) and diffusion ({type(diffusion).__name__}) do "
            f"not fit: {error}"
        ) from error
    return bridge


def condition_length(bridge: Bridge, tokenizer: ImageTokenizer) -> int | None:
    """Condition positions that the bridge gives for one image, None where they vary with the prompt."""
    tokens = tokenizer.num_tokens()
    states = {"image_tokens": 1 + tokens, "token_embeds": tokens, "queries": bridge.num_queries, "prompt": None}
    return bridge.num_positions(states[bridge.reads])


def _condition_grid(bridge: Bridge, tokenizer: ImageTokenizer) -> tuple[int, int] | None:
    """Rows and columns of the image tokens, where the bridge gives one condition position for each of them."""
    tokens = tokenizer.num_tokens()
    keeps = all(bridge.num_positions(count) == count for count in (tokens, tokens + 1))
    return tokenizer.token_grid() if bridge.needs_tokens and keeps else None


def _at_its_width(factory: BridgeFactory, tokenizer: ImageTokenizer, ar: ARBackbone, cond_dim: int) -> Bridge:
    """The bridge at the width of what it reads, which only the built bridge tells.

    Raises:
        ValueError: if it can not be built there; the message says whose width it was.
    """
    hidden, features = ar.hidden_size, tokenizer.feature_dim
    first: ValueError | None = None
    try:
        bridge = factory(hidden, cond_dim)
        if bridge.reads != "token_embeds" or bridge.in_features == features:
            return bridge
    except ValueError as error:
        first = error
    try:
        bridge = factory(features, cond_dim)
    except ValueError as error:
        if first is not None and str(error) == str(first):
            raise  # no width is at fault
        widths = f"the image tokenizer's feature_dim ({features}), which it has where it reads 'token_embeds'"
        if first is not None:
            widths = f"the AR model's hidden_size ({hidden}): {first}; nor with {widths}"
        raise ValueError(f"the bridge can not be built with {widths}: {error}") from error
    if first is not None and bridge.reads != "token_embeds":
        raise ValueError(f"the bridge can not be built with the AR model's hidden_size ({hidden}): {first}") from first
    return bridge


def check_token_head(
    diffusion: DiffusionHead, tokenizer: ImageTokenizer, bridge: Bridge, *, references_in_condition: bool
) -> None:
    """Whether a head that shows what the tokenizer decodes can be used.

    Raises:
        ValueError: if the tokenizer decodes to no pixels, no tokens are written for the bridge, or reference images
            extend the condition, which the head does not read.
    """
    head = type(diffusion).__name__
    if tokenizer.decodes_to != "pixels":
        raise ValueError(
            f"diffusion ({head}) shows what the tokenizer decodes, but tokenizer ({type(tokenizer).__name__}) decodes "
            f"to {tokenizer.decodes_to!r}; use a tokenizer that decodes to 'pixels', such as ConvTokenizer, or a head "
            "that reads the condition, such as FlowHead."
        )
    if not bridge.needs_tokens:
        raise ValueError(
            f"diffusion ({head}) shows the decoded image tokens, but with bridge ({type(bridge).__name__}, reads "
            f"{bridge.reads!r}) none are written; set the bridge's reads to 'image_tokens'."
        )
    if references_in_condition:
        raise ValueError(
            f"reference_latents extends the condition, which diffusion ({head}) does not read; leave it out."
        )


def check_takes_latents(diffusion: DiffusionHead) -> None:
    """Raises a ValueError if the head's loss takes no latents in place of images."""
    if not diffusion.takes_latents or "latents" not in inspect.signature(diffusion.loss).parameters:
        raise ValueError(
            f"diffusion ({type(diffusion).__name__}) needs pixels: its loss takes no latents in place of images. Train "
            "it on pictures, as with ShapesDataModule or ImageDataModule; or let its loss take `latents` and set "
            "takes_latents = True."
        )


def build_reference_features(factory: BridgeFactory, tokenizer: ImageTokenizer, ar: ARBackbone) -> Bridge:
    """The bridge between the tokenizer's continuous features and the AR model's input embeddings.

    Raises:
        ValueError: if the tokenizer has none, or the bridge does not give one position for each token.
    """
    if ar.reads_images:
        raise ValueError(
            f"reference_features can not be used with {type(ar).__name__}, which reads images by its own vision tower; "
            "leave it out."
        )
    if tokenizer.continuous_dim is None:
        raise ValueError(
            f"reference_features needs a tokenizer with continuous features, and {type(tokenizer).__name__} has none; "
            "leave it out, or use TATok, TimmTokenizer or DiffusersVQ."
        )
    bridge = _build_plain("reference_features", factory, tokenizer.continuous_dim, ar.hidden_size)
    count = tokenizer.num_tokens()
    if bridge.num_positions(count) != count:
        raise ValueError(
            f"reference_features ({type(bridge).__name__}) makes {bridge.num_positions(count)} positions of the "
            f"{count} tokens whose embeddings it replaces; use one that keeps their number, such as MLPBridge."
        )
    return bridge


def build_reference_latents(factory: BridgeFactory, diffusion: DiffusionHead) -> Bridge:
    """The bridge between the latents of reference images and the condition.

    Raises:
        ValueError: if it asks for queries or layers, which latents have not.
    """
    return _build_plain("reference_latents", factory, diffusion.latent_channels, diffusion.cond_dim)


def _build_plain(name: str, factory: BridgeFactory, in_features: int, out_features: int) -> Bridge:
    """A bridge that is given what it transforms."""
    bridge = factory if isinstance(factory, Bridge) else factory(in_features, out_features)
    widths = (bridge.in_features, bridge.out_features)
    if widths != (in_features, out_features):
        raise ValueError(
            f"{name} ({type(bridge).__name__}) maps {widths[0]} to {widths[1]} features, not {in_features} to "
            f"{out_features}; pass a callable that uses the two widths it is given, such as the bridge's class."
        )
    if bridge.queries is not None or bridge.ar_layers:
        raise ValueError(
            f"{name} ({type(bridge).__name__}) is given reference images and not what the AR model knows; leave out "
            "num_queries and ar_layers."
        )
    return bridge


def _check_layers(bridge: Bridge, ar: ARBackbone) -> None:
    """Raises where the AR model lacks a layer that the bridge asks for."""
    count = ar.num_layers
    if strange := [layer for layer in bridge.ar_layers if not -count - 1 <= layer <= count]:
        raise ValueError(
            f"bridge ({type(bridge).__name__}) asks for ar_layers {strange}, but the AR model has {count} layers; "
            f"choose from 0..{count}, or from -1 (the last) down to {-count - 1}."
        )


def _check_context(bridge: Bridge, tokenizer: ImageTokenizer, ar: ARBackbone) -> None:
    """Raises where the AR model's context can not hold what is to follow the shortest prompt."""
    if bridge.needs_tokens and tokenizer.num_tokens() + 2 >= ar.context_length:
        raise ValueError(
            f"the tokenizer writes {tokenizer.num_tokens()} tokens an image, which with two markers and a prompt "
            f"do not fit the AR model's context ({ar.context_length}); enlarge max_position_embeddings."
        )
    if bridge.num_queries is not None and bridge.num_queries + 2 >= ar.context_length:
        raise ValueError(
            f"the bridge's num_queries ({bridge.num_queries}), which with two markers and a prompt do not fit the AR "
            f"model's context ({ar.context_length}), must be fewer; or enlarge max_position_embeddings."
        )
