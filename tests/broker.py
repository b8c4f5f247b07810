"""A real Apache Kafka and a real schema registry for tests, started here and ended with them.

``python tests/broker.py`` starts both and prints their addresses as one line of JSON;
``python tests/broker.py --mock`` starts librdkafka's mock cluster, which stands in for Kafka
where Java or Maven is missing (it knows no ACLs, deletes no topics and cannot be restarted).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

if sys.version_info >= (3, 11):
    from typing import Self
else:
    from typing_extensions import Self

CACHE = Path(__file__).resolve().parent.parent / ".cache"
KAFKA_JARS = (("org.apache.kafka", "kafka_2.13", "4.1.0"), ("org.slf4j", "slf4j-nop", "1.7.36"))
REGISTRY_ARCHIVE = "io.apicurio:apicurio-registry-app:2.6.13.Final:tar.gz:all"

# C1 only: a broker that lives for minutes is up a second sooner and takes half the CPU.
JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
FETCH_LIMIT_S = 600.0
START_LIMIT_S = 60.0

POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>feedmono</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <packaging>pom</packaging>
  <dependencies>{dependencies}</dependencies>
</project>
"""
DEPENDENCY = (
    "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"
)


class Unavailable(Exception):
    """The real thing can't be had on this machine; the text says why."""


def _maven(folder: Path, *arguments: str) -> None:
    """Runs Maven in *folder*; its output is the error's text if it fails."""
    done = subprocess.run(
        ["mvn", "-q", "-B", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FETCH_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise Unavailable(
            f"mvn {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
        )


def _fetched(name: str, content: str, fetch: Callable[[Path], None]) -> Path:
    """The folder ``.cache/<name>``, complete: fetched once, by one process at a time. *content*
    names what belongs in it and is written into the marker file, last."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    CACHE.mkdir(exist_ok=True)
    folder, marker = CACHE / name, CACHE / name / "complete"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (marker.is_file() and marker.read_text() == content):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            try:
                fetch(folder)
            except subprocess.TimeoutExpired as error:
                raise Unavailable(f"Maven did not end within {error.timeout:.0f} s") from error
            marker.write_text(content)
    return folder


def kafka_jars() -> Path:
    """The folder of Kafka's jars. :raises Unavailable: they can't be had."""

    def fetch(folder: Path) -> None:
        dependencies = "".join(DEPENDENCY.format(*jar) for jar in KAFKA_JARS)
        (folder / "pom.xml").write_text(POM.format(dependencies=dependencies))
        _maven(folder, "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'jars'}")

    return _fetched("kafka", f"{KAFKA_JARS}", fetch) / "jars"


def registry_jar() -> Path:
    """Apicurio's runnable jar. :raises Unavailable: it can't be had."""

    def fetch(folder: Path) -> None:
        _maven(
            folder,
            "dependency:unpack",
            f"-Dartifact={REGISTRY_ARCHIVE}",
            f"-DoutputDirectory={folder / 'app'}",
        )

    app = _fetched("registry", REGISTRY_ARCHIVE, fetch) / "app"
    return next(app.glob("apicurio-registry-app-*-runner.jar"))


def free_port() -> int:
    """A free loopback port below the range of outgoing connections: a client that tries a
    stopped server's port again and again would else end up connected to itself."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def eventually(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Waits until *condition* holds. :raises TimeoutError: not within *limit_s*."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.05)


def _die_with_parent() -> None:
    """In the child: SIGKILL as soon as the thread that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server:
    """A process of its own group on a port of its own, which can be stopped, killed and started
    again on the same port. Start it from a thread that lives as long as it shall."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stands_in_because = ""
        """Why this is not the real thing, if it is not."""
        self.folder = Path(tempfile.mkdtemp(prefix=f"feedmono-{name}-"))
        self.output = self.folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The arguments of the process."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it serves."""
        raise NotImplementedError

    def start(self) -> Self:
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        try:
            eventually(self._ready_or_dead, START_LIMIT_S, f"{self.name} is up")
        except BaseException:
            self.kill()
            raise
        return self

    def _ready_or_dead(self) -> bool:
        assert self._process is not None
        if (status := self._process.poll()) is not None:
            tail = self.output.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"{self.name} ended with {status}:\n{tail}")
        return self.ready()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(30)

    def stop_signal(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing from now on."""
        self._signal(signal.SIGSTOP)
        eventually(self._is_stopped, 10, f"every thread of {self.name} is stopped")

    def _is_stopped(self) -> bool:
        if not self.running:
            return True
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task")
        return all(" T " in (task / "stat").read_text() for task in tasks.iterdir())

    def continue_signal(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Killed if it runs, then started on the same port with the data it had."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Kafka(Server):
    """Apache Kafka, one node, without automatic topics. Denying ACLs work; everything that no
    ACL speaks of is allowed."""

    def __init__(self, properties: Mapping[str, str] | None = None) -> None:
        jars = kafka_jars()
        super().__init__("kafka")
        self.port, self._controller_port = free_port(), free_port()
        self._classpath = f"{jars}/*"
        self._properties = self.folder / "server.properties"
        self._properties.write_text(
            "".join(f"{k}={v}\n" for k, v in (self._defaults() | dict(properties or {})).items())
        )
        self._java("kafka.tools.StorageTool", "format", "-t", "ZmVlZG1vbm8tdGVzdHMtMQ")

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _defaults(self) -> dict[str, str]:
        broker, controller = self.bootstrap_servers, f"127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{broker},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{broker}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "auto.create.topics.enable": "false",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
            "offsets.topic.num.partitions": "4",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A killed broker may register again only when its old session is over (9 s).
            "broker.session.timeout.ms": "2500",
            "broker.heartbeat.interval.ms": "500",
            # A deleted topic's files go soon: 80 partitions a topic pair fill a small disk.
            "log.segment.delete.delay.ms": "1000",
        }

    def _java(self, main: str, *arguments: str) -> None:
        done = subprocess.run(
            [*JAVA, "-cp", self._classpath, main, *arguments, "-c", str(self._properties)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{main} ended with {done.returncode}:\n{done.stdout[-4000:]}")

    def command(self) -> list[str]:
        return [*JAVA, "-Xmx512m", "-cp", self._classpath, "kafka.Kafka", str(self._properties)]

    def ready(self) -> bool:
        return _lists_topics(self.bootstrap_servers)

    def admin(self) -> AdminClient:
        """A client for what a test does to the broker behind feedmono's back."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def create_topics(
        self, names: Iterable[str], partitions: int = 4, config: Mapping[str, str] | None = None
    ) -> None:
        topics = [NewTopic(n, partitions, 1, config=dict(config or {})) for n in names]
        admin = self.admin()
        for future in admin.create_topics(topics, request_timeout=30).values():
            future.result(30)


class MockKafka(Server):
    """librdkafka's mock cluster in a process of its own. Its topics must be created here."""

    def __init__(self) -> None:
        super().__init__("mock-kafka")
        self.bootstrap_servers = ""

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).resolve()), "--mock"]

    def ready(self) -> bool:
        line, newline, _ = self.output.read_text().partition("\n")
        if newline:
            self.bootstrap_servers = json.loads(line)["bootstrap_servers"]
        return bool(newline) and _lists_topics(self.bootstrap_servers)

    def admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})

    def create_topics(
        self,
        names: Iterable[str],
        partitions: int = 4,
        config: Mapping[str, str] | None = None,
    ) -> None:
        """Asking for a topic's metadata makes it: the mock cluster knows no CreateTopics, and
        *partitions* is always its own default, 4."""
        if config:
            raise Unavailable("the mock cluster knows no topic configuration")
        assert partitions == 4
        producer = Producer(
            {"bootstrap.servers": self.bootstrap_servers, "allow.auto.create.topics": True}
        )
        for name in names:
            producer.list_topics(name, timeout=10)


