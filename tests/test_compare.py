"""``feedmono compare`` as its user meets it: what it finds, shows, and says when it can't."""

from __future__ import annotations

import gzip
import json
import os
import pty
import random
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
from compare_rig import (
    OLD_CONF,
    START_US,
    Trade,
    compare,
    compared,
    describe,
    made,
    named,
    old_record,
    ours,
    record,
    theirs,
    write_avro,
)
from sim import wait_until

from feedmono.compare.result import (
    DIFFERENT,
    DOUBLED_A,
    DOUBLED_B,
    MISSING_A,
    MISSING_B,
    ORDER,
)

PLANTED = 20
KINDS = ("missing", "extra", "doubled a", "doubled b", "price", "quantity", "side", "time", "order")


def place_of(trade: Trade) -> tuple[str, int]:
    return trade.symbol, trade.trade_id


def plant(trades: list[Trade]) -> tuple[list[Trade], list[Trade], dict[str, set[tuple[str, int]]]]:
    """Both sides of these trades with 20 differences of each kind, and where they are."""
    # Far from the ends, and from each other: a moved trade passes 30 others.
    places = random.Random(5).sample(range(100, len(trades) - 100, 50), PLANTED * len(KINDS))
    chosen = {kind: set(places[i :: len(KINDS)]) for i, kind in enumerate(KINDS)}
    a: list[Trade] = []
    b: list[Trade] = []
    late: list[tuple[int, Trade]] = []
    changes: dict[str, Callable[[Trade], Trade]] = {
        "price": lambda t: t.but(price=f"{float(t.price) + 0.01:.2f}"),
        "quantity": lambda t: t.but(quantity=t.quantity[:-1] + str((int(t.quantity[-1]) + 1) % 10)),
        "side": lambda t: t.but(side="SELL" if t.side == "BUY" else "BUY"),
        "time": lambda t: t.but(time_us=t.time_us + 1000),
    }
    for i, trade in enumerate(trades):
        kind = next((kind for kind, those in chosen.items() if i in those), "")
        if kind != "extra":
            a.append(trade)
        if kind == "order":
            late.append((i + 30, trade))
        elif kind != "missing":
            b.append(changes[kind](trade) if kind in changes else trade)
        if kind.startswith("doubled"):
            (a if kind == "doubled a" else b).append(trade)
        if late and late[0][0] == i:
            b.append(late.pop(0)[1])
    return a, b, {kind: {place_of(trades[i]) for i in those} for kind, those in chosen.items()}


def expected(places: dict[str, set[tuple[str, int]]]) -> dict[str, set[tuple[str, int]]]:
    values = ("price", "quantity", "side", "time")
    return {
        MISSING_A: places["extra"],
        MISSING_B: places["missing"],
        DIFFERENT: set().union(*(places[kind] for kind in values)),
        ORDER: places["order"],
        DOUBLED_A: places["doubled a"],
        DOUBLED_B: places["doubled b"],
    }


@pytest.mark.parametrize("other", ["feedmono", "old handler"])
def test_twenty_planted_differences_of_every_kind_are_found_and_none_besides(
    tmp_path: Path, other: str
) -> None:
    a, b, places = plant(list(made(30_000)))
    there = ours(tmp_path / "b", b) if other == "feedmono" else theirs(tmp_path / "b", b)
    found = compared(ours(tmp_path / "a", a), there, "--examples", 100, status=1)
    assert named(found) == expected(places)
    assert found["equal"] is False
    assert sum(s["common"] for s in found["symbols"]) == 30_000 - 2 * PLANTED
    fields = {f: sum(s["different_fields"].get(f, 0) for s in found["symbols"]) for f in FIELDS}
    assert set(fields.values()) == {PLANTED}, fields
    assert all(s["outside_a"] == s["outside_b"] == 0 for s in found["symbols"])
    assert found["a"]["undecodable"] == found["b"]["undecodable"] == 0


