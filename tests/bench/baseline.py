"""The baseline: the obvious handler of Binance trades, with the libraries that feedmono uses too.

One process, one thread: a frame is received, parsed, normalized, encoded, and handed to Kafka with
a callback, one after the other. It delivers what feedmono delivers while nothing goes wrong, and
knows no ring, no ledger and no backfill: what passes while it is not connected is lost.

For the benchmark it leaves two figures in a mapped file: how many normalized trades are
acknowledged, and how long each took from the socket (about 0.5 µs of a trade's cost).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import mmap
import os
import signal
import sys
import time
import urllib.request
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import fastavro
import websocket
from confluent_kafka import KafkaError, Message, Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
FIGURES_BYTES = 8 + 4 * 8_000_000
_SYNC_INTERVAL_S = 1.0
_RECONNECT_S = 1.0


class Figures:
    """What is left for the benchmark: a count, and behind it a duration in µs for each."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(FIGURES_BYTES)
            whole = memoryview(mmap.mmap(file.fileno(), FIGURES_BYTES))
        self._count = whole[:8].cast("Q")
        self._durations_us = whole[8:].cast("I")

    def delivered(self, *received_ns: int) -> None:
        """Trades that came off the socket then are acknowledged now."""
        now_ns, count = time.time_ns(), self._count[0]
        for each_ns in received_ns:
            if count < len(self._durations_us):
                self._durations_us[count] = min((now_ns - each_ns) // 1000, 2**32 - 1)
            count += 1
        self._count[0] = count


class Output(Protocol):
    """Where frames and trades go."""

    def frame(self, symbol: str, frame: bytes, tag: tuple[int, int]) -> None:
        """Takes a raw frame, with its sequence and when it came (Unix ns)."""

    def trade(self, symbol: str, trade: dict[str, Any], received_ns: int) -> None:
        """Takes a normalized trade."""

    def poll(self) -> None:
        """Does what is due."""

    def close(self) -> None:
        """Delivers the rest."""


class KafkaOutput:
    """Messages, one for each frame and one for each trade."""

    def __init__(self, args: argparse.Namespace, figures: Figures) -> None:
        self._figures = figures
        self._raw_topic, self._topic = f"{args.topic}.raw", args.topic
        self._schema = fastavro.parse_schema(json.loads((SCHEMAS / "trade.avsc").read_text()))
        text = (SCHEMAS / "trade.avsc").read_text()
        client = SchemaRegistryClient({"url": args.registry})
        number = client.register_schema(f"{args.topic}-value", Schema(text, "AVRO"))
        self._head = b"\0" + number.to_bytes(4, "big")
        self._producer = Producer(
            {
                "bootstrap.servers": args.bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": args.linger_ms,
                "partitioner": "murmur2_random",
            }
        )

    def frame(self, symbol: str, frame: bytes, tag: tuple[int, int]) -> None:
        text = f"0:{tag[0]}:{tag[1]}:0"
        self._produce(self._raw_topic, frame, symbol, _check, [("frame", text)])

    def trade(self, symbol: str, trade: dict[str, Any], received_ns: int) -> None:
        body = io.BytesIO()
        body.write(self._head)
        fastavro.schemaless_writer(body, self._schema, trade)
        report = partial(self._delivered, received_ns)
        self._produce(self._topic, body.getvalue(), symbol, report, None)

    def _produce(self, topic: str, value: bytes, key: str, report: Any, headers: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=report, headers=headers)
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def _delivered(self, received_ns: int, error: KafkaError | None, message: Message) -> None:
        _check(error, message)
        self._figures.delivered(received_ns)

    def poll(self) -> None:
        self._producer.poll(0)

    def close(self) -> None:
        self._producer.flush(10)


def _check(error: KafkaError | None, _: Message) -> None:
    if error is not None:
        raise SystemExit(f"not delivered: {error}")


class FilesOutput:
    """Avro files, synced once a second."""

    def __init__(self, args: argparse.Namespace, figures: Figures) -> None:
        self._figures = figures
        self._raw: list[dict[str, Any]] = []
        self._trades: list[dict[str, Any]] = []
        self._received_ns: list[int] = []
        args.folder.mkdir(parents=True, exist_ok=True)
        self._outputs = [
            (
                (args.folder / f"{kind}-0.avro").open("a+b"),
                fastavro.parse_schema(json.loads((SCHEMAS / f"{schema}.avsc").read_text())),
                records,
            )
            for kind, schema, records in (
                ("raw", "raw", self._raw),
                ("trades", "trade", self._trades),
            )
        ]
        self._due_s = time.monotonic() + _SYNC_INTERVAL_S

    def frame(self, symbol: str, frame: bytes, tag: tuple[int, int]) -> None:
        place = {"connection": 0, "sequence": tag[0], "received_ns": tag[1]}
        self._raw.append({**place, "origin": "STREAM", "payload": frame})

    def trade(self, symbol: str, trade: dict[str, Any], received_ns: int) -> None:
        self._trades.append(trade)
        self._received_ns.append(received_ns)
        self.poll()

    def poll(self) -> None:
        if time.monotonic() >= self._due_s:
            self._sync()

    def _sync(self) -> None:
        for file, schema, records in self._outputs:
            fastavro.writer(file, schema, records, codec="deflate")
            file.flush()
            os.fsync(file.fileno())
            records.clear()
        self._figures.delivered(*self._received_ns)
        self._received_ns.clear()
        self._due_s = time.monotonic() + _SYNC_INTERVAL_S

    def close(self) -> None:
        self._sync()
        for file, _, _ in self._outputs:
            file.close()


class Handler:
    """Receives, normalizes, hands on."""

    def __init__(self, args: argparse.Namespace, output: Output) -> None:
        self._symbols = args.symbols.split(",")
        self._url = f"{args.ws_url}/stream?timeUnit=MICROSECOND"
        self._output = output
        with urllib.request.urlopen(f"{args.rest_url}/api/v3/exchangeInfo") as response:
            markets = json.load(response)["symbols"]
        self._canonical = {m["symbol"]: f"{m['baseAsset']}/{m['quoteAsset']}" for m in markets}
        self._sequence = itertools.count(time.time_ns() // 1000)
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            try:
                self._flow()
            except (websocket.WebSocketException, OSError) as error:
                print(f"connection lost: {error}", file=sys.stderr, flush=True)
                time.sleep(_RECONNECT_S)

    def _flow(self) -> None:
        # json checks the text; without wsaccel the client's own check would be the largest cost.
        ws = websocket.create_connection(self._url, timeout=0.5, skip_utf8_validation=True)
        streams = [f"{symbol.lower()}@trade" for symbol in self._symbols]
        ws.send(json.dumps({"method": "SUBSCRIBE", "params": streams, "id": 1}))
        while not self.stopping:
            try:
                frame = ws.recv_data()[1]
            except websocket.WebSocketTimeoutException:
                self._output.poll()
                continue
            self._take(frame, time.time_ns())
        ws.close()

    def _take(self, frame: bytes, received_ns: int) -> None:
        event = json.loads(frame).get("data")
        if not event or event.get("e") != "trade":
            return
        sequence = next(self._sequence)
        symbol = event["s"]
        self._output.frame(symbol, frame, (sequence, received_ns))
        self._output.trade(symbol, self._normalized(event, sequence, received_ns), received_ns)

    def _normalized(self, event: dict[str, Any], sequence: int, received_ns: int) -> dict[str, Any]:
        return {
            "schema_version": "1.1.0",
            "exchange": "binance",
            "symbol": event["s"],
            "canonical_symbol": self._canonical[event["s"]],
            "trade_id": str(event["t"]),
            "price": event["p"],
            "quantity": event["q"],
            "quote_volume": format(Decimal(event["p"]) * Decimal(event["q"]), "f"),
            "side": "SELL" if event["m"] else "BUY",
            "timestamp": time.time_ns() // 1_000_000,
            "exchange_timestamp": event["T"] // 1000,
            "metadata": {
                "sequence_number": event["t"],
                "is_buyer_maker": event["m"],
                "buyer_order_id": event.get("b"),
                "seller_order_id": event.get("a"),
            },
            "exchange_timestamp_us": event["T"],
            "received_timestamp_us": received_ns // 1000,
            "origin": "STREAM",
            "frame_sequence": sequence,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("ws-url", "rest-url", "symbols", "topic", "bootstrap", "registry"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--linger-ms", type=float, default=20)
    parser.add_argument("--folder", type=Path, help="Avro files there, instead of Kafka")
    parser.add_argument("--figures", type=Path, required=True)
    args = parser.parse_args()
    figures = Figures(args.figures)
    output: Output = FilesOutput(args, figures) if args.folder else KafkaOutput(args, figures)
    handler = Handler(args, output)
    signal.signal(signal.SIGTERM, lambda *_: setattr(handler, "stopping", True))
    handler.run()
    output.close()


if __name__ == "__main__":
    main()
