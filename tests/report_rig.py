"""What the report's tests share: made snapshots, rows and reports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from test_status import status

from feedmono.report.check import Checked
from feedmono.report.report import Act, Line, Report, Target, Validation
from feedmono.supervision.samples import Row
from feedmono.supervision.samples_row import COUNTED
from feedmono.supervision.snapshot import Alarm, Disk, ExchangeStatus, Snapshot, Tree, WorkerStatus

BEGIN_S = 1_795_392_000.0


def row(exchange: str, at_s: float, **fields: object) -> Row:
    """A second of 5 trades."""
    usual: dict[str, object] = {
        "span_s": 1.0, **dict.fromkeys(COUNTED, 0), "trades": 5, "delivered": 5, "frames": 6,
        "bytes": 900, "cpu_cores": 0.1, "cpu_cores_max": 0.2, "memory_bytes": 60 << 20,
        "ring_used_bytes": 1 << 20, "holes_open": 0, "open_trades": 0, "receive_p50_s": 0.02,
        "receive_p99_s": 0.05, "delivery_p50_s": 0.006, "delivery_p99_s": 0.014, "connected": 1.0,
    }  # fmt: skip
    return Row(exchange, at_s, **{**usual, **fields})  # type: ignore[arg-type]


def rows(seconds: int, exchange: str = "binance", **fields: object) -> list[Row]:
    """Of an exchange, and of all together."""
    return [
        row(name, BEGIN_S + n, **fields) for n in range(1, seconds + 1) for name in (exchange, "")
    ]


def running(name: str = "binance", **fields: object) -> ExchangeStatus:
    """An exchange with its two workers."""
    workers = tuple(
        WorkerStatus(role, pid, 0.05, 12.5, 30 << 20, 22)
        for role, pid in (("reader", 4711), ("serializer", 4712))
    )
    return replace(status(name=name, workers=workers), **fields)  # type: ignore[arg-type]


def snapshot(*exchanges: ExchangeStatus, **fields: object) -> Snapshot:
    """A running instance with everything that can be told of one."""
    usual: dict[str, object] = {
        "tree": Tree(0.35, 90.0, 211 << 20, 28, 20_000, 6),
        "disks": (Disk("state_dir", "/var/lib/feedmono", 40 << 30, 250 << 30),),
        "http": "http://127.0.0.1:9464",
    }
    shown = exchanges or (running(), running("kraken"))
    return Snapshot(99, BEGIN_S, BEGIN_S + 3600, "files", shown, **{**usual, **fields})  # type: ignore[arg-type]


ALARM = Alarm("memory", "kraken", "600 MiB of 512 MiB", BEGIN_S + 3000)


def report(**fields: object) -> Report:
    """Of two minutes of two exchanges, one of which does badly; some text is not harmless."""
    lines = (
        Line("throughput", "5.0 trades/s, at most 7", "ok"),
        Line("payload correctness", "99 of 100 records valid", "failed"),
    )
    seconds = [*rows(60), *rows(60, "kraken")]
    good = Checked(100, 100, 90, True, ("schemas/trade.avsc",))
    bad = Checked(100, 99, 90, True, ("schemas/trade.avsc",), ("f.avro byte 7: a|b <i>c</i>",))
    usual: dict[str, object] = {
        "since_s": BEGIN_S, "until_s": BEGIN_S + 120, "sampled_s": 60.0, "source": "watched",
        "state_dir": "/var/lib/feed_mono", "sink": "files",
        "validations": (
            Validation("binance", lines[:1], seconds[0], good),
            Validation("kraken", lines, seconds[0], bad),
        ),
        "resources": (
            Target("binance CPU", "0.50 cores", "0.100 cores, at most 0.200", "ok"),
            Target("total RAM", "1,024 MiB", "at most 2,000.0 MiB", "over"),
            Target("kraken CPU", "0.50 cores", "0.100 cores, at most 0.700", "at times"),
        ),
        "acts": (Act(BEGIN_S + 5, "warning", "kraken", "restarted: <memory> | 2"),),
        "acts_left_out": 0, "notes": ("nothing runs now: this is of the past",),
        "rows": tuple(seconds),
    }  # fmt: skip
    return Report(**{**usual, **fields})  # type: ignore[arg-type]


def feedmono(
    environ: Mapping[str, str], folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "feedmono", *arguments],
        env={**os.environ, **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=100,
        check=False,
    )
