"""Structured lines: how they look, where they go, which of them are counted instead."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from feedmono import events, log
from feedmono.repeats import LINES, MOST_LINES, NAMES, PERIOD_S, Repeats


class Log:
    """The log of this process in a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log"
        self.fd = os.open(self.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def configure(self, level: str = "info", style: str = "json", **more: Any) -> None:
        log.configure(level, style, self.fd, **more)

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def names(self) -> list[str]:
        return [entry["event"] for entry in self.entries()]


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Log]:
    target = Log(tmp_path)
    target.configure()
    yield target
    log.configure("info", "text")
    os.close(target.fd)


# --- How a line looks.


def test_a_log_line_is_one_json_object_that_begins_with_when_and_what(shown: Log) -> None:
    log.get(exchange="binance").warning("something happened", size_bytes=5)
    log.get().debug("not of interest")
    (event,) = shown.entries()
    assert list(event)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event.pop("timestamp"))
    assert event == {
        "level": "warning",
        "event": "something happened",
        "exchange": "binance",
        "size_bytes": 5,
    }


def test_a_line_of_text_tells_when_how_grave_and_what(shown: Log) -> None:
    shown.configure(style="text")
    log.get(exchange="binance").warning("not connected", reason="timed out", connection=1)
    (line,) = shown.lines()
    when, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", when)
    assert rest == "[warning] not connected exchange=binance reason='timed out' connection=1"


def test_a_terminal_shows_colours_and_the_time_without_the_date(shown: Log) -> None:
    shown.configure(style="text", terminal=True)
    log.get().info("connected")
    (line,) = shown.lines()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    assert plain != line
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info\] connected", plain)


@pytest.mark.parametrize("character", ["x", "ü", '"', "\n", "\udc80", "🦀"])
def test_a_long_line_is_cut_and_still_one_json_object(shown: Log, character: str) -> None:
    log.get().error(
        "long",
        text=character * 10_000,
        several=[character * 9 for _ in range(2000)],
        short=5,
        **{f"field_{number}": character * 250 for number in range(50)},
    )
    lines = shown.path.read_bytes().splitlines(keepends=True)
    assert [len(line) <= 4096 for line in lines] == [True]
    event = json.loads(lines[0])
    assert (event["event"], event["short"], event["cut"]) == ("long", 5, True)
    assert event["text"].startswith(character * 100)


def test_the_end_of_a_long_stack_is_what_is_kept(shown: Log) -> None:
    def deep(depth: int) -> None:
        if depth:
            deep(depth - 1)
        raise ValueError("x" * 5000 + " the reason of it all")

    try:
        deep(100)
    except ValueError:
        log.get().error("reader failed", exc_info=True)
    (event,) = shown.entries()
    assert event["exception"].endswith("the reason of it all")


def test_a_long_line_of_text_is_cut_between_characters(shown: Log) -> None:
    shown.configure(style="text")
    for indent in range(4):
        log.get().info("long" + "." * indent, text="🦀" * 3000)
    for line in shown.path.read_bytes().splitlines(keepends=True):
        assert len(line) <= 4096
        assert line.decode().endswith("🦀 ...\n")


# --- Where lines go.


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK])
def test_a_pipe_that_nobody_reads_never_blocks_who_logs(flags: int) -> None:
    read_fd, write_fd = os.pipe2(flags)
    log.configure("info", "text", write_fd)
    for number in range(2000):  # each name only once: none is held back
        log.get().info(f"event {number % NAMES}", text="x" * 200)
    os.set_blocking(read_fd, False)
    assert len(os.read(read_fd, 1 << 20)) > 60_000, "the pipe was not full"
    os.close(read_fd)
    log.get().info("nobody listens any more")
    os.close(write_fd)


JOURNAL = """
import os, sys
from feedmono import log
status = os.fstat(2)
stream = {"own": f"{status.st_dev}:{status.st_ino}", "other": f"{status.st_dev}:1"}
os.environ["JOURNAL_STREAM"] = stream[sys.argv[1]]
log.configure("debug", sys.argv[2])
log.get().debug("one")
log.get(exchange="binance").info("two")
log.get().warning("three")
try:
    raise ValueError("no")
except ValueError:
    log.get().error("four", exc_info=True)
"""


