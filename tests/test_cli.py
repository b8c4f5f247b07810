"""The commands as a user meets them: exit status, messages, the demo."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

from instance import by_symbol, only, read_avro
from sim import Sim, wait_until

from feedmono import simulator

RECORDED_SYMBOL = "BTCUSDT"


def feedmono(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEEDMONO_")}
    return subprocess.run(
        [sys.executable, "-m", "feedmono", *arguments],
        cwd=folder,
        env={**environ, "FEEDMONO_RING_DIR": str(folder / "rings"), **variables},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_the_demo_stores_every_trade_of_both_exchanges_once(tmp_path: Path) -> None:
    """The ids of both simulators run without a hole; the figures are the recording's, or made."""
    demo = feedmono(tmp_path, "run", "--demo", "--for", "20s")
    assert demo.returncode == 0, demo.stderr
    data = tmp_path / "data" / "demo"
    for exchange, symbols in (("binance", 5), ("kraken", 4)):
        stored = by_symbol(read_avro(data / exchange, "trades"))
        assert len(stored) == symbols
        count = 0
        for symbol, trades in stored.items():
            ids = [int(t["trade_id"]) for t in trades]
            assert ids == list(range(ids[0], ids[0] + len(ids))), symbol
            count += len(ids)
            for trade in trades if symbol != RECORDED_SYMBOL else []:
                expected = simulator.figures(exchange, 1, symbol, int(trade["trade_id"]))
                assert (trade["price"], trade["quantity"]) == (expected.price, expected.quantity)
        assert count > 500
        assert f"{count:,} trades in data/demo/{exchange}" in demo.stdout
    assert "fastavro data/demo/" in demo.stdout.replace(str(Path(sys.executable).parent) + "/", "")


def test_a_second_demo_begins_anew(tmp_path: Path) -> None:
    feedmono(tmp_path, "run", "--demo", "--for", "4s")
    before = set((tmp_path / "data/demo/kraken").iterdir())
    assert before
    assert feedmono(tmp_path, "run", "--demo", "--for", "4s").returncode == 0
    assert not before & set((tmp_path / "data/demo/kraken").iterdir())


def test_the_demo_never_removes_files_that_are_not_a_demos(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "binance" / "trades-1.avro"
    mine.parent.mkdir(parents=True)
    mine.write_text("worth keeping")
    demo = feedmono(tmp_path, "run", "--demo", "--for", "2s", FEEDMONO_FILES_DIR="mine")
    assert demo.returncode == 1
    assert "not a demo's" in demo.stderr
    assert mine.read_text() == "worth keeping"


def test_mistakes_in_the_configuration_are_told_at_once_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "my.conf").write_text("sink = kafak\nring_capacity = 5\nexchanges.binanc {}\n")
    for command in ("run", "check", "status", "tail"):
        result = feedmono(tmp_path, command, "--config", "my.conf", FEEDMONO_KRAKEN_SYMBOLS="A,,B")
        assert result.returncode == 2
        for part in ("my.conf:1", "kafka", "my.conf:2", "binance", "FEEDMONO_KRAKEN_SYMBOLS"):
            assert part in result.stderr, (command, part)
        assert "Traceback" not in result.stderr


def test_wrong_arguments_have_status_2(tmp_path: Path) -> None:
    for arguments in (["run", "--for", "5"], ["run", "--for", "0s"], ["nothing"], [], ["sim"]):
        result = feedmono(tmp_path, *arguments)
        assert result.returncode == 2, arguments
        assert "usage: feedmono" in result.stderr


def test_tail_of_an_unknown_exchange_or_symbol_names_those_there_are(tmp_path: Path) -> None:
    result = feedmono(tmp_path, "tail", "coinbase")
    assert result.returncode == 2
    assert "binance, kraken" in result.stderr
    result = feedmono(tmp_path, "tail", "kraken", "XBT/USD")
    assert result.returncode == 2
    assert "BTC/USD, ETH/USD" in result.stderr