FIELDS = ("price", "quantity", "side", "exchange_timestamp")


def test_equal_sides_end_with_status_0_whatever_their_formats_are(tmp_path: Path) -> None:
    """1.10 and 1.1 are one price; milliseconds and microseconds with zeros one time."""
    trades = list(made(3000))
    a = ours(tmp_path / "a", trades)
    lines = "".join(json.dumps(record(t)) + "\n" for t in trades)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for b in (theirs(tmp_path / "old", trades), tmp_path / "b.jsonl.gz", a):
        found = compared(a, b, status=0)
        assert found["equal"]
        assert found["found"] == []
        assert [s["common"] for s in found["symbols"]] == [1000] * 3
        assert found["latency_us"] == dict.fromkeys(("min", "p50", "p90", "p99", "max"), 0) | {
            "count": 3000
        }


def test_what_lies_outside_of_the_common_stretch_is_told_and_is_no_difference(
    tmp_path: Path,
) -> None:
    """A begins later and ends later; a symbol that traded only before A began is no difference."""
    trades = list(made(9000))
    early = Trade("RARE/USD", 7, "1", "1", "BUY", START_US + 10_000, START_US + 10_500)
    a, b = trades[900:], [trades[0], early, *trades[1:8100]]
    found = compared(ours(tmp_path / "a", a), theirs(tmp_path / "b", b), status=0)
    rare = next(s for s in found["symbols"] if s["symbol"] == "RARE/USD")
    others = [s for s in found["symbols"] if s is not rare]
    assert [(s["outside_a"], s["outside_b"]) for s in others] == [(300, 300)] * 3
    assert (rare["outside_b"], rare["missing_a"]) == (1, 0)
    assert "900 trades only in A" in " ".join(found["notes"])
    assert "901 trades only in B" in " ".join(found["notes"])


def test_a_symbol_that_one_side_never_had_is_missing_there(tmp_path: Path) -> None:
    trades = list(made(900))
    b = [t for t in trades if t.symbol != "SOL/USD"]
    found = compared(ours(tmp_path / "a", trades), ours(tmp_path / "b", b), status=1)
    # The last of them are from after B's last trade.
    assert [(f["kind"], f["symbol"], f["count"]) for f in found["found"]] == [
        (MISSING_B, "SOL/USD", 299)
    ]
    assert compared(
        tmp_path / "a", tmp_path / "b", "--symbol", "ETH/USD", "--exchange", "kraken", status=0
    )["summary"].startswith("equal: 300 common trades of 1 symbol")


def test_sides_that_share_no_stretch_are_not_equal(tmp_path: Path) -> None:
    trades = list(made(900))
    a, b = ours(tmp_path / "a", trades[:300]), ours(tmp_path / "b", trades[600:])
    found = compared(a, b, status=1)
    assert found["summary"].startswith("nothing compared")


def test_latency_is_a_minus_b_and_says_what_it_is_told_by(tmp_path: Path) -> None:
    trades = list(made(1000, ["BTC/USD"]))
    later = [t.but(received_us=t.received_us + 1000 * i) for i, t in enumerate(trades)]
    a, b = ours(tmp_path / "a", trades), theirs(tmp_path / "b", later)
    latency = compared(a, b, status=0)["latency_us"]
    assert (latency["min"], latency["max"], latency["count"]) == (-999_000, 0, 1000)
    assert latency["p50"] == pytest.approx(-500_000, rel=0.01)
    assert latency["p90"] == pytest.approx(-100_000, rel=0.01)
    shown = compare(a, b).stdout
    assert "A's received_timestamp_us minus B's got" in shown
    assert "-999.000 ms" in shown


