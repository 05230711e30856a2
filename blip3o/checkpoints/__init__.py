"""Reading and writing models: our folders, and the published layout."""

from blip3o.checkpoints.export import export_published
from blip3o.checkpoints.folder import (
    CONFIG_NAME,
    MODEL_FILES,
    check_model_folder,
    describe_model,
    instantiate,
    load_model,
    save_model,
)
from blip3o.checkpoints.pretrained import load_all_weights, load_weights
from blip3o.checkpoints.published import load_published
from blip3o.checkpoints.ta_tok import load_ta_tok
from blip3o.checkpoints.tensors import load_part, save_part

__all__ = [
    "CONFIG_NAME",
    "MODEL_FILES",
    "check_model_folder",
    "describe_model",
    "export_published",
    "instantiate",
    "load_all_weights",
    "load_model",
    "load_part",
    "load_published",
    "load_ta_tok",
    "load_weights",
    "save_model",
    "save_part",
]
