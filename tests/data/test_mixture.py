"""Mixtures: proportions, order, shares of readers, places to come back to, failures counted and limited."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any

import pytest
from torch.utils.data import DataLoader

from blip3o.data.mixture import BatchStream, Mixture, Weighted
from blip3o.data.pictures import Limits
from blip3o.data.reader import SourceReader
from blip3o.data.sources import Record
from tests.data.pictures import Numbers


def captions(mixture: Mixture, count: int) -> list[str]:
    return [mixture.next().caption for _ in range(count)]


@pytest.mark.parametrize("lengths", [[12], [5, 7], [1, 2, 3, 4, 2], [3] * 8])
@pytest.mark.parametrize("num_readers", [1, 2, 4, 6])
def test_readers_share_every_row_of_a_pass_once(lengths: list[int], num_readers: int) -> None:
    """Two passes: each reader comes back to its own rows, and all together have each row twice."""
    found: Counter[str] = Counter()
    for number in range(num_readers):
        reader = SourceReader(Numbers(lengths), seed=(3,), reader=number, num_readers=num_readers, buffer=4)
        passes: dict[int, list[str]] = {0: [], 1: []}
        while True:
            row = reader.next()
            if reader.passes == 2:
                break
            passes[reader.passes].append(row.caption)
        assert sorted(passes[0]) == sorted(passes[1])
        assert len(set(passes[0])) == len(passes[0])
        found.update(passes[0])
    assert found == Counter({str(i): 1 for i in range(sum(lengths))})


def test_a_multiple_of_the_readers_reads_no_shard_twice() -> None:
    shards = [SourceReader(Numbers([2] * 8), reader=i, num_readers=4)._shards for i in range(4)]
    assert sorted(shard for own in shards for shard in own) == [str(i) for i in range(8)]
    assert [len(own) for own in shards] == [2] * 4


def test_rows_are_shuffled_by_seed_and_pass_and_not_where_the_buffer_is_one() -> None:
    def order(seed: int, buffer: int) -> list[str]:
        reader = SourceReader(Numbers([10, 10]), seed=(seed,), buffer=buffer)
        return [reader.next().caption for _ in range(40)]

    plain = [str(i) for i in range(20)]
    assert order(0, 1) == plain * 2
    one = order(0, 100)
    assert sorted(one[:20], key=int) == sorted(one[20:], key=int) == plain
    assert one == order(0, 100) and one != order(1, 100) and one[:20] != one[20:] and one[:20] != plain
    assert any((int(a) < 10) != (int(b) < 10) for a, b in pairwise(one[:10])), "shards are mixed"


def test_weights_are_the_shares_of_the_draws() -> None:
    sources = [Weighted(Numbers([50], prefix=name), weight) for name, weight in (("a", 6.0), ("b", 3.0), ("c", 1.0))]
    found = Counter(caption[0] for caption in captions(Mixture(sources, seed=1), 3000))
    for name, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        assert found[name] / 3000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("stop", [0, 1, 4, 17, 40])
def test_a_mixture_goes_on_from_its_state(stop: int) -> None:
    sources = [Weighted(Numbers([7, 5], bad=[2, 8], prefix="a"), 2, Limits(max_failures=1)), Weighted(Numbers([3]))]
    whole = captions(Mixture(sources, seed=5, buffer=4), 70)
    first = Mixture(sources, seed=5, buffer=4)
    assert captions(first, stop) == whole[:stop]
    state = json.loads(json.dumps(first.state()))
    resumed = Mixture(sources, seed=5, buffer=4, state=state)
    assert captions(resumed, 70 - stop) == whole[stop:]
    assert resumed.state()["sources"][0]["failed"] >= state["sources"][0]["failed"] >= 0


def test_rows_that_can_not_be_used_are_listed_and_passed_over() -> None:
    mixture = Mixture([Weighted(Numbers([6], bad=[1, 4]))], seed=0, buffer=1)
    assert captions(mixture, 6) == ["0", "2", "3", "5", "0", "2"]
    assert [(f.key, f.source) for f in mixture.news] == [(f"key {i}", "Numbers([6])") for i in (1, 4, 1)]
    assert all("image can not be decoded" in failure.reason for failure in mixture.news)
    assert mixture.state()["sources"][0] | {"place": 0} == {"place": 0, "taken": 1, "rows": 9, "failed": 3}


def test_too_many_failures_stop_with_the_list() -> None:
    limits = Limits(max_failures=0.2, after=10)
    assert captions(Mixture([Weighted(Numbers([20], bad=[1, 4]), limits=limits)], seed=0, buffer=1), 30)
    mixture = Mixture([Weighted(Numbers([20], bad=[1, 4, 9]), limits=limits)], seed=0, buffer=1)
    assert captions(mixture, 7) == ["0", "2", "3", "5", "6", "7", "8"]
    with pytest.raises(ValueError, match=r"3 of 10 rows can not be used, more than max_failures \(0.2\)") as error:
        mixture.next()
    lines = str(error.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == ["  key 1", "  key 4", "  key 9"]


def test_failures_before_a_resume_count() -> None:
    sources = [Weighted(Numbers([20], bad=[1, 4, 9]), limits=Limits(max_failures=0.2, after=10))]
    first = Mixture(sources, seed=0, buffer=1)
    captions(first, 6)
    with pytest.raises(ValueError, match=r"3 of 10 rows .*\n  \(2 earlier ones\)\n  key 9"):
        captions(Mixture(sources, seed=0, buffer=1, state=first.state()), 2)


def test_a_source_without_a_usable_row_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Numbers\(\[3\]\) has no usable row"):
        Mixture([Weighted(Numbers([3], bad=[0, 1, 2]))], seed=0).next()
    with pytest.raises(ValueError, match=r"has no row for reader 3 of 4; give it more rows, or train with fewer"):
        Mixture([Weighted(Numbers([3]))], seed=0, reader=3, num_readers=4)


def test_weights_that_are_no_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight \(0\) of Numbers\(\[3\]\) must be above 0"):
        Weighted(Numbers([3]), 0)


def make_batch(records: Sequence[Record], first_index: int) -> dict[str, Any]:
    return {"first": first_index, "caption": [record.caption for record in records]}


def batches(count: int, num_workers: int = 0, **arguments: Any) -> list[dict[str, Any]]:
    source = Numbers([9, 9, 9, 9], bad=[3, 20])
    stream = BatchStream(make_batch, [Weighted(source)], **{"seed": 0, "batch_size": 2, "buffer": 4, **arguments})
    return list(islice(DataLoader(stream, batch_size=None, num_workers=num_workers), count))


@pytest.mark.parametrize(("num_workers", "stop"), [(0, 3), (2, 1), (2, 3), (2, 4)])
def test_a_stream_of_batches_goes_on_where_it_stopped(num_workers: int, stop: int) -> None:
    """Also where the next batch is another worker's than the first."""
    place = {"rank": 1, "world_size": 2}
    whole = batches(9, num_workers, **place)
    assert [batch["progress"]["batch"] for batch in whole] == list(range(9))
    assert [batch["first"] for batch in whole] == [(2 * i + 1) * 2 for i in range(9)]
    states = {batch["progress"]["reader"]: batch["progress"]["state"] for batch in whole[:stop]}
    rest = batches(9 - stop, num_workers, first_batch=stop, states=states, **place)
    assert [batch["caption"] for batch in rest] == [batch["caption"] for batch in whole[stop:]]
    assert [batch["first"] for batch in rest] == [batch["first"] for batch in whole[stop:]]


def test_ranks_and_workers_share_the_rows() -> None:
    """Every reader has 36 / 4 = 9 rows, some unusable: its first batches hold none of another's."""
    found = [batch["caption"] for rank in range(2) for batch in batches(6, 2, rank=rank, world_size=2)]
    rows = [caption for batch in found for caption in batch]
    assert len(rows) == len(set(rows)) == 24
    news = [
        f.key for rank in range(2) for b in batches(8, 2, rank=rank, world_size=2) for f in b["progress"]["failures"]
    ]
    assert set(news) == {"key 3", "key 20"}


def test_an_error_in_a_worker_reaches_the_run() -> None:
    stream = BatchStream(make_batch, [Weighted(Numbers([4], bad=range(4)))], seed=0, batch_size=2)
    with pytest.raises(ValueError, match="has no usable row"):
        next(iter(DataLoader(stream, batch_size=None, num_workers=1)))
