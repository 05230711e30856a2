"""Reading several tokens of a row at once, and taking back what was read in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from blip3o.ar.start import Start


class WindowReader:
    """A decoder that reads windows of tokens; rows keep different numbers of them.

    What a row remembers always stands at the right end of the cache, as in left-padded prompts: the rows are moved
    after each window. So masks over the cache are all that a model needs, whatever its attention.

    Args:
        run: the decoder without its head, called with inputs, mask and cache.
        start: the prompts that were read, into a cache whose layers keep all keys and values; its last tokens count as
            the first window.
        keep_layers: whether the states of all layers are given.
    """

    def __init__(self, run: Callable[..., Any], start: Start, keep_layers: bool) -> None:
        self._run = run
        self._cache = start.cache
        self._position = start.position
        self._copies = start.copies
        self._keep_layers = keep_layers
        self._read = 1
        self._length = start.attention_mask.sum(1) - 1  # entries of every row, without those of the last window

    def read(self, ids: Tensor, after: Tensor) -> Any:
        """The decoder's output of a window of ids, which follows the negative prompts too where there are any.

        Args:
            ids: (B, W) int64 over the extended vocabulary.
            after: (B, W) int64, how many positions after the prompt's last token each stands.
        """
        self._read = ids.shape[1]
        width = self._cache.get_seq_length()
        columns = torch.arange(width + self._read, device=ids.device)
        mask = columns >= (width - self._length)[:, None]
        position = self._position + after.repeat(self._copies, 1)
        inputs = {"input_ids": ids.repeat(self._copies, 1), "position_ids": position}
        return self._run(inputs, mask, self._cache, keep_layers=self._keep_layers)

    def keep(self, rows: Tensor, count: Tensor) -> None:
        """Goes on with some rows alone, and remembers the first tokens of the last window alone.

        Args:
            rows: (R,) int64, rows that go on, in rising order.
            count: (R,) int64, how many tokens of the window each keeps.
        """
        all_rows = len(self._length) // self._copies
        rows = torch.cat([rows + copy * all_rows for copy in range(self._copies)])
        count = count.repeat(self._copies)
        self._length = self._length[rows] + count
        self._position = self._position[..., rows, :]
        widest = int(self._length.max())
        first = self._cache.get_seq_length() - self._read + count - widest
        alike = int(first[0]) if bool((first == first[0]).all()) else None
        # Clamped where a row has less to remember than another: the mask hides it.
        columns = (first[:, None] + torch.arange(widest, device=rows.device)).clamp(min=0)[:, None, :, None]

        def kept(stored: Tensor) -> Tensor:
            some = stored if len(rows) == len(stored) else stored[rows]
            return some.take_along_dim(columns, 2) if alike is None else some[:, :, alike : alike + widest]

        for layer in self._cache.layers:
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = kept(layer.keys), kept(layer.values)
