"""What the tests of ``feedmono compare`` share: trades that are made, written as feedmono writes
them and as an old handler does, and the command itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

from feedmono.avro import generate_encoder, load_schema
from feedmono.sinks.container import ContainerWriter, encode_block

START_US = 1_795_000_000_000_000
_BLOCK = 1000


@dataclass(frozen=True)
class Trade:
    symbol: str
    trade_id: int
    price: str
    quantity: str
    side: str
    time_us: int
    received_us: int
    exchange: str = "kraken"

    def but(self, **changes: Any) -> Trade:
        return replace(self, **changes)


def made(
    count: int, symbols: Iterable[str] = ("BTC/USD", "ETH/USD", "SOL/USD"), seed: int = 1
) -> Iterator[Trade]:
    """Trades of these symbols in turns; ids rise by one in each symbol, times by 1 ms."""
    dice, names = random.Random(seed), tuple(symbols)
    for i in range(count):
        time_us = START_US + 1000 * i
        yield Trade(
            symbol=names[i % len(names)],
            trade_id=5_000_000 + i // len(names),
            price=f"{dice.randrange(1, 10_000_000) / 100:.2f}",
            quantity=f"{dice.randrange(1, 10**9) / 10**8:.8f}",
            side="BUY" if dice.random() < 0.5 else "SELL",
            time_us=time_us,
            received_us=time_us + 40_000 + dice.randrange(5000),
        )


def record(trade: Trade) -> dict[str, Any]:
    """As feedmono stores it."""
    return {
        "schema_version": "1.1.0",
        "exchange": trade.exchange,
        "symbol": trade.symbol,
        "canonical_symbol": trade.symbol,
        "trade_id": str(trade.trade_id),
        "price": trade.price,
        "quantity": trade.quantity,
        "quote_volume": "1",
        "side": trade.side,
        "timestamp": trade.received_us // 1000,
        "exchange_timestamp": trade.time_us // 1000,
        "metadata": None,
        "exchange_timestamp_us": trade.time_us,
        "received_timestamp_us": trade.received_us,
        "origin": "STREAM",
        "frame_sequence": 1,
    }


def write_avro(path: Path, trades: Iterable[Trade]) -> Path:
    """An Avro file as feedmono's files sink makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = load_schema("trade")
    encode = generate_encoder(schema)
    writer, rest = ContainerWriter(path, schema), iter(trades)
    while block := [encode(record(trade)) for trade in islice(rest, _BLOCK)]:
        writer.append(encode_block(block))
    writer.close()
    return path


def ours(folder: Path, trades: Iterable[Trade], name: str = "") -> Path:
    """A folder of feedmono's with one file in it."""
    name = name or "trades-20261123T000000Z-1.avro"
    write_avro(folder / "kraken" / name, trades)
    return folder


OLD_CONF = """# The handler that feedmono replaces.
path = "{path}"
format = json
fields {{
  exchange = {{ constant = kraken }}
  symbol = data.pair
  trade_id = data.id
  price = data.p
  quantity = data.q
  side = data.buyer_is_maker
  exchange_timestamp = {{ field = ts, unit = ms }}
  received_timestamp = got
}}
sides {{ false = BUY, true = SELL }}
symbols {{ "XBT/USD" = "BTC/USD" }}
only {{ type = trade }}
"""


def old_record(trade: Trade) -> dict[str, Any]:
    """As the old handler stores it: a number for the price, without its last zeros."""
    moment = datetime.fromtimestamp(trade.received_us // 10**6, timezone.utc)
    return {
        "type": "trade",
        "data": {
            "pair": trade.symbol.replace("BTC/", "XBT/"),
            "id": trade.trade_id,
            "p": float(trade.price),
            "q": trade.quantity,
            "buyer_is_maker": trade.side == "SELL",
        },
        "ts": trade.time_us // 1000,
        "got": f"{moment:%Y-%m-%dT%H:%M:%S}.{trade.received_us % 10**6:06}Z",
    }


def theirs(folder: Path, trades: Iterable[Trade]) -> Path:
    """The old handler's file, and the description of it, whose path is given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "old.jsonl"
    with file.open("w") as lines:
        for trade in trades:
            lines.write(json.dumps(old_record(trade)) + "\n")
    return describe(folder, OLD_CONF.format(path=file))


def describe(folder: Path, text: str) -> Path:
    path = folder / "old.conf"
    path.write_text(text)
    return path


def compare(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEEDMONO_")}
    return subprocess.run(
        [sys.executable, "-m", "feedmono", "compare", *map(str, arguments)],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )


def compared(*arguments: object, status: int, **variables: str) -> dict[str, Any]:
    """The command's JSON; it must end with that status."""
    done = compare(*arguments, "--format", "json", **variables)
    assert done.returncode == status, done.stderr + done.stdout[-3000:]
    assert not done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def named(found: dict[str, Any]) -> dict[str, set[tuple[str, int]]]:
    """Symbol and id of every example, by kind; every count must have all its examples."""
    kinds: dict[str, set[tuple[str, int]]] = {}
    for each in found["found"]:
        assert len(each["examples"]) == each["count"], each
        ids = {(each["symbol"], int(example["trade_id"])) for example in each["examples"]}
        kinds.setdefault(each["kind"], set()).update(ids)
    return kinds