class Registry(Server):
    """Apicurio Registry, in memory: what was registered is gone after a restart."""

    def __init__(self) -> None:
        self._jar = registry_jar()
        super().__init__("registry")
        self.port = free_port()

    @property
    def url(self) -> str:
        """Confluent's API."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def command(self) -> list[str]:
        options = [f"-Dquarkus.http.port={self.port}", "-Dquarkus.http.host=127.0.0.1"]
        return [*JAVA, "-Xmx256m", *options, "-jar", str(self._jar)]

    def ready(self) -> bool:
        return _answers(f"{self.url}/subjects")


class MockRegistry(Server):
    """`mock_registry.py` in a process of its own."""

    def __init__(self) -> None:
        super().__init__("mock-registry")
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        script = Path(__file__).resolve().with_name("mock_registry.py")
        return [sys.executable, str(script), str(self.port)]

    def ready(self) -> bool:
        return _answers(f"{self.url}/subjects")


def _lists_topics(bootstrap_servers: str) -> bool:
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=1).brokers)
    except KafkaException:
        return False


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def mock_cluster() -> Iterator[str]:
    """The mock cluster in this process; gives its bootstrap servers."""
    producer = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def main(arguments: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    stop, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    with contextlib.ExitStack() as stack:
        if "--mock" in arguments:
            addresses = {"bootstrap_servers": stack.enter_context(mock_cluster())}
        else:
            kafka = stack.enter_context(Kafka())
            registry = stack.enter_context(Registry())
            addresses = {
                "bootstrap_servers": kafka.bootstrap_servers,
                "schema_registry_url": registry.url,
            }
        print(json.dumps(addresses), flush=True)
        select.select([stop], [], [])


if __name__ == "__main__":
    main(sys.argv[1:])
