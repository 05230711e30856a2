"""Rows that could not be used: counted, listed, and too many of them are an error."""

from __future__ import annotations

from dataclasses import dataclass, field

from blip3o.data.pictures import Limits

_SHOWN = 20


@dataclass(frozen=True)
class Failure:
    """A row that was passed over, of which source, and why."""

    source: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}"


@dataclass
class Tally:
    """Rows of one source that one reader has read.

    Attributes:
        source: the source's label.
        limits: the share of failures that is borne.
        rows: rows read, whether usable or not.
        failed: how many of them were not.
        failures: the latest of them, since the tally began.
    """

    source: str
    limits: Limits
    rows: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)

    def good(self) -> None:
        """Counts a usable row."""
        self.rows += 1

    def bad(self, key: str, reason: str, *, judge: bool = True) -> Failure:
        """Counts and lists an unusable row.

        Args:
            key: the row's name.
            reason: why.
            judge: whether to raise where there are too many.

        Raises:
            ValueError: with the list, if the source now has more failures than the limits bear.
        """
        self.rows += 1
        self.failed += 1
        failure = Failure(self.source, key, reason)
        self.failures = [*self.failures, failure][-_SHOWN:]
        if judge and self.rows >= self.limits.after:
            self.judge()
        return failure

    def judge(self) -> None:
        """Raises a ValueError with the list, if more than `max_failures` of the rows failed."""
        if self.failed > self.limits.max_failures * self.rows:
            raise ValueError(
                f"{self.source}: {self.failed} of {self.rows} rows can not be used, more than max_failures "
                f"({self.limits.max_failures:g}); mend or remove them, or raise max_failures.\n{self.listed()}"
            )

    def listed(self) -> str:
        """The latest failures, a line each."""
        more = self.failed - len(self.failures)
        lines = [f"  {failure}" for failure in self.failures]
        return "\n".join([*([f"  ({more} earlier ones)"] if more else []), *lines])
