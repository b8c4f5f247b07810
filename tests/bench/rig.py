"""Starts what a benchmark takes: the broker, its topics, the exchanges and the handlers. All of
it ends with the blocks that it is used in.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import mmap
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from broker import (
    Kafka,
    MockKafka,
    MockRegistry,
    Registry,
    Server,
    Unavailable,
    kafka_jars,
    registry_jar,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from instance import Instance
from sim import Sim, wait_until

from bench import baseline, usage
from bench.latency import Latencies
from bench.model import SATURATION, Case

ROOT = Path(__file__).resolve().parents[2]
_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
_KINDS = (".raw", "", ".dead", ".coverage")
READY_LIMIT_S = 60.0
# What a handler that can't keep up leaves unread, the exchange keeps rather than cut it off.
_SEND_BUFFER_MIB = 512
_numbers = itertools.count(1)


class Broker:
    """Kafka and a registry, real or standing in."""

    def __init__(self, bootstrap_servers: str, registry_url: str, mock: MockKafka | None) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.registry_url = registry_url
        self._mock = mock
        self.name = f"the broker at {bootstrap_servers}"

    def make_topics(self, topic: str, partitions: int) -> None:
        """Those of one exchange in one run, with the broker's own time in every message."""
        names = [topic + kind for kind in _KINDS]
        if self._mock is not None:
            self._mock.create_topics(names)
            return
        wanted = [
            NewTopic(name, partitions if kind in (".raw", "") else 1, 1, config=_APPEND_TIME)
            for name, kind in zip(names, _KINDS, strict=True)
        ]
        # The client must live as long as its requests: they fail when it goes.
        admin = self._admin()
        for future in admin.create_topics(wanted, request_timeout=30).values():
            future.result(30)

    def drop_topics(self, topic: str) -> None:
        """So that what was read back leaves its room to the next run."""
        if self._mock is None:
            names = [topic + kind for kind in _KINDS]
            admin = self._admin()
            for future in admin.delete_topics(names, request_timeout=30).values():
                future.result(30)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})


@contextlib.contextmanager
def broker(addresses: tuple[str, str] | None = None, mock: bool = False) -> Iterator[Broker]:
    """A broker and a registry.

    :param addresses: of some that run already: bootstrap servers and the registry's URL.
    :param mock: librdkafka's mock cluster, even where the real ones can be had.
    """
    with contextlib.ExitStack() as stack:
        if addresses is not None:
            yield Broker(*addresses, None)
            return
        reason = "as asked for"
        if not mock:
            try:
                kafka_jars()
                registry_jar()
            except Unavailable as error:
                reason = str(error).splitlines()[0]
            else:
                kafka = stack.enter_context(Kafka())
                registry = stack.enter_context(Registry())
                real = Broker(kafka.bootstrap_servers, registry.url, None)
                real.name = "Apache Kafka and Apicurio Registry"
                yield real
                return
        stand_in, schemas = MockKafka(), MockRegistry()
        stack.enter_context(stand_in)
        stack.enter_context(schemas)
        mocked = Broker(stand_in.bootstrap_servers, schemas.url, stand_in)
        mocked.name = f"librdkafka's mock cluster, which costs less than Kafka ({reason})"
        yield mocked


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run keeps its things, all of them temporary."""

    folder: Path
    rings: Path
    """In memory, as feedmono's default is."""


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """An empty one, gone afterwards."""
    memory = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="feedmono-bench-"))
        rings = stack.enter_context(
            tempfile.TemporaryDirectory(
                prefix="feedmono-bench-", dir=memory if memory.is_dir() else None
            )
        )
        yield Place(Path(folder), Path(rings))


def simulators(case: Case, trades: int) -> list[Sim]:
    """The case's exchanges, not started; they make no trade until they are told a rate."""
    common = ["--rate", "0", "--hold", "--no-limits", "--send-buffer", str(_SEND_BUFFER_MIB)]
    common += ["--period-ms", str(case.period_ms)]
    if case.rate == SATURATION:
        common += ["--limit", str(trades), "--prerender", str(trades)]
    found = []
    for exchange in case.exchanges:
        more = ["--symbols", ",".join(made_symbols(case))] if case.symbols else []
        found.append(Sim(exchange, *common, *more))
    return found


def made_symbols(case: Case) -> list[str]:
    """So many symbols as the case wants, each with its market."""
    return [f"C{number:04}USDT=C{number:04}/USDT" for number in range(case.symbols)]


