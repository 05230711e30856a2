"""Sources of captioned pictures and edits: one class a format, chosen in YAML by `class_path`."""

from blip3o.data.sources.base import RawRow, Record, Source, decode
from blip3o.data.sources.jsonl import InstructionSource, ShareGPTSource
from blip3o.data.sources.streamed import DatasetSource
from blip3o.data.sources.tars import TarSource

__all__ = [
    "DatasetSource",
    "InstructionSource",
    "RawRow",
    "Record",
    "ShareGPTSource",
    "Source",
    "TarSource",
    "decode",
]
