"""One reader's rows of a source: its share of every pass, shuffled, and a place to come back to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from math import gcd

import numpy as np

from blip3o.data.sources.base import RawRow, Source

Place = tuple[int, int, int]
"""A pass, the number of a shard in its order, and a row in that shard."""


class SourceReader:
    """Endless passes over one reader's share of a source.

    N readers share S shards so that each row goes to one of them: with g = gcd(S, N), every g-th shard belongs to a
    group of N / g readers, who take its rows in turn. Where S is a multiple of N no shard is read twice.

    The order is pure in `seed`: the shards of a pass are shuffled, and the rows within blocks of `buffer`. A block is
    known by where it starts, so a reader comes back to its place by reading one block again.

    Args:
        source: what to read.
        seed: numbers that the order depends on, at least 0.
        reader: number of this reader.
        num_readers: readers that share the source.
        buffer: rows shuffled together; 1 keeps the order of files and rows.
        place: where the current block starts, with `taken`: `state()` of an earlier reader.
        taken: rows of that block which were given already.

    Raises:
        ValueError: if the source has no row for this reader.
    """

    def __init__(
        self,
        source: Source,
        *,
        seed: Sequence[int] = (0,),
        reader: int = 0,
        num_readers: int = 1,
        buffer: int = 1000,
        place: Place = (0, 0, 0),
        taken: int = 0,
    ) -> None:
        self.source = source
        self.seed = tuple(seed)
        self.reader = reader
        self.num_readers = num_readers
        self.buffer = buffer
        shards = source.shards()
        groups = gcd(len(shards), num_readers)
        self._shards = shards[reader % groups :: groups]
        self._every, self._offset = num_readers // groups, reader // groups
        self._after: Place = place
        self._pass = self._rest_of_pass(place)
        self._fill()
        self._taken = min(taken, len(self._block))

    @property
    def passes(self) -> int:
        """Passes that lie behind it."""
        return self._start[0]

    def state(self) -> tuple[Place, int]:
        """`place` and `taken` of a reader that goes on from here."""
        return self._start, self._taken

    def next(self) -> RawRow:
        """The next row."""
        if self._taken == len(self._block):
            self._fill()
        self._taken += 1
        return self._block[self._taken - 1]

    def _fill(self) -> None:
        """Reads and shuffles the next block; none reaches from one pass into the next."""
        self._start = self._after
        while not (found := list(islice(self._pass, self.buffer))):
            if self._start[1:] == (0, 0):
                raise ValueError(
                    f"{self.source.label} has no row for reader {self.reader} of {self.num_readers}; give it more "
                    "rows, or train with fewer processes and workers."
                )
            self._start = (self._start[0] + 1, 0, 0)
            self._pass = self._rest_of_pass(self._start)
        self._after = found[-1][0]
        order = self._permutation(len(found), *self._start)
        self._block = [found[i][1] for i in order]
        self._taken = 0

    def _rest_of_pass(self, place: Place) -> Iterator[tuple[Place, RawRow]]:
        """This reader's rows from a place to the end of the pass, each with the place behind it."""
        number, first, start = place
        order = self._permutation(len(self._shards), number)
        for position in range(first, len(order)):
            begin = start if position == first else 0
            for index, row in enumerate(self.source.rows(self._shards[order[position]], begin), begin):
                if (index + order[position]) % self._every == self._offset:  # shards begin with different readers
                    yield (number, position, index + 1), row

    def _permutation(self, length: int, *place: int) -> list[int]:
        if self.buffer == 1:
            return list(range(length))
        generator = np.random.default_rng([*self.seed, self.reader, *place])
        return [int(i) for i in generator.permutation(length)]
