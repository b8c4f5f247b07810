"""The benchmark's own parts: its arithmetic, its tables, and a short run that gives every figure.
No speed is asserted."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from bench import callgrind, count, plot, run, tables, usage
from bench.__main__ import main
from bench.latency import Latencies
from bench.model import SATURATION, SOCKET_TO_ACKNOWLEDGED, Burst, Case, Count, Figures, Results
from bench.model import Run as Measured
from bench.stages import FRAMES, STAGES
from bench.usage import Cpu, Memory

TESTS = Path(__file__).resolve().parent
# Works when it is told to, and waits before and after.
BUSY = """
import sys
print("up", flush=True)
sys.stdin.read(1)
for _ in range(3_000_000):
    pass
print("done", flush=True)
sys.stdin.read()
"""


def measured(
    handler: str, rate: float, cpu_ns: int, waiting: int = 0, missing: int = 0
) -> Measured:
    """A run of 1,000 trades in two seconds."""
    latencies = Latencies()
    latencies.add_all(range(1000, 11_000, 10))
    return Measured(
        handler,
        Case("kafka", rate, 2.0),
        1000,
        2.0,
        Cpu({"reader": cpu_ns}, {("reader", "main"): cpu_ns}),
        {"reader": Memory(30 << 20, 20 << 20, 1 << 20)},
        {SOCKET_TO_ACKNOWLEDGED: latencies},
        waiting,
        waiting,
        Count(1000, missing),
    )


def results(*runs: Sequence[Measured]) -> Results:
    return Results("a machine", "a broker", figures=[Figures.of(each) for each in runs])


def test_percentiles_are_those_of_the_durations() -> None:
    latencies = Latencies()
    latencies.add_all(random.Random(1).sample(range(1, 100_001), 100_000))
    found = latencies.percentiles()
    assert found is not None
    assert found.count == 100_000
    for value, expected in (
        (found.p50_ms, 50),
        (found.p90_ms, 90),
        (found.p99_ms, 99),
        (found.p999_ms, 99.9),
        (found.max_ms, 100),
    ):
        assert value == pytest.approx(expected, rel=0.002)


def test_without_any_duration_there_are_no_percentiles() -> None:
    assert Latencies().percentiles() is None


def test_durations_of_another_process_are_merged_as_if_they_were_own() -> None:
    here, there = Latencies(), Latencies()
    here.add_us(1000, 99)
    there.add_us(50_000)
    here.merge(Latencies(there.encoded()))
    found = here.percentiles()
    assert found is not None
    assert (found.count, found.p50_ms) == (100, 1.0)
    assert found.max_ms == pytest.approx(50, rel=0.002)


def test_buckets_are_spread_evenly_and_none_is_lost() -> None:
    latencies = Latencies()
    latencies.add_buckets((0.001, 0.003, 0.01), (0, 100, 7, 3))
    found = latencies.percentiles()
    assert found is not None
    assert found.count == 110
    assert found.p50_ms == pytest.approx(2.1, rel=0.03)
    assert found.max_ms == pytest.approx(10, rel=0.002)


def test_a_negative_duration_counts_as_the_shortest() -> None:
    latencies = Latencies()
    latencies.add_us(-500)
    assert len(latencies) == 1


def test_a_slope_is_told_from_noise() -> None:
    dice = random.Random(1)
    flat = [(float(at), 100 + dice.gauss(0, 1)) for at in range(200)]
    rising = [(at, value + at / 100) for at, value in flat]
    assert run.slope(flat).is_noise
    found = run.slope(rising)
    assert not found.is_noise
    # A hundredth a second is 36 an hour.
    assert found.per_hour == pytest.approx(36, abs=4 * found.error_per_hour)


def test_what_wanders_is_no_slope_but_a_staircase_is() -> None:
    dice = random.Random(2)
    growing = 0
    for _ in range(40):
        value, wandering = 0.0, []
        for at in range(300):
            value = 0.9 * value + dice.gauss(0, 1)
            wandering.append((float(at), value))
        growing += not run.slope(wandering).is_noise
    # Beyond two standard errors upwards is one in forty; with independent samples it would be 12.
    assert growing <= 4
    assert not run.slope([(float(at), 100.0 + at // 10) for at in range(200)]).is_noise


def test_costs_stand_side_by_side_with_their_ratio() -> None:
    own = [measured("feedmono", 500, 20_000_000), measured("feedmono", 500, 40_000_000)]
    table = tables.costs(results(own, [measured("baseline", 500, 120_000_000)]).figures)
    assert table.rows == [["kafka 500/s", "30.0 (20.0–40.0)", "500", "120.0", "500", "4.00 ×"]]
    assert len(table.notes) == 1


def test_who_fell_behind_or_lost_something_is_named() -> None:
    runs = [measured("feedmono", 500, 1, missing=3)], [measured("baseline", 500, 1, waiting=400)]
    notes = " ".join(tables.costs(results(*runs).figures).notes)
    assert "baseline, kafka 500/s: fell behind by 200 trades/s, 40%" in notes
    assert "feedmono, kafka 500/s: 1,000 trades, 3 missing" in notes


def test_the_latency_of_a_backlog_is_left_out() -> None:
    runs = (
        [measured("feedmono", SATURATION, 1)],
        [measured("feedmono", 500, 1)],
        [measured("baseline", 500, 1, waiting=400)],
    )
    rows = tables.latencies(results(*runs).figures).rows
    assert [row[:3] for row in rows] == [["kafka 500/s", SOCKET_TO_ACKNOWLEDGED, "feedmono"]]
    assert rows[0][3:] == ["6.0", "10.0", "10.9", "11.0", "11.0"]


def test_markdown_has_each_table_in_columns() -> None:
    text = tables.markdown(results([measured("feedmono", 500, 1)]))
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert headings == ["### CPU", "### CPU of feedmono by thread, sink kafka", "### Latency",
                        "### Memory"]  # fmt: skip
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_json_has_no_number_that_json_does_not_know() -> None:
    found = results([measured("feedmono", SATURATION, 1)])
    burst = Burst(2000, 10, 10, 5, None, None, 1.0, math.inf, Count())
    text = tables.to_json(Results("", "", figures=found.figures, burst=burst))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    content = json.loads(text, parse_constant=refuse)
    assert content["figures"][0]["rate"] == "max"
    assert content["burst"]["worst_p99_ms"] is None


def test_usage_tells_threads_and_memory_of_a_process() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = usage.look([child.pid])
        child.stdin.write(b"x")
        child.stdin.flush()
        child.stdout.readline()
        used = usage.between(before, usage.look([child.pid]))
        ((role, thread),) = used.by_thread
        assert thread == "main"
        assert used.by_role[role] == used.total_ns > 5_000_000
        # schedstat may be a tick behind.
        assert used.by_thread[role, thread] == pytest.approx(used.total_ns, abs=15_000_000)
        memory = usage.memory([child.pid])[role]
        assert 1 << 20 < memory.private_bytes <= memory.pss_bytes
        assert memory.ring_bytes == 0
    finally:
        child.kill()
        child.communicate()
    assert usage.between(before, usage.look([child.pid])).ended == (role,)


def test_the_count_tells_missing_doubled_and_foreign_trades() -> None:
    marks = count.Marks({"A": (10, 14), "B": (1, 0)})
    for trade_id in (10, 11, 11, 11, 14, 15, 9):
        marks.meet("A", trade_id)
    marks.meet("B", 1)
    marks.meet("C", 10)
    assert (marks.met, marks.missing, marks.doubled, marks.foreign) == (9, 2, 1, 4)


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS)}


def test_two_seconds_on_the_mock_cluster_give_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, picture = tmp_path / "figures.json", tmp_path / "figures.svg"
    arguments = ["--mock", "--rates", "500", "--sinks", "kafka", "--seconds", "2", "--rounds", "1"]
    assert main([*arguments, "--json", str(target), "--plot", str(picture)]) == 0
    assert "mock cluster" in capsys.readouterr().out
    content = json.loads(target.read_text())
    assert [each["handler"] for each in content["figures"]] == ["feedmono", "baseline"]
    for figures in content["figures"]:
        assert figures["us_per_trade"] > 0
        assert figures["trades_per_s"] > 0
        # librdkafka's threads go by their names.
        assert any("/rdk:broker" in thread for thread in figures["cpu_us_by_thread"])
        assert sum(figures["cpu_us_by_process"].values()) == pytest.approx(figures["us_per_trade"])
        counted = figures["count"]
        assert counted.pop("trades") > 500
        assert set(counted.values()) == {0}, "nothing is missing, nothing doubled"
        for hop in (count.STAMP_TO_SOCKET, count.SOCKET_TO_NORMALIZED, SOCKET_TO_ACKNOWLEDGED):
            assert 0 < figures["latency_ms"][hop]["p50_ms"] <= figures["latency_ms"][hop]["max_ms"]
        assert all(each["pss_bytes"] > 1 << 20 for each in figures["runs"][0]["memory"].values())
    assert set(content["figures"][0]["cpu_us_by_process"]) == {
        "supervisor", "reader", "serializer", "status",
    }  # fmt: skip
    assert picture.stat().st_size > 1000


def test_saturation_with_files_counts_every_trade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_CARRIES_PER_S", {"baseline": 500})
    monkeypatch.setattr(run, "_CARRIES_ELSE_PER_S", 2000)
    target = tmp_path / "figures.json"
    arguments = ["--rates", "max", "--sinks", "files", "--seconds", "1", "--rounds", "1"]
    assert main([*arguments, "--json", str(target)]) == 0
    content = json.loads(target.read_text())
    for figures, trades in zip(content["figures"], (2000, 500), strict=True):
        assert figures["runs"][0]["trades"] == trades
        assert figures["count"]["trades"] == trades
        assert figures["count"]["missing"] == figures["count"]["raw_missing"] == 0


def test_it_takes_all_its_processes_along_when_it_is_interrupted() -> None:
    command = [sys.executable, "-m", "bench", "--mock", "--rates", "200", "--sinks", "kafka"]
    bench = subprocess.Popen(
        [*command, "--seconds", "60"], env=environ(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not (below := serving(bench.pid)):
            assert time.monotonic() < deadline, "no serializer came up"
            assert bench.poll() is None
            time.sleep(0.05)
        bench.send_signal(signal.SIGINT)
        assert bench.wait(60) == 130
        psutil.wait_procs(below, timeout=10)
        assert not [process for process in below if process.is_running()]
    finally:
        bench.kill()
        bench.wait()


def serving(pid: int) -> list[psutil.Process]:
    """Everything below that process, once there is a serializer; [] before."""
    below = psutil.Process(pid).children(recursive=True)
    titles = []
    for process in below:
        with contextlib.suppress(psutil.Error):
            titles += process.cmdline()[:1]
    return below if "feedmono: serializer binance" in titles else []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rates", "fast"], "'fast' is no number"),
        (["--sinks", "paper"], "'paper' is none of kafka, files"),
        (["--soak", "30"], "no time such as"),
        (["--kafka", "localhost:1"], "belong together"),
        (["--compare", "/nowhere"], "no checkout of feedmono"),
    ],
)
def test_a_wrong_argument_is_told(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        plot.draw(Results("", ""), tmp_path / "x.svg")


# Instruction counts


def test_instructions_are_told_per_trade_beside_those_recorded() -> None:
    # Before the first stage, six stages, what lies between, the whole.
    totals = [10**9, *(n * FRAMES for n in (1, 2, 3, 4, 5, 6)), 10**9, 30 * FRAMES]
    counts = callgrind.per_trade(totals)
    assert [counts[stage] for stage in STAGES] == [1, 2, 3, 4, 5, 6, 30]
    rows = callgrind.table({"plain": counts}, {"plain": {"cut": 2.0}}).rows
    assert rows[0] == ["cut", "1", "2", "-50.0%"]
    # What the whole has beside taking.
    assert rows[-1][1:] == ["24", "–", "–"]


def test_a_missing_mark_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="set 3 counts apart"):
        callgrind.per_trade([1, 2, 3])


@pytest.mark.parametrize("twin", ["plain", "native"])
def test_the_stages_run_to_their_end(twin: str) -> None:
    command = [sys.executable, str(TESTS / "bench" / "stages.py"), twin]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr


def test_without_valgrind_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["callgrind"])
    assert callgrind.main() == 1
    assert "valgrind is not installed" in capsys.readouterr().err