def test_tail_without_a_broker_says_so_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
    result = feedmono(
        tmp_path, "tail", FEEDMONO_SINK="kafka", FEEDMONO_KAFKA_BOOTSTRAP_SERVERS=closed
    )
    assert result.returncode == 1
    (told,) = result.stderr.splitlines()
    assert told.startswith(("feedmono: binance: ", "feedmono: kraken: "))
    assert closed in told


def test_check_online_says_what_answers_and_fails_if_something_does_not(tmp_path: Path) -> None:
    with Sim("kraken") as sim:
        answered = feedmono(
            tmp_path,
            "check",
            "--online",
            **only("kraken"),
            FEEDMONO_KRAKEN_WS_URL=sim.ws_url,
            FEEDMONO_KRAKEN_REST_URL=sim.rest_url,
        )
        assert answered.returncode == 0, answered.stdout
        refused = feedmono(
            tmp_path,
            "check",
            "--online",
            "--format",
            "json",
            **only("kraken"),
            FEEDMONO_KRAKEN_WS_URL="ws://127.0.0.1:9",
            FEEDMONO_KRAKEN_REST_URL=sim.rest_url,
            FEEDMONO_KRAKEN_SYMBOLS="BTC/USD,NO/SUCH",
            FEEDMONO_SINK="kafka",
            FEEDMONO_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:9",
            FEEDMONO_SCHEMA_REGISTRY_URL="http://127.0.0.1:9",
        )
    assert refused.returncode == 1
    assert refused.stdout.count('"ok": false') == 4, refused.stdout
    assert "NO/SUCH" in refused.stdout


def test_closed_standard_streams_do_not_keep_it_from_starting(tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m feedmono run --demo --for 4s <&- >&- 2>&-"
    environ = {**os.environ, "FEEDMONO_RING_DIR": str(tmp_path / "rings")}
    result = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environ, timeout=60, check=False
    )
    assert result.returncode == 0
    assert list((tmp_path / "data/demo/binance").glob("trades-*.avro"))


class Screen:
    """A demo in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self._fd, terminal_fd = pty.openpty()
        fcntl.ioctl(terminal_fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "feedmono", "run", "--demo"],
            cwd=folder,
            env={**os.environ, "FEEDMONO_RING_DIR": str(folder / "rings"), "TERM": "xterm"},
            stdin=terminal_fd,
            stdout=terminal_fd,
            stderr=terminal_fd,
        )
        os.close(terminal_fd)
        self._shown = b""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """The window is closed: whoever runs in it gets SIGHUP."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def wait(self, pattern: bytes) -> None:
        """Waits until that is shown."""
        wait_until(self._read, lambda text: re.search(pattern, text) is not None)

    def wait_end(self) -> int:
        """The exit status; what is shown meanwhile is taken in."""
        wait_until(lambda: (self._read(), self.process.poll())[1], lambda end: end is not None)
        return int(self.process.returncode)

    def _read(self) -> bytes:
        if self._fd >= 0 and select.select([self._fd], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the terminal's other end is closed
                self._shown += os.read(self._fd, 65536)
        return self._shown


FLOWING = rb"binance +.{0,9}flowing.{0,9} +\d+\.\d"
STORED = FLOWING + rb" +[1-9]"


def test_with_a_terminal_a_live_table_is_shown_below_the_log(tmp_path: Path) -> None:
    with Screen(tmp_path) as screen:
        screen.wait(STORED)
        screen.wait(b"subscribed")
        screen.process.send_signal(signal.SIGHUP)
        screen.wait(b"reloaded")
        screen.process.send_signal(signal.SIGINT)
        assert screen.wait_end() == 0
        screen.wait(b"fastavro")


def test_a_terminal_that_is_closed_ends_what_is_shown_in_it(tmp_path: Path) -> None:
    with Screen(tmp_path) as screen:
        screen.wait(FLOWING)
        screen.close()
        assert screen.wait_end() == 0
        assert not (tmp_path / "var/demo/status.json").exists(), "it stopped in order"