def test_what_a_side_does_not_have_is_left_out_and_said(tmp_path: Path) -> None:
    trades = list(made(300))
    theirs(tmp_path / "b", [t.but(side="BUY", quantity="5") for t in trades])
    text = OLD_CONF.format(path=tmp_path / "b" / "old.jsonl")
    gone = ("quantity", "side =", "received_timestamp")
    kept = [line for line in text.splitlines() if not line.strip().startswith(gone)]
    conf = describe(tmp_path / "b", "\n".join(kept))
    found = compared(ours(tmp_path / "a", trades), conf, status=0)
    assert found["compared"] == ["price", "exchange_timestamp"]
    assert found["latency_us"] is None
    for note in ("quantity is not compared: B", "side is not compared: B", "no latency: B"):
        assert any(told.startswith(note) for told in found["notes"]), note


def test_the_table_shows_each_kind_with_examples_and_fits_the_terminal(tmp_path: Path) -> None:
    a, b, places = plant(list(made(30_000)))
    ours(tmp_path / "a", a), ours(tmp_path / "b", b)
    done = compare(tmp_path / "a", tmp_path / "b", "--examples", "2", COLUMNS="80")
    assert done.returncode == 1
    table = done.stdout.split("\n\n")[1]
    assert all(len(line) <= 80 for line in table.splitlines())
    for kind in (MISSING_A, MISSING_B, DIFFERENT, ORDER, DOUBLED_A, DOUBLED_B):
        assert f"\n{kind} (" in done.stdout
    assert "places later in B" in done.stdout
    assert "    …" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("different: 29,960 common trades of 3 symbols; ")
    shown = {s for s in done.stdout.split() if s.startswith("50")}
    assert any(f"{trade_id}:" in shown for _, trade_id in places["price"] | places["side"])


def test_growing_files_are_read_up_to_their_last_whole_block_or_line(tmp_path: Path) -> None:
    trades = list(made(4000))
    part = write_avro(tmp_path / "a" / "kraken" / "trades-20261123T000000Z-1.avro.part", trades)
    part.write_bytes(part.read_bytes()[:-100])
    theirs(tmp_path / "b", trades)
    lines = tmp_path / "b" / "old.jsonl"
    lines.write_bytes(lines.read_bytes()[:-10])
    found = compared(tmp_path / "a", tmp_path / "b" / "old.conf", status=0)
    assert (found["a"]["torn_ends"], found["b"]["torn_ends"]) == (1, 1)
    assert sum(s["common"] for s in found["symbols"]) == 3000
    assert sum(s["outside_b"] for s in found["symbols"]) == 999


def test_a_finished_file_that_is_cut_or_damaged_is_a_difference(tmp_path: Path) -> None:
    trades = list(made(5000))
    whole = ours(tmp_path / "a", trades)
    file = write_avro(tmp_path / "b" / "x.avro", trades)
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    found = compared(whole, file, status=1)
    assert found["b"]["undecodable"] == 1
    assert "ends within a block" in found["b"]["undecodable_examples"][0]["reason"]
    middle = len(content) // 2
    file.write_bytes(content[:middle] + b"\xff" * 50 + content[middle + 50 :])
    found = compared(whole, file, status=1)
    # The blocks behind the damage are read.
    assert found["b"]["undecodable"] == 1
    assert found["b"]["trades"] == 4000
    assert sum(f["count"] for f in found["found"] if f["kind"] == MISSING_B) == 1000


