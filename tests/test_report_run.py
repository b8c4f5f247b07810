"""The report on a real instance, with both sinks; what is wrong in a sink is found."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from instance import Instance, read_avro
from kafka_rig import AnyKafka, AnyRegistry, call
from nobody import as_nobody
from report_rig import feedmono
from sim import Sim, wait_until

from feedmono import avro, cli
from feedmono.config import load
from feedmono.report import check as report_check
from feedmono.sinks import kinds
from feedmono.sinks.segment import list_files
from feedmono.supervision import samples
from feedmono.trade import multiply

Record = dict[str, Any]


def made(instance: Instance, *arguments: str) -> dict[str, Any]:
    """A report as JSON."""
    done = feedmono(instance.environ, instance.folder, "report", "--format", "json", *arguments)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def correctness(content: Mapping[str, Any], exchange: str = "binance") -> dict[str, Any]:
    """What the report says of an exchange's payload."""
    validation = next(v for v in content["validations"] if v["exchange"] == exchange)
    lines = {line["metric"]: line for line in validation["lines"]}
    return {**validation["checked"], "status": lines["payload correctness"]["status"]}


def check(
    instance: Instance, since_s: float, limit: int = report_check.LIMIT
) -> report_check.Checked:
    config = load(None, instance.environ, cwd=instance.folder).config
    return report_check.check(config, "binance", since_s, time.time() + 60, limit=limit)


def wrong(record: Mapping[str, Any]) -> list[Record]:
    """Records of which each is wrong in one way."""
    now = {**record, "timestamp": int(time.time() * 1000)}
    other = multiply("7.5", record["quantity"])
    return [
        {**now, "quote_volume": "1"},
        {**now, "exchange": "elsewhere"},
        {**now, "trade_id": "007"},
        # Sound by itself, but not what the exchange's frame says.
        {**now, "price": "7.5", "quote_volume": other},
    ]