def journal(stream: str, style: str) -> list[str]:
    """What a process writes to its standard error, whose device and inode the variable tells."""
    command = [sys.executable, "-c", JOURNAL, stream, style]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True, timeout=30)
    return done.stderr.splitlines()


def test_in_the_journal_each_line_begins_with_its_priority_and_has_no_time_of_its_own() -> None:
    lines = journal("own", "text")
    assert lines[:4] == [
        "<7>[debug] one",
        "<6>[info] two exchange=binance",
        "<4>[warning] three",
        "<3>[error] four",
    ]
    assert lines[-1] == "<3>ValueError: no"
    assert all(line.startswith("<3>") for line in lines[3:]), "a stack has the error's priority"


def test_in_the_journal_an_object_is_whole_behind_its_priority() -> None:
    lines = journal("own", "json")
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>"]
    assert [json.loads(line[3:])["event"] for line in lines] == ["one", "two", "three", "four"]


def test_a_standard_error_that_leads_elsewhere_than_to_the_journal_gets_plain_lines() -> None:
    assert json.loads(journal("other", "json")[0])["event"] == "one"
    assert re.match(r"\d{4}-.*Z \[debug\] one$", journal("other", "text")[0])


def test_the_recent_events_hold_what_the_log_leaves_out_but_no_debugging(
    shown: Log, tmp_path: Path
) -> None:
    logger = log.get(exchange="kraken", worker="reader")
    shown.configure("debug", "text", events=tmp_path)
    logger.debug("one")
    log.set_level("error", "text")
    logger.info("two", connection=5)
    logger.warning("three", text="x" * 10_000)
    logger.error("four")
    assert [re.sub(r".*\] | exchange.*", "", line) for line in shown.lines()] == ["one", "four"]
    two, three, four = events.recent(tmp_path, 10)
    assert (two.level, two.exchange, two.worker) == ("info", "kraken", "reader")
    assert (two.event, two.fields) == ("two", {"connection": 5})
    assert (three.fields["cut"], four.event) == (True, "four")


def test_events_that_can_not_be_kept_are_still_logged(shown: Log, tmp_path: Path) -> None:
    shown.configure(events=tmp_path / "nowhere")
    log.get().warning("one")
    assert shown.names() == ["one"]


# --- Changes at run time.


def test_level_and_format_change_for_loggers_that_are_bound_already(shown: Log) -> None:
    logger = log.get(exchange="binance").bind(connection=1)
    logger.debug("too early")
    log.set_level("debug", "json")
    logger.debug("one")
    log.set_level("warning", "json")
    logger.info("too late")
    logger.warning("two")
    assert shown.names() == ["one", "two"]
    log.set_level("info", "text")
    logger.info("three")
    assert shown.lines()[2].endswith("[info] three exchange=binance connection=1")


def test_a_change_of_level_does_not_forget_what_was_held_back(shown: Log) -> None:
    for _ in range(LINES + 7):
        log.get().warning("again")
    log.set_level("warning", "json")
    log.close()
    assert shown.entries()[-1]["more"] == 7


# --- Repeats.


def test_a_storm_from_several_threads_is_a_few_lines_and_one_that_counts_the_others(
    shown: Log, tmp_path: Path
) -> None:
    shown.configure(events=tmp_path)
    logger = log.get(exchange="binance", worker="reader", connection=2)

    def storm() -> None:
        for number in range(125):
            logger.warning("disconnected", reason="reset", detail=f"attempt {number}")

    threads = [threading.Thread(target=storm) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shown.names() == ["disconnected"] * LINES
    log.close()
    log.close()
    last = shown.entries()[-1]
    assert len(shown.lines()) == LINES + 1
    assert re.fullmatch(rf"disconnected … {1000 - LINES} more in \d+ s", last["event"])
    assert (last["level"], last["repeats"], last["more"]) == (
        "warning",
        "disconnected",
        1000 - LINES,
    )
    assert (last["exchange"], last["worker"], last["connection"]) == ("binance", "reader", 2)
    kept = events.recent(tmp_path, 5000)
    assert [event.event for event in kept] == shown.names()


def test_what_was_held_back_is_told_when_its_time_is_over(
    shown: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now_s))
    for _ in range(LINES + 412):
        log.get(exchange="kraken").info("again")
    now_s += 59.0
    log.tick()
    assert len(shown.lines()) == LINES
    now_s += 1.0
    log.tick()
    log.tick()
    assert shown.names()[LINES:] == ["again … 412 more in 60 s"]
    # Without a tick the next line tells it, however late.
    for _ in range(LINES + 3):
        log.get(exchange="kraken").info("again")
    now_s += 3600.0
    log.get().info("of another name")
    assert shown.names()[2 * LINES + 1 :] == ["again … 3 more in 60 s", "of another name"]