def test_records_that_are_no_trades_are_counted_with_place_and_reason(tmp_path: Path) -> None:
    trades = list(made(300))
    conf = theirs(tmp_path / "b", trades)
    lines = (tmp_path / "b" / "old.jsonl").read_text().splitlines()
    bad: list[Any] = [old_record(t) for t in trades[:8]]
    del bad[0]["data"]["p"]
    bad[1]["data"]["q"] = "a lot"
    bad[2]["data"]["buyer_is_maker"] = "perhaps"
    bad[3]["ts"] = "yesterday"
    bad[4]["data"]["pair"] = None
    bad[5]["data"]["id"] = [1]
    bad[6]["data"] = "gone"
    bad[7]["data"]["pair"] = "\ud800"
    lines += [json.dumps(each) for each in bad]
    lines += ["{'no': json}", "[1, 2]", "", '{"type": "heartbeat"}']
    (tmp_path / "b" / "old.jsonl").write_text("\n".join(lines) + "\n")
    b = compared(ours(tmp_path / "a", trades), conf, "--examples", 50, status=1)["b"]
    # No JSON, and no list, number or heartbeat is a trade; the last two are passed over by `only`.
    assert b["undecodable"] == 9
    assert b["passed_over"] == 2
    told = [f"{each['place']}: {each['reason']}" for each in b["undecodable_examples"]]
    for line, part in (
        (301, "price: no field p in a record of pair, id, q"),
        (302, "quantity: 'a lot' is no number"),
        (303, "side: 'perhaps' is none of the sides false, true"),
        (304, "exchange_timestamp: 'yesterday'"),
        (305, "symbol: None"),
        (306, "trade_id: [1] is no id"),
        (307, "symbol: no field pair in 'gone'"),
        (308, "it is no JSON"),
        (309, "it is no JSON"),
    ):
        assert any(f"line {line}: {part}" in each for each in told), (part, told)