class Handler(ABC):
    """Who is measured: a program that runs between the exchanges and the sink."""

    name: str
    exchanges: Sequence[str] = ()

    @abstractmethod
    def start(self, case: Case, where: Place, target: Broker | None, sims: Sequence[Sim]) -> None:
        """Starts it; returns when it would take trades at once."""

    @abstractmethod
    def pids(self) -> list[int]:
        """All its processes."""

    @abstractmethod
    def delivered(self) -> int:
        """Trades that the sink has acknowledged."""

    @abstractmethod
    def acknowledged(self) -> Callable[[], Latencies]:
        """Marks this moment; what it gives tells the durations from the socket to the
        acknowledgement of the trades acknowledged since."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it in order: what it has is delivered."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it at once, if it runs."""

    def topic(self, exchange: str) -> str:
        """Its topic of normalized trades."""
        return f"{self.prefix}.{exchange}"

    def data(self, exchange: str) -> Path:
        """Its folder of files."""
        return self.folder / exchange

    prefix: str = ""
    folder: Path = Path()


class Feedmono(Handler):
    """A checkout's feedmono."""

    def __init__(self, root: Path = ROOT, name: str = "feedmono") -> None:
        self.name = name
        self.root = root
        self._instance: Instance | None = None
        self._counters: list[Any] = []
        self.module: ModuleType = _counters_of(root)
        self.twin = what_runs(root)
        """Whether its hot loops are native."""

    def start(self, case: Case, where: Place, target: Broker | None, sims: Sequence[Sim]) -> None:
        self.prefix = f"bench{os.getpid()}x{next(_numbers)}"
        self.exchanges = case.exchanges
        variables: dict[str, object] = {
            "RING_DIR": where.rings,
            "RING_CAPACITY": "64 MiB",
            "FILES_SYNC_INTERVAL": "1 s",
            "SINK": case.sink,
        }
        if target is not None:
            for exchange in case.exchanges:
                target.make_topics(self.topic(exchange), case.partitions)
            variables |= {
                "KAFKA_BOOTSTRAP_SERVERS": target.bootstrap_servers,
                "SCHEMA_REGISTRY_URL": target.registry_url,
                "TOPIC_PREFIX": self.prefix,
            }
        if case.linger_ms is not None:
            variables["LINGER"] = f"{case.linger_ms:g} ms"
        if case.symbols:
            symbols = ",".join(each.partition("=")[0] for each in made_symbols(case))
            variables |= {f"{e.upper()}_SYMBOLS": symbols for e in case.exchanges}
        instance = Instance(where.folder / "feedmono", *sims, **variables)
        instance.environ = {**instance.environ, "PYTHONPATH": str(self.root)}
        self.folder = instance.data
        # Before it starts: whatever goes wrong from here on, it is killed.
        self._instance = instance
        instance.start()
        self._open_counters(where.rings)

    def _open_counters(self, rings: Path) -> None:
        pages = [next(rings.glob(f"*-{exchange}.counters")) for exchange in self.exchanges]
        self._counters = [self.module.Counters(page, True) for page in pages]
        field = self.module.Field
        wait_until(
            lambda: all(page[field.SINK_READY] == 1 for page in self._counters),
            bool,
            READY_LIMIT_S,
        )

    @property
    def instance(self) -> Instance:
        assert self._instance is not None
        return self._instance

    def pids(self) -> list[int]:
        return usage.tree(self.instance.pid)

    def delivered(self) -> int:
        return sum(self.counts("DELIVERED_TRADES"))

    def counts(self, field: str) -> list[int]:
        """A counter's value, by exchange."""
        at = self.module.Field[field]
        return [int(page[at]) for page in self._counters]

    def buckets(self) -> list[int]:
        """Of its own histogram of deliveries, all exchanges together."""
        kind = self.module.Histogram.DELIVERY
        each = [page.buckets(kind) for page in self._counters]
        return [sum(column) for column in zip(*each, strict=True)]

    def acknowledged(self) -> Callable[[], Latencies]:
        before = self.buckets()

        def since() -> Latencies:
            found = Latencies()
            new = [now - then for now, then in zip(self.buckets(), before, strict=True)]
            found.add_buckets(self.module.BOUNDS_S, new)
            return found

        return since

    def stop(self) -> None:
        if (status := self.instance.stop()) != 0:
            raise RuntimeError(f"{self.name} ended with {status}: {self.instance.tail()}")

    def kill(self) -> None:
        if self._instance is not None:
            self._instance.kill()
            self._instance = None