def test_a_process_that_is_forked_leaves_its_parents_count_to_it(shown: Log) -> None:
    for _ in range(LINES + 5):
        log.get().info("of the parent")
    pid = os.fork()
    if not pid:
        shown.configure()
        log.get().info("of the child")
        log.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    log.close()
    assert shown.names()[LINES:] == ["of the child", "of the parent … 5 more in 1 s"]


def test_debugging_is_never_held_back(shown: Log) -> None:
    shown.configure("debug")
    for _ in range(1000):
        log.get().debug("again")
    assert len(shown.lines()) == 1000


def admitted(repeats: Repeats, times: int, fields: Mapping[str, object], now_s: float = 0.0) -> int:
    """How many of so many lines are let through; *fields* may tell level and event too."""
    level, event = str(fields.get("level", "info")), str(fields.get("event", "again"))
    return sum(repeats.admits(level, event, fields, now_s) for _ in range(times))


@pytest.mark.parametrize(
    "other",
    [
        {"level": "error"},
        {"event": "x"},
        {"exchange": "kraken"},
        {"worker": "x"},
        {"connection": 2},
    ],
)
def test_one_storm_does_not_hide_lines_of_another_name_or_place(other: dict[str, object]) -> None:
    usual: dict[str, object] = {"exchange": "binance", "worker": "reader", "connection": 1}
    repeats = Repeats()
    assert admitted(repeats, 1000, usual) == LINES
    assert admitted(repeats, 1000, {**usual, **other}) == LINES
    assert sorted(held.count for held in repeats.all(5.0)) == [1000 - LINES] * 2


@pytest.mark.parametrize("name", ["kind", "reason", "error", "problem"])
def test_a_reason_that_was_not_shown_yet_passes_but_numbers_make_no_new_one(name: str) -> None:
    repeats = Repeats()
    storm = [{name: f"refused by port {port}"} for port in range(500)]
    assert sum(admitted(repeats, 1, fields) for fields in storm) == LINES
    assert admitted(repeats, 5, {name: "no route"}) == 1
    others = [{name: f"reason {chr(0x4E00 + number)}"} for number in range(500)]
    assert sum(admitted(repeats, 1, fields) for fields in others) == MOST_LINES - LINES - 1


def test_a_new_period_begins_with_the_first_line_behind_the_old_one() -> None:
    repeats = Repeats()
    admitted(repeats, LINES + 1, {"exchange": "x"}, 0.0)
    admitted(repeats, LINES, {"exchange": "y"}, 30.0)
    assert repeats.over(PERIOD_S - 0.1) == []
    (held,) = repeats.over(PERIOD_S)
    assert (held.event, held.place, held.count, held.period_s) == (
        "again",
        {"exchange": "x"},
        1,
        PERIOD_S,
    )
    assert admitted(repeats, LINES + 5, {"exchange": "x"}, 70.0) == LINES
    assert repeats.over(95.0) == [], "nothing was held back of y"
    assert [held.count for held in repeats.over(130.0)] == [5]


def test_ever_new_names_cost_neither_memory_nor_lines_without_end() -> None:
    repeats = Repeats()
    passed = [admitted(repeats, 1, {"event": f"event {number}"}) for number in range(100_000)]
    assert sum(passed) == NAMES + LINES
    (others,) = repeats.all(9.0)
    assert (others.event, others.count) == ("other events", 100_000 - NAMES - LINES)
    assert admitted(repeats, 1, {"event": "event 99999"}) == 1, "all names begin anew"