def test_a_mapping_that_fits_no_record_says_what_the_records_hold(tmp_path: Path) -> None:
    theirs(tmp_path / "b", made(100))
    text = OLD_CONF.format(path=tmp_path / "b" / "old.jsonl").replace("data.pair", "data.piar")
    done = compare(ours(tmp_path / "a", made(100)), describe(tmp_path / "b", text))
    assert done.returncode == 1
    assert "100 of them not to be read as trades" in done.stderr
    assert "symbol: no field piar in a record of pair, id" in done.stderr
    assert "(is it pair?)" in done.stderr


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("data.pair", '""'), ["old.conf:6: fields.symbol"]),
        (("  price =", "  prise ="), ["old.conf:8: fields.prise", "did you mean price?"]),
        (("unit = ms", "unit = msec"), ["old.conf:11: fields.exchange_timestamp", "mean ms?"]),
        (("false = BUY", "false = BYU"), ["old.conf:14: sides.false", "BUY or SELL"]),
        (("  trade_id = data.id", ""), ["fields without trade_id"]),
        (("path =", "topic = t\npath ="), ["path and topic"]),
        (("format = json", "format = jsn"), ["old.conf:3: format", "did you mean json?"]),
        (("format = json", "format = ["), ["old.conf"]),
    ],
)
def test_a_mistake_in_a_description_names_file_line_and_nearest_name(
    tmp_path: Path, change: tuple[str, str], parts: list[str]
) -> None:
    text = OLD_CONF.format(path="old.jsonl").replace(*change)
    done = compare(tmp_path, describe(tmp_path, text))
    assert done.returncode == 2
    for part in parts:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_sources_that_are_not_there_or_empty_are_told(tmp_path: Path) -> None:
    here = ours(tmp_path / "a", made(10))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.avro").write_text("this is no Avro")
    for there, status, part in (
        (tmp_path / "nowhere", 1, "No such file"),
        (tmp_path / "empty", 1, "holds no Avro or JSON file"),
        (tmp_path / "empty.jsonl", 1, "holds no trades: it has 0 records"),
        (tmp_path / "text.avro", 1, "can't be read"),
        (tmp_path / "missing.conf", 2, "no file that can be read"),
        ("kafka:", 2, "names no topic"),
        ("kafka:x", 1, "127.0.0.1:9"),
    ):
        done = compare(here, there, FEEDMONO_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9")
        assert done.returncode == status, (there, done.stderr)
        assert part in done.stderr, (there, done.stderr)
        assert "Traceback" not in done.stderr
    assert compare(here).returncode == 2
    assert compare(here, here, "--examples", "x").returncode == 2
    done = compare(here, here, "--spill", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "nowhere" in done.stderr


def test_an_interrupt_leaves_no_file_behind_and_says_that_nothing_is_compared(
    tmp_path: Path,
) -> None:
    """On a terminal, whose progress bar tells that it is at work."""
    conf = theirs(tmp_path / "b", made(100))
    lines = tmp_path / "b" / "old.jsonl"
    lines.unlink()
    os.mkfifo(lines)
    spill = tmp_path / "spill"
    spill.mkdir()
    screen_fd, terminal_fd = pty.openpty()
    here = ours(tmp_path / "a", made(20_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "feedmono", "compare", here, conf, "--spill", spill],
        stderr=terminal_fd,
        start_new_session=True,
    )
    os.close(terminal_fd)
    shown = b""

    def read() -> bytes:
        nonlocal shown
        if select.select([screen_fd], [], [], 0.1)[0]:
            shown += os.read(screen_fd, 65536)
        return shown

    # It waits for a writer of the pipe.
    try:
        wait_until(read, lambda text: b"reading" in text)
        process.send_signal(signal.SIGTERM)
        wait_until(read, lambda text: b"nothing is compared" in text)
        assert process.wait(20) == 1
        assert list(spill.iterdir()) == []
    finally:
        process.kill()
        process.wait()
        os.close(screen_fd)


OLD_SCHEMA = {
    "type": "record",
    "name": "Tick",
    "fields": [
        {"name": "market", "type": "string"},
        {"name": "number", "type": "long"},
        {
            "name": "money",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 4},
        },
        {"name": "amount", "type": "double"},
        {"name": "way", "type": {"type": "enum", "name": "Way", "symbols": ["B", "S"]}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "seen", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
    ],
}
OLD_AVRO_CONF = """
path = "{path}"
format = avro
exchanges {{ K = kraken }}
fields {{
  exchange = {{ constant = K }}, symbol = market, trade_id = number, price = money
  quantity = amount, side = way
  exchange_timestamp = {{ field = at, unit = us }}
  received_timestamp {{ field = seen, unit = ms }}
}}
sides {{ b = BUY, s = SELL }}
"""


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2"])
def test_avro_of_another_program_is_read_in_any_codec(tmp_path: Path, codec: str) -> None:
    """Decimals, binary fractions, enums and logical times mean what they mean."""
    trades = list(made(3000))
    records = [
        {
            "market": t.symbol,
            "number": t.trade_id,
            "money": Decimal(t.price),
            "amount": float(t.quantity),
            "way": t.side[0],
            "at": t.time_us,
            "seen": None if i % 2 else (t.received_us // 1000),
        }
        for i, t in enumerate(trades)
    ]
    path = tmp_path / "ticks.avro"
    with path.open("wb") as file:
        fastavro.writer(file, OLD_SCHEMA, records, codec=codec)
    conf = describe(tmp_path, OLD_AVRO_CONF.format(path=path))
    found = compared(ours(tmp_path / "a", trades), conf, status=0)
    assert sum(s["common"] for s in found["symbols"]) == 3000
    assert found["compared"] == list(FIELDS)
    assert found["latency_us"]["count"] == 1500
    assert 0 <= found["latency_us"]["min"] <= found["latency_us"]["max"] < 1000


def test_the_example_in_the_documentation_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "COMPARE.md").read_text()
    line = re.search(r'^ {4}(\{"type":"trade".*\})$', text, re.MULTILINE)
    conf = re.search(r"^( {7}path = .*?only [^\n]*)$", text, re.MULTILINE | re.DOTALL)
    assert line
    assert conf
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "2026-11-23.jsonl").write_text(line[1] + "\n")
    described = describe(tmp_path, conf[1].replace("/var/lib/ticker", str(tmp_path / "old")))
    trade = Trade(
        "BTC/USD", 81234567, "68012.10", "0.0015", "SELL", 1795413600123000, 1795413600150000
    )
    found = compared(ours(tmp_path / "a", [trade]), described, status=0)
    assert found["symbols"][0]["common"] == 1
    assert found["latency_us"]["p50"] == pytest.approx(-14_000, rel=0.01)