def plain_times(record: Record) -> Record:
    """As the schema has times without its logical types."""
    return {
        name: round(
            value.timestamp() * (1e3 if name in ("timestamp", "exchange_timestamp") else 1e6)
        )
        if hasattr(value, "timestamp")
        else value
        for name, value in record.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """A running instance of two exchanges that writes files."""
    folder = tmp_path_factory.mktemp("files")
    with (
        Sim("binance", "--rate", "100") as binance,
        Sim("kraken", "--rate", "10") as kraken,
        Instance(folder, binance, kraken, FILES_ROLL_INTERVAL="2 s") as instance,
    ):
        instance.wait_trades("binance", 300)
        yield instance


def test_a_running_instance_is_watched_for_the_given_time(files: Instance) -> None:
    content = made(files, "--for", "4s")
    assert content["source"] == "watched"
    assert 2 <= content["sampled_s"] <= 6
    for exchange, rate in (("binance", 100), ("kraken", 10)):
        found = correctness(content, exchange)
        assert found["status"] == "ok", found
        assert found["valid"] == found["read"] > rate
        assert found["matched"] > 0.8 * found["read"]
        assert found["complete"]
        total = next(v["total"] for v in content["validations"] if v["exchange"] == exchange)
        assert total["trades"] > rate
    assert {r["metric"] for r in content["resources"]} == {
        f"{name} {what}" for name in ("binance", "kraken", "total") for what in ("CPU", "RAM")
    }


@pytest.mark.parametrize(
    ("style", "begin"),
    [
        ("table", "20"),
        ("markdown", "# feedmono report"),
        ("json", "{"),
        ("html", "<!DOCTYPE html>"),
    ],
)
def test_kept_samples_are_reported_in_every_format(files: Instance, style: str, begin: str) -> None:
    wait_until(lambda: samples.newest_s(files.state), lambda at_s: at_s is not None, 30)
    done = feedmono(files.environ, files.folder, "report", "--format", style)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(begin)
    for part in ("payload correctness", "held against", "kraken RAM", "schemas/trade"):
        assert part in done.stdout, part


def test_another_user_may_make_a_report(
    files: Instance, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readable(files.folder)
    wait_until(lambda: samples.newest_s(files.state), lambda at_s: at_s is not None, 30)
    for name, value in files.environ.items():
        if name.startswith("FEEDMONO_"):
            monkeypatch.setenv(name, value)
    command = ["report", "--for", "2s", "--format", "json"]
    # In this process first: who may not read the libraries needs them loaded.
    assert cli.main(command) == 0
    capsys.readouterr()

    def report() -> bool:
        status = cli.main(command)
        found = correctness(json.loads(capsys.readouterr().out))
        return status == 0 and found["valid"] == found["read"] > 0

    assert as_nobody(report)


def readable(folder: Path) -> None:
    """The way to it, for everyone."""
    for each in (folder, *folder.parents):
        with contextlib.suppress(PermissionError):
            each.chmod(each.stat().st_mode | 0o055)


def test_a_report_on_nothing_says_so(tmp_path: Path) -> None:
    environ = {"FEEDMONO_STATE_DIR": str(tmp_path / "state")}
    kept = feedmono(environ, tmp_path, "report")
    assert kept.returncode == 1
    assert "there are no samples in" in kept.stderr
    watched = feedmono(environ, tmp_path, "report", "--for", "1s")
    assert watched.returncode == 1
    assert "nothing runs on state_dir" in watched.stderr
    assert feedmono(environ, tmp_path, "report", "--for", "soon").returncode == 2


def test_after_the_end_the_past_is_reported_and_what_is_wrong_in_it(tmp_path: Path) -> None:
    with Sim("binance", "--rate", "100") as sim, Instance(tmp_path, sim) as instance:
        begun_s = time.time()
        instance.wait_trades("binance", 500)
        assert instance.stop() == 0
    content = made(instance)
    assert content["notes"] == ["nothing runs now: this is of the past"]
    good = correctness(content)
    assert (good["status"], good["valid"]) == ("ok", good["read"])
    total = content["validations"][0]["total"]
    assert good["read"] == total["delivered"]
    folder = instance.data / "binance"
    sound = plain_times(list(read_avro(folder, "trades"))[-1])
    plant(folder, wrong(sound))
    config = load(None, instance.environ, cwd=tmp_path).config
    found = report_check.check(config, "binance", begun_s, time.time() + 1)
    assert (found.read - found.valid, found.read) == (4, good["read"] + 4)
    reasons = "\n".join(found.failures)
    for part in ("quote_volume", "its exchange is", "its trade_id is '007'", "its price is '7.5'"):
        assert part in reasons
    # Damage is no record, and not valid either.
    newest = list_files(folder, "trades")[-1].path
    data = bytearray(newest.read_bytes())
    data[-30:-20] = bytes(10)
    newest.write_bytes(data)
    damaged = report_check.check(config, "binance", begun_s, time.time() + 1)
    assert damaged.read - damaged.valid == 1
    assert newest.name in damaged.failures[0]


def plant(folder: Path, records: list[Record]) -> None:
    """A file of these records, as the newest."""
    last = list_files(folder, "trades")[-1]
    path = folder / f"trades-20991231T235959Z-{last.number + 1}.avro"
    with path.open("wb") as file:
        fastavro.writer(file, avro.load_schema("trade"), records, codec="deflate")


def test_a_record_of_another_schema_is_not_valid(files: Instance, tmp_path: Path) -> None:
    with Sim("binance", "--rate", "50") as sim, Instance(tmp_path, sim) as instance:
        instance.wait_trades("binance", 50)
        assert instance.stop() == 0
    folder = instance.data / "binance"
    record = plain_times(list(read_avro(folder, "trades"))[-1])
    schema = avro.load_schema("trade")
    schema["fields"] = [f for f in schema["fields"] if f["name"] != "quantity"]
    last = list_files(folder, "trades")[-1]
    now = {**record, "timestamp": int(time.time() * 1000)}
    with (folder / f"trades-20991231T235959Z-{last.number + 1}.avro").open("wb") as file:
        fastavro.writer(file, schema, [now], codec="deflate")
    found = check(instance, 0)
    assert found.read - found.valid == 1
    assert "quantity" in found.failures[0]
    assert found.schemas == ("schemas/trade.avsc",)


def test_no_more_than_the_limit_is_read_and_those_are_the_newest(files: Instance) -> None:
    found = check(files, 0, limit=50)
    assert (found.read, found.valid, found.complete) == (50, 50, False)
    recent_s = time.time() - 1
    assert check(files, recent_s).complete


def test_a_second_is_read_without_all_the_files_before_it(files: Instance) -> None:
    wait_until(lambda: len(list(files.data.glob("binance/trades-*.avro"))), lambda n: n > 3, 40)
    oldest = list_files(files.data / "binance", "trades")[0].path
    kept = oldest.read_bytes()
    oldest.write_bytes(b"damaged")
    try:
        assert check(files, time.time() - 2).failures == ()
        assert len(check(files, 0).failures) == 1
    finally:
        oldest.write_bytes(kept)


# --- Kafka


@pytest.fixture(scope="module")
def stored(
    kafka: AnyKafka, registry: AnyRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Instance]:
    """What an instance has left in Kafka."""
    prefix = f"test{uuid.uuid4().hex[:12]}.trades"
    kafka.create_topics((f"{prefix}.binance", f"{prefix}.binance.raw"), 4, None)
    kafka.create_topics((f"{prefix}.binance.dead", f"{prefix}.binance.coverage"), 1)
    with (
        Sim("binance", "--rate", "100") as sim,
        Instance(
            tmp_path_factory.mktemp("kafka"),
            sim,
            SINK="kafka",
            KAFKA_BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
            SCHEMA_REGISTRY_URL=registry.url,
            TOPIC_PREFIX=prefix,
        ) as instance,
    ):
        instance.wait_trades("binance", 300)
        yield instance


def subject(instance: Instance) -> str:
    return f"{instance.environ['FEEDMONO_TOPIC_PREFIX']}.binance-value"


def test_records_in_kafka_are_validated_against_the_latest_registered_schema(
    stored: Instance,
) -> None:
    content = made(stored, "--for", "3s")
    found = correctness(content)
    assert found["status"] == "ok", found
    assert found["valid"] == found["read"] > 100
    assert found["matched"] > 0.8 * found["read"]
    assert found["schemas"] == [f"{subject(stored)} version 1"]
    limited = check(stored, time.time() - 3600, limit=80)
    assert (limited.valid, limited.complete) == (limited.read, False)
    assert 80 <= limited.read <= 84, "a record more of each partition at most"


def test_what_is_wrong_in_kafka_is_found(stored: Instance, registry: AnyRegistry) -> None:
    begun_s = time.time()
    versions = f"{registry.url}/subjects/{subject(stored)}/versions/latest"
    number, schema = (call("GET", versions)[name] for name in ("id", "schema"))
    record = one_record(stored)
    encode = avro.generate_encoder(json.loads(schema))
    good = {**record, "timestamp": int(time.time() * 1000)}
    prefix = b"\0" + number.to_bytes(4, "big")
    topic = subject(stored).removesuffix("-value")
    producer = Producer({"bootstrap.servers": stored.environ["FEEDMONO_KAFKA_BOOTSTRAP_SERVERS"]})
    for each in wrong(record):
        producer.produce(topic, prefix + encode(each), key=str(record["symbol"]))
    producer.produce(topic, prefix + encode(good), key="another")
    producer.produce(topic, b"\0\x7f\xff\xff\xff" + encode(good), key=str(record["symbol"]))
    producer.produce(topic, b"no record", key=str(record["symbol"]))
    assert producer.flush(20) == 0
    found = check(stored, begun_s)
    assert found.read - found.valid == 7, found.failures
    assert found.trouble == ""
    assert correctness(made(stored, "--for", "2s"))["read"] > 0


def one_record(instance: Instance) -> Record:
    config = load(None, instance.environ, cwd=instance.folder).config
    newest = kinds.configured(config).newest(config, "binance")
    record = next(iter(newest.read("trades", 0, time.time(), 1))).record
    assert record is not None
    return dict(record)


def test_a_registry_that_does_not_answer_leaves_it_unchecked(stored: Instance) -> None:
    environ = {**stored.environ, "FEEDMONO_SCHEMA_REGISTRY_URL": "http://127.0.0.1:9"}
    config = load(None, environ, cwd=stored.folder).config
    found = report_check.check(config, "binance", 0, time.time())
    assert "schema registry http://127.0.0.1:9" in found.trouble
    assert found.valid == 0


def test_a_bar_is_shown_in_a_terminal_while_it_watches(files: Instance) -> None:
    main, side = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "feedmono", "report", "--for", "2s", "--format", "json"],
            env={**files.environ, "TERM": "xterm"}, cwd=files.folder, stderr=side,
            stdout=subprocess.PIPE, timeout=60, check=True,
        )  # fmt: skip
        os.close(side)
        shown = b""
        with contextlib.suppress(OSError):  # that is how a terminal's end is told
            # A terminal gives 4 KiB at a time.
            while more := os.read(main, 1 << 16):
                shown += more
    finally:
        os.close(main)
    assert b"watching" in shown
    assert b"100%" in shown
    assert correctness(json.loads(done.stdout))["status"] == "ok"


def test_sigint_ends_the_watching_and_the_report_is_made(files: Instance) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "feedmono", "report", "--for", "1h", "--format", "json"],
        env=dict(files.environ), cwd=files.folder, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            begun = time.monotonic()
            while time.monotonic() < begun + 5 and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(2)
            output, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert json.loads(output)["notes"][0].startswith("stopped after")
