"""The simulator's command line, and the laws of its parts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import websocket
from hypothesis import given, settings
from hypothesis import strategies as st
from sim import Sim, wait_until

from feedmono.simulator import figures, load, names
from feedmono.simulator.faults import Faults
from feedmono.simulator.garbage import garbage
from feedmono.simulator.market import BLOCK, MadeSource
from feedmono.simulator.render import Stock, frames
from feedmono.simulator.tape import Tape
from feedmono.simulator.venue import Venue
from feedmono.simulator.websocket import (
    CONTINUATION,
    MAX_MESSAGE_BYTES,
    PING,
    TEXT,
    Message,
    Reader,
    Violation,
    frame,
)
from feedmono.trade import is_decimal

# --- The command line.


def refused(*args: str) -> str:
    """What the simulator says about options that it must not take."""
    command = [sys.executable, "-m", "feedmono.simulator", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr


def test_an_unknown_exchange_is_refused_with_the_nearest_name() -> None:
    assert "did you mean binance?" in refused("--exchange", "binanse")


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--rate", "fast"], "trades per second, or max, are wanted"),
        (["--port", "70000"], "a whole number 0 … 65535 is wanted"),
        (["--speed", "0"], "a number above 0 is wanted"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(args: list[str], reason: str) -> None:
    assert reason in refused("--exchange", "binance", *args)


def test_all_mistakes_that_need_the_exchange_are_told_at_once() -> None:
    said = refused(
        *("--exchange", "binance", "--symbols", "NOSUCH,BTCUSDT,BTCUSDT", "--batch", "3"),
        *("--pace", "recorded", "--speed", "2", "--faults", "lose=2,refuse=ETHUSDT"),
    )
    assert "write NOSUCH=BASE/QUOTE" in said
    assert "BTCUSDT is named twice" in said
    assert "binance sends one trade a frame" in said
    assert "--pace recorded needs --trades recorded" in said
    assert "a probability from 0 to 1 is wanted" in said
    assert "kraken was not recorded" in refused("--exchange", "kraken", "--trades", "recorded")
    assert "ETHUSDT: it is none of --symbols" in refused(
        *("--exchange", "binance", "--symbols", "BTCUSDT", "--faults", "refuse=ETHUSDT")
    )


def test_a_port_that_is_taken_is_said_and_fails() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "feedmono.simulator", "--exchange", "binance"]
        done = subprocess.run(
            [*command, "--port", port], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in done.stderr


def test_a_journal_that_can_not_be_written_is_said_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "feedmono.simulator", "--exchange", "binance", "--journal"]
    done = subprocess.run(
        [*command, str(tmp_path / "no" / "such")], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert b"the journal can't be written" in done.stderr


def test_it_listens_on_the_port_that_was_asked_for_and_ends_with_its_totals() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with Sim("binance", "--port", str(port), "--limit", "7", "--first-id", "100") as sim:
        assert sim.ws_url == f"ws://127.0.0.1:{port}"
        sim.wait(lambda state: bool(state["finished"]))
        totals = sim.stop()["symbols"]
    assert totals["BTCUSDT"]["first_id"] == 100
    assert totals["BTCUSDT"]["last_id"] == 101
    assert sum(t["made"] for t in totals.values()) == 7


def test_it_ends_with_its_parent() -> None:
    """The parent is killed outright; nobody tells the simulator."""
    program = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'feedmono.simulator', '--exchange', 'kraken',\n"
        "                  '--stop-with-parent'])\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = json.loads(parent.stdout.readline())["pid"]
        parent.send_signal(signal.SIGKILL)
        # Its end of the pipe closes when it has ended.
        last = parent.stdout.read()
        assert b'"symbols"' in last
        wait_until(lambda: Path(f"/proc/{pid}/cmdline").exists(), lambda there: not there)
    finally:
        parent.kill()
        parent.wait()


def test_sigint_ends_it_in_order_with_clients_connected() -> None:
    with Sim("binance", "--rate", "1000") as sim:
        client = websocket.create_connection(sim.ws_url + "/ws/btcusdt@trade", timeout=10)
        client.recv()
        os.kill(sim.pid, signal.SIGINT)
        assert sim.stop()["symbols"]["BTCUSDT"]["sent"] > 0
        client.close()


# --- Made figures.


def test_what_binds_no_dialect_is_no_exchange() -> None:
    with pytest.raises(KeyError):
        load("market")


@pytest.mark.parametrize("exchange", names())
def test_figures_are_exact_decimals_in_the_exchanges_shape(exchange: str) -> None:
    dialect = load(exchange)
    for symbol, market in dialect.markets.items():
        shape = market.shape
        for trade_id in range(1_000_000, 1_000_300):
            price, quantity, side = figures(exchange, 1, symbol, trade_id)
            assert is_decimal(price)
            assert is_decimal(quantity)
            assert float(price) > 0
            assert float(quantity) > 0
            assert side in (0, 1)
            decimals = shape.decimals or shape.tick_decimals
            assert len(price.partition(".")[2]) == decimals
            middle = shape.price_ticks / 10**shape.tick_decimals
            assert abs(float(price) / middle - 1) < 0.05


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 3 * BLOCK), st.integers(0, 2**63 - 1))
def test_figures_are_the_same_one_by_one_and_in_any_run(first: int, count: int, seed: int) -> None:
    market = load("kraken").markets["ETH/USD"]
    run = MadeSource(seed, market).figures_of(range(first, first + count))
    assert len(run) == count
    for n in range(0, count, 37):
        assert run[n] == figures("kraken", seed, "ETH/USD", first + n)


def test_another_seed_gives_other_figures() -> None:
    ones = [figures("binance", 1, "BTCUSDT", i) for i in range(50)]
    twos = [figures("binance", 2, "BTCUSDT", i) for i in range(50)]
    assert ones != twos
    assert len({f.price for f in ones}) > 1


@pytest.mark.parametrize(("exchange", "batch"), [("binance", 1), ("kraken", 9)])
def test_the_stock_serves_all_it_rendered_in_whatever_portions(exchange: str, batch: int) -> None:
    kind = load(exchange)
    market = kind.markets[kind.default_symbols[0]]
    tape = Tape(market, MadeSource(1, market), 1000, 2000, batch)
    dialect = kind(Venue({market.symbol: tape}, Faults(1), strict=True))
    stock = Stock(dialect, tape, 1500)
    rng = random.Random(1)
    served = 0
    while True:
        groups = tape.groups(rng.randint(1, 50))
        ids = tape.make(sum(groups), 1_700_000_000_000_000)
        taken = stock.take(ids, groups)
        if taken is None:
            break
        assert taken == frames(dialect, stock.variant, tape, ids, groups)
        served += len(ids)
    assert served >= 1440


# --- Frames.


def masked(opcode: int, payload: bytes, final: bool, mask: bytes) -> bytes:
    """A client's frame."""
    head = bytearray(frame(opcode, payload, final))[: -len(payload) or None]
    head[1] |= 0x80
    body = bytes(b ^ mask[n % 4] for n, b in enumerate(payload))
    return bytes(head) + mask + body


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=6),
    st.binary(min_size=4, max_size=4),
    st.randoms(use_true_random=False),
)
def test_messages_are_the_same_however_they_are_fragmented_and_cut(
    messages: list[list[bytes]], mask: bytes, rng: random.Random
) -> None:
    """A ping stands behind the first fragment of each."""
    data = b""
    expected = []
    for parts in messages:
        for n, part in enumerate(parts):
            opcode = CONTINUATION if n else TEXT
            data += masked(opcode, part, n == len(parts) - 1, mask)
            if n == 0:
                data += masked(PING, b"p", True, mask)
        pings = [Message(PING, b"p")]
        whole = [Message(TEXT, b"".join(parts))]
        expected += whole + pings if len(parts) == 1 else pings + whole
    reader = Reader()
    found: list[Message] = []
    while data:
        size = rng.randint(1, 200)
        found += reader.messages(data[:size])
        data = data[size:]
    assert found == expected


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"unmasked"), 1002),
        (masked(CONTINUATION, b"x", True, b"abcd"), 1002),
        (masked(TEXT, b"x" * (MAX_MESSAGE_BYTES + 1), True, b"abcd"), 1009),
        (masked(TEXT, b"x" * 40_000, False, b"abcd") * 2, 1002),
        (b"\xf1\x80abcd", 1002),
    ],
)
def test_a_broken_protocol_is_closed_with_its_code(data: bytes, code: int) -> None:
    with pytest.raises(Violation) as caught:
        list(Reader().messages(data))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "essential", "trade"),
    [
        ('{"e":"trade","t":5,"p":"1","T":17}', ("t", "p", "T"), '"t":5,"p":"1","T":17}'),
        ('["t","A",5,"1",17]', (2, 3, 4), '5,"1",17]'),
        ('{"t":[[5,"1",17],[6,"1",18]]}', (0, 1, 2), '5,"1",17]'),
    ],
)
def test_garbage_of_every_kind_is_a_whole_frame_without_a_trade(
    text: str, essential: Sequence[str] | Sequence[int], trade: str
) -> None:
    seen = set()
    for seed in range(300):
        made = garbage(text, essential, random.Random(seed))
        assert made == garbage(text, essential, random.Random(seed))
        size = made[1] & 0x7F
        start = 2 if size < 126 else 4 if size == 126 else 10
        assert len(made) == start + (size if size < 126 else int.from_bytes(made[2:start], "big"))
        assert made[start:] != text.encode()
        with contextlib.suppress(ValueError, RecursionError):
            assert trade not in json.dumps(json.loads(made[start:]), separators=(",", ":"))
        seen.add(made)
    assert len(seen) > 100
