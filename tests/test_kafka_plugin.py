"""The plugin by which the Kafka sink hands over batches: where it can't be had, single messages go
their way; with it, a process ends cleanly."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broker import Kafka, eventually
from confluent_kafka import cimpl
from frame_twins import NEEDS_NATIVE
from kafka_batch_rig import Feed, assert_stored, deliver, feed
from kafka_rig import PARTITIONS, AnyKafka, AnyRegistry, Bench, bench, real_bench

from feedmono import log, native
from feedmono.config import KafkaConfig
from feedmono.sinks import kafka_batch
from feedmono.sinks.base import SinkFailed
from feedmono.sinks.kafka import KafkaSink

__all__ = ["bench", "feed", "real_bench"]

pytestmark = NEEDS_NATIVE


def test_without_the_extension_the_sink_takes_entries_and_batches_one_by_one(
    real_bench: Bench, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.add_many(500, trades=2)
    entries, batches = feed.entries(), list(feed.batches())
    monkeypatch.setattr(native, "trades", None)
    real_bench.open()
    assert real_bench.sink._hand_over is None
    real_bench.deliver(entries[: len(batches[0])])
    deliver(real_bench, batches[1:])
    assert_stored(real_bench, entries)


def test_a_plugin_that_can_not_be_loaded_leaves_the_way_of_single_messages(
    bench: Bench, feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_batch, "plugin", lambda: str(tmp_path / "nothing.so"))
    sink = bench.new_sink()
    bench.sink.close()
    bench.sink = sink
    bench.open()
    assert sink._hand_over is None
    feed.add_many(500)
    deliver(bench, feed.batches())
    assert_stored(bench, feed.entries())


def test_another_librdkafka_than_is_known_leaves_the_way_of_single_messages(
    kafka: AnyKafka,
    registry: AnyRegistry,
    topic_prefix: str,
    feed: Feed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(kafka, registry, topic_prefix, tmp_path)
    bench.create_topics()
    assert native.trades is not None
    for library in (str(tmp_path / "not loaded.so"), native.trades.__file__):
        monkeypatch.setattr(cimpl, "__file__", library)
        assert kafka_batch.plugin() is None
    bench.open()
    assert bench.sink._hand_over is None
    feed.add_many(500)
    deliver(bench, feed.batches())
    bench.sink.close()
    assert_stored(bench, feed.entries())


def test_a_plugin_of_the_operators_that_is_not_there_is_named(
    kafka: AnyKafka, registry: AnyRegistry, topic_prefix: str, tmp_path: Path
) -> None:
    missing = {"plugin_library_paths": str(tmp_path / "missing.so")}
    bench = Bench(kafka, registry, topic_prefix, tmp_path, **missing)
    with pytest.raises(SinkFailed, match=r"kafka\.properties: .*missing\.so"):
        bench.sink.open()
    bench.sink.close()


@pytest.mark.parametrize("end", ["closed", "dropped", "left", "forked"])
def test_a_process_ends_cleanly_with_messages_under_way(
    real_bench: Bench, tmp_path: Path, end: str
) -> None:
    bench = real_bench
    bench.create_topics()
    assert isinstance(bench.kafka, Kafka)
    servers, url = bench.config.bootstrap_servers, bench.config.schema_registry_url
    script = str(Path(__file__).resolve())
    child = subprocess.Popen(
        [sys.executable, "-X", "dev", script, servers, url, bench.config.topic_prefix, end],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONMALLOC": "debug",
            "MALLOC_CHECK_": "3",
            "MALLOC_PERTURB_": "165",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert "open\n" in lines
        bench.kafka.stop_signal()
        child.stdin.write("stopped\n")
        child.stdin.flush()
        told, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0, errors
    assert told.splitlines()[-1] == "1200 of 1200 left"
    assert "Error" not in errors, errors


def end_with_messages_under_way(servers: str, url: str, prefix: str, end: str) -> None:
    """The process that ends so: the broker stops once it has said that its sink is open."""
    folder = Path.cwd()
    feed = Feed(folder)
    config = KafkaConfig(servers, url, prefix, PARTITIONS, {})
    sink = KafkaSink(config, "testex", linger_s=0.005, dead_dir=folder, log=log.get())
    assert sink.open()
    feed.add_many(20)
    [first] = feed.batches()
    assert sink.write(first) == 20
    eventually(lambda: sink.poll(0.1) == first.end, 30, "the first batch is stored")
    print("open", flush=True)
    sys.stdin.readline()
    feed.add_many(400, trades=2)
    for batch in feed.batches():
        assert sink.write(batch) == len(batch)
    del batch
    left = sum(pending.left for pending in sink._pendings)
    if end == "closed":
        sink.close()
        feed.add_many(1)
        assert sink.write(next(feed.batches())) == 0
    elif end == "dropped":
        del sink
        gc.collect()
    elif end == "forked":
        child = os.fork()
        if not child:
            sink._pendings.clear()
            gc.collect()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        sink.close()
    print(f"{left} of 1200 left", flush=True)


if __name__ == "__main__":
    end_with_messages_under_way(*sys.argv[1:])
