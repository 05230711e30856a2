"""Filling a part of a model from a file or folder: ours, or those of the library that the part wraps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from blip3o.ar.causal_lm import CausalLM
from blip3o.ar.tables import extend_tables, head_of
from blip3o.checkpoints.folder import CONFIG_NAME
from blip3o.checkpoints.ta_tok import read_ta_tok
from blip3o.checkpoints.tensors import load_part, misfits, read_file
from blip3o.checkpoints.vocabularies import for_vocabulary
from blip3o.diffusion.library import FromDiffusers
from blip3o.loading import check_loading_info, resolve_folder
from blip3o.model import Blip3oNext
from blip3o.tokenizers.ta_tok import TATok

_FILES = ("*.json", "*.safetensors")
"""What is fetched of a library's folder at a hub."""


def load_all_weights(model: Blip3oNext, weights: Mapping[str, str | None] | None) -> None:
    """Fills parts by attribute path, each as `load_weights` does; those whose source is None stay as they are.

    Raises:
        ValueError: as `load_weights`.
    """
    for name, source in (weights or {}).items():
        if source is not None:
            load_weights(model, name, source)


def load_weights(model: Blip3oNext, name: str, source: str) -> None:
    """Fills the part at an attribute path, such as `ar` or `diffusion.denoiser`.

    Args:
        model: whose part.
        name: attribute path of the part.
        source: a safetensors file of the part; a model folder of ours, of which the part's tensors are taken (an AR
            model may have more words than the folder's, whose rows are found by their names); TA-Tok's released
            `.pth`; or the folder or hub id, `owner/name` or `owner/name/subfolder`, of a model of transformers (for
            `CausalLM`) or diffusers (for its denoisers and codecs). A causal LM's image rows start anew, as when the
            vocabulary is extended.

    Raises:
        ValueError: if the model has no such part, the source is missing or damaged, or does not fit the part.
    """
    try:
        part = model.get_submodule(name)
    except AttributeError as error:
        parts = [child for child, _ in model.named_children()]
        raise ValueError(f"weights names {name!r}, which the model lacks; its parts are {parts}.") from error
    path = Path(source)
    if path.suffix == ".safetensors":
        load_part(part, path)
    elif path.suffix == ".pth" and isinstance(part, TATok):
        _fill(part, read_ta_tok(path)[1], source)
    elif (path / CONFIG_NAME).is_file():
        stored = _stored_part(path, name)
        _fill(part, for_vocabulary(part, stored, path) if isinstance(part, CausalLM) else stored, source)
    elif isinstance(part, CausalLM):
        _fill_causal_lm(part, model.codebook(), source)
    elif isinstance(part, FromDiffusers):
        _fill(part, type(part).from_pretrained(str(_folder(source))).state_dict(), source)
    else:
        raise ValueError(
            f"weights of {name} ({source}) can not be read for a {type(part).__name__}; name a .safetensors file or a "
            "model folder that save_pretrained wrote."
        )


def _folder(source: str) -> Path:
    """The folder of a path, of `owner/name`, or of `owner/name/subfolder`."""
    owner, _, rest = source.partition("/")
    repository, _, subfolder = rest.partition("/")
    if Path(source).is_dir() or not subfolder:
        return resolve_folder(source, "weights", wanted=_FILES, unwanted=["*/*"])
    wanted = [f"{subfolder}/{pattern}" for pattern in _FILES]
    folder = resolve_folder(f"{owner}/{repository}", "weights", wanted=wanted) / subfolder
    if not folder.is_dir():
        raise ValueError(f"weights ({source}) is no folder; write it first, or name a folder or a hub id that exists.")
    return folder


def _stored_part(folder: Path, name: str) -> dict[str, Tensor]:
    """Tensors of the part at an attribute path, from a model folder."""
    part, _, inner = name.partition(".")
    state = read_file(folder / f"{part}.safetensors")
    start = f"{inner}." if inner else ""
    return {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}


def _fill(part: nn.Module, state: dict[str, Tensor], source: str) -> None:
    if told := misfits(part, state):
        raise ValueError(f"{source} does not fit {type(part).__name__}: {told}.")
    part.load_state_dict(state)


@torch.no_grad()
def _fill_causal_lm(part: CausalLM, codebook: Tensor | None, source: str) -> None:
    """The text rows of the tables and everything else from a language model; the image rows anew."""
    assert part.vocabulary is not None, "a model extends the vocabulary of its backbone"
    lm, info = AutoModelForCausalLM.from_pretrained(_folder(source), output_loading_info=True)
    check_loading_info(info, source)
    given, own, text_size = lm.state_dict(), part.lm.state_dict(), part.vocabulary.text_size
    tables = {id(part.lm.get_input_embeddings().weight), id(head_of(part.lm).weight), id(head_of(part.lm).bias)}
    grown = {name for name, p in part.lm.named_parameters(remove_duplicate=False) if id(p) in tables}
    short = [name for name in sorted(grown & given.keys()) if len(given[name]) < text_size]
    if short:
        raise ValueError(f"{source} has fewer rows than text_size ({text_size}) in {', '.join(short)}.")
    given = {name: tensor[:text_size] if name in grown else tensor for name, tensor in given.items()}
    wanted = {name: tensor[:text_size] if name in grown else tensor for name, tensor in own.items()}
    if told := misfits(wanted, given):
        raise ValueError(f"{source} does not fit the AR model's config: {told}.")
    for name, tensor in given.items():
        wanted[name].copy_(tensor)  # which is a view of our own rows
    extend_tables(part.lm, part.vocabulary, len(head_of(part.lm).weight), codebook)