def _counters_of(root: Path) -> ModuleType:
    """A checkout's own idea of where in the page a counter lies."""
    path = root / "feedmono" / "counters.py"
    spec = importlib.util.spec_from_file_location(f"counters_{abs(hash(root))}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"{root} is no checkout of feedmono: {path} is missing")
    module = importlib.util.module_from_spec(spec)
    # Where its dataclasses look for it.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_ASK_WHAT_IT_IS = """
import feedmono
print(feedmono.__file__)
try:
    from feedmono import native
except ImportError:
    print("pure Python")
else:
    print(native.describe())
"""


def what_runs(root: Path) -> str:
    """Whether the checkout's hot loops are native.

    :raises ValueError: another checkout's code would run in its place.
    """
    environ = {**os.environ, "PYTHONPATH": str(root)}
    told = subprocess.run(
        [sys.executable, "-c", _ASK_WHAT_IT_IS],
        env=environ,
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    if not Path(told[0]).is_relative_to(root):
        raise ValueError(f"instead of {root}'s feedmono, {told[0]} would be measured")
    return told[1]


class _Program(Server):
    """The baseline handler's process."""

    def __init__(self, arguments: Sequence[str], figures: Path) -> None:
        super().__init__("baseline")
        self._arguments = arguments
        self._figures = figures

    def command(self) -> list[str]:
        return [sys.executable, str(Path(baseline.__file__).resolve()), *self._arguments]

    def ready(self) -> bool:
        return self._figures.exists() and self._figures.stat().st_size == baseline.FIGURES_BYTES

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> int:
        self._signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(30)


class Baseline(Handler):
    """The obvious program, `bench.baseline`."""

    name = "baseline"

    def __init__(self) -> None:
        self._program: _Program | None = None
        self._count: memoryview = memoryview(bytes(8)).cast("Q")
        self._durations_us: memoryview = memoryview(bytes(4)).cast("I")

    def start(self, case: Case, where: Place, target: Broker | None, sims: Sequence[Sim]) -> None:
        (sim,) = sims
        self.prefix = f"bench{os.getpid()}x{next(_numbers)}"
        self.exchanges = case.exchanges
        self.folder = where.folder / "baseline"
        figures = where.rings / "baseline.figures"
        arguments = ["--ws-url", sim.ws_url, "--rest-url", sim.rest_url]
        arguments += ["--figures", str(figures), "--symbols", ",".join(sim.state()["symbols"])]
        if target is None:
            arguments += ["--folder", str(self.data(sim.exchange))]
        else:
            target.make_topics(self.topic(sim.exchange), case.partitions)
            arguments += ["--topic", self.topic(sim.exchange)]
            arguments += ["--bootstrap", target.bootstrap_servers]
            arguments += ["--registry", target.registry_url]
        if case.linger_ms is not None:
            arguments += ["--linger-ms", f"{case.linger_ms:g}"]
        self._program = _Program(arguments, figures)
        self._program.start()
        self._look(figures)

    def _look(self, path: Path) -> None:
        # Kept open by the mapping; the handler writes, and nobody else.
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), baseline.FIGURES_BYTES, access=mmap.ACCESS_READ)
        whole = memoryview(mapped)
        self._count, self._durations_us = whole[:8].cast("Q"), whole[8:].cast("I")

    def pids(self) -> list[int]:
        assert self._program is not None
        return usage.tree(self._program.pid)

    def delivered(self) -> int:
        return int(self._count[0])

    def acknowledged(self) -> Callable[[], Latencies]:
        begin = self.delivered()

        def since() -> Latencies:
            found = Latencies()
            found.add_all(self._durations_us[begin : self.delivered()])
            return found

        return since

    def stop(self) -> None:
        assert self._program is not None
        if (status := self._program.stop()) != 0:
            tail = self._program.output.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the baseline handler ended with {status}: {tail}")

    def kill(self) -> None:
        if self._program is not None:
            self._program.kill()
            shutil.rmtree(self._program.folder, ignore_errors=True)
            self._program = None


@contextlib.contextmanager
def started(
    handler: Handler, case: Case, where: Place, target: Broker | None, sims: Sequence[Sim]
) -> Iterator[Handler]:
    """The handler, connected to every symbol of every exchange; killed when the block is left."""
    try:
        handler.start(case, where, target, sims)
        for sim in sims:
            sim.wait(lambda seen: set(seen["subscriptions"]) == set(seen["symbols"]), READY_LIMIT_S)
        yield handler
    finally:
        handler.kill()


def now_us() -> int:
    """Unix time."""
    return time.time_ns() // 1000
