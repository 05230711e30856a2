"""Stages, quartiles, turns, the machine's rates, and what a report says."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from blip3o.bench.machine import Machine, measure_machine
from blip3o.bench.report import Report, check_writable, print_report, write_report
from blip3o.bench.timing import Spread, Stopwatch, compare

CPU = torch.device("cpu")


def test_stages_add_up_and_those_of_one_name_are_one() -> None:
    watch = Stopwatch(CPU)
    for name, seconds in (("read", 0.02), ("write", 0.01), ("read", 0.02)):
        with watch.stage(name):
            time.sleep(seconds)
    taken = watch.seconds()
    assert list(taken) == ["read", "write", "total"]
    assert taken["read"] >= 0.04 and taken["write"] >= 0.01
    assert taken["total"] == pytest.approx(taken["read"] + taken["write"])


def test_quartiles_are_those_of_the_values() -> None:
    spread = Spread((5.0, 1.0, 2.0, 4.0, 3.0))
    assert spread.quartiles == (2.0, 3.0, 4.0) and spread.median == 3.0
    assert spread.to_json()["values"] == [5.0, 1.0, 2.0, 4.0, 3.0]


def test_sides_take_turns_and_the_first_round_is_left_out() -> None:
    order: list[str] = []

    def side(name: str, watch: Stopwatch) -> None:
        order.append(name)
        with watch.stage("work"):
            time.sleep(0.2 if len(order) <= 2 else 0.001)

    times = compare({"a": lambda watch: side("a", watch), "b": lambda watch: side("b", watch)}, 3, CPU)
    assert order == ["a", "b"] * 4
    assert all(len(times[name]["total"].values) == 3 and max(times[name]["work"].values) < 0.15 for name in "ab")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_machine_has_rates_and_the_larger_one_is_its_bandwidth(dtype: torch.dtype) -> None:
    machine = measure_machine(CPU, dtype, megabytes=1, side=64)
    assert min(machine.copy, machine.matvec, machine.matmul) > 1e6
    assert machine.bandwidth == max(machine.copy, machine.matvec)
    several = [Machine(rate, 2 * rate, 3 * rate, "float32") for rate in (1.0, 9.0, 2.0)]
    assert Machine.median(several) == several[2]
    assert Machine(2e9, 3e9, 5e9, "float32").to_json() == {
        "copy_gb_per_s": 2.0,
        "matvec_gb_per_s": 3.0,
        "bandwidth_gb_per_s": 3.0,
        "matmul_gflop_per_s": 5.0,
        "dtype": "float32",
    }


REPORT = Report(
    title="a trial",
    settings={"batch_size": 2},
    times={"base": {"total": Spread((4.0, 5.0, 6.0))}, "ours": {"total": Spread((2.0, 2.5, 3.0))}},
    checks={"float32": "all equal"},
    baseline="base",
    notes={"peak_memory_gb": {"ours": 1.25}},
    rates={"rows a second": Spread((10.0, 20.0, 30.0))},
)


def test_a_report_tells_medians_quartiles_and_how_many_times_as_fast() -> None:
    assert REPORT.speedups() == {"ours": 2.0}
    text = io.StringIO()
    print_report(REPORT, Console(file=text, width=120))
    for told in (
        "batch_size=2",
        "checked float32: all equal",
        "2500 (2250 to 2750)",
        "2.00",
        "20 (15 to 25)",
        "peak memory gb: ours",
        "1.25",
    ):
        assert told in text.getvalue()


def test_a_report_is_written_as_json(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["seconds"]["ours"]["total"]["median"] == 2.5 and found["speedups"] == {"ours": 2.0}
    assert found["threads"] == torch.get_num_threads() and "torch" in found["machine"]


def test_a_report_that_could_not_be_written_is_refused_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    for path in (tmp_path, tmp_path / "none/new.json"):
        with pytest.raises(ValueError, match=r"output \(.*\) must be a file in a folder that exists"):
            check_writable(path)
