"""What tests share: the broker and the registry of the session."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import structlog
from broker import Kafka, MockKafka, MockRegistry, Registry, Server, Unavailable
from hypothesis import settings

Real = TypeVar("Real", bound=Server)
StandIn = TypeVar("StandIn", bound=Server)

# The same examples in each run, however slow the machine is just now.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="ten times as many kills, frames and seeds"
    )


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether the long counts are wanted: ``scripts/test --full``."""
    return bool(pytestconfig.getoption("--full"))


def pytest_report_header() -> str:
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if missing:
        return f"broker: librdkafka's mock cluster, because {' and '.join(missing)} is missing"
    return "broker: Apache Kafka and Apicurio Registry, the real ones"


def _real_or_not(real: Callable[[], Real], stand_in: Callable[[], StandIn]) -> Real | StandIn:
    """The real server, not started yet; where it can't be had, its stand-in, except in CI."""
    try:
        return real()
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI tests against the real broker and registry: {error}", pytrace=False)
        server = stand_in()
        server.stands_in_because = str(error)
    return server


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """No test logs to where another one sent the log."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka | MockKafka]:
    """The session's broker. Who stops or kills it starts it again."""
    with _real_or_not(Kafka, MockKafka) as server:
        yield server


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry | MockRegistry]:
    """The session's schema registry. Who stops or kills it starts it again."""
    with _real_or_not(Registry, MockRegistry) as server:
        yield server


@pytest.fixture
def real_kafka(kafka: Kafka | MockKafka) -> Kafka:
    """The session's broker, for tests that a mock cluster can't serve."""
    if not isinstance(kafka, Kafka):
        pytest.skip(f"needs the real Apache Kafka: {kafka.stands_in_because}")
    return kafka


@pytest.fixture
def real_registry(registry: Registry | MockRegistry) -> Registry:
    """The session's registry, for tests that need one that compares schemas."""
    if not isinstance(registry, Registry):
        pytest.skip(f"needs the real Apicurio Registry: {registry.stands_in_because}")
    return registry


@pytest.fixture
def topic_prefix() -> str:
    """A prefix that no other test's topics have."""
    return f"test{uuid.uuid4().hex[:12]}.trades"
