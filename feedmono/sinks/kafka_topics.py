"""The topics of one exchange: their names, their creation, the largest batch each one takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but not marked so
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from feedmono.config import KafkaConfig
from feedmono.log import Log
from feedmono.sinks.kafka_client import (
    REQUESTS_LIMIT_S,
    BrokerTrouble,
    ClientLog,
    describe,
    properties,
)

DEFAULT_LIMIT_BYTES = 1_048_588
"""``max.message.bytes`` of a topic, unless broker or topic say otherwise (Kafka 0.11 to 4.1)."""

# A topic may take more; feedmono's frames, 4 MiB by default, and its producer's queue don't.
_MOST_BYTES = 32 << 20
_BROKER_DEFAULT_REPLICATION = -1
_LIMIT = "max.message.bytes"


class Topics(NamedTuple):
    """The names of an exchange's topics."""

    raw: str
    trades: str
    dead: str
    coverage: str

    @classmethod
    def of(cls, prefix: str, exchange: str) -> Topics:
        base = f"{prefix}.{exchange}"
        return cls(f"{base}.raw", base, f"{base}.dead", f"{base}.coverage")


class Limits(NamedTuple):
    """The largest record batch that each topic of entries takes, in bytes."""

    raw: int = DEFAULT_LIMIT_BYTES
    trades: int = DEFAULT_LIMIT_BYTES
    dead: int = DEFAULT_LIMIT_BYTES


class Creation:
    """Topics on their way into being, without waiting for them. One that is there already is
    fine."""

    def __init__(
        self, admin: AdminClient, config: KafkaConfig, topics: Topics, names: Iterable[str]
    ) -> None:
        # The client must live as long as its requests: they fail when it goes.
        self._admin = admin
        many = {topics.raw, topics.trades}
        wanted = [
            NewTopic(
                name,
                config.partitions if name in many else 1,
                _BROKER_DEFAULT_REPLICATION,
                config={"cleanup.policy": "compact"} if name == topics.coverage else {},
            )
            for name in names
        ]
        self._futures: Mapping[str, Future[Any]] = admin.create_topics(
            wanted, request_timeout=REQUESTS_LIMIT_S
        )

    @property
    def done(self) -> bool:
        return all(future.done() for future in self._futures.values())

    def problems(self, deadline: float) -> list[str]:
        """Why which topic could not be created; waits for the answers until *deadline*."""
        problems = []
        for name, future in self._futures.items():
            try:
                future.result(_left_s(deadline))
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    problems.append(
                        f"topic {name} is missing and can't be created: {describe(error)}"
                    )
            except LateError:
                problems.append(f"topic {name} is missing, and the broker does not create it")
        return problems


def admin_client(config: KafkaConfig, client_log: ClientLog) -> AdminClient:
    """A client for requests about topics. :raises KafkaException: a property is invalid."""
    return AdminClient(properties(config, "feedmono-admin", client_log))


def prepare(config: KafkaConfig, topics: Topics, log: Log) -> Limits:
    """Creates the topics that are missing and reads how much each one takes. Blocks for some
    seconds at most.

    :raises BrokerTrouble: the broker is out of reach, or a topic can't be created.
    :raises KafkaException: a property is invalid.
    """
    client_log = ClientLog(log)
    admin = admin_client(config, client_log)
    deadline = time.monotonic() + REQUESTS_LIMIT_S
    known = _list_topics(config, admin, client_log)
    missing = [name for name in topics if name not in known]
    if missing:
        if problems := Creation(admin, config, topics, missing).problems(deadline):
            raise BrokerTrouble("; ".join(problems))
        log.info("created topics", topics=missing, partitions_of_trades=config.partitions)
    return Limits(*_read_limits(admin, (topics.raw, topics.trades, topics.dead), log, deadline))


def _list_topics(config: KafkaConfig, admin: AdminClient, client_log: ClientLog) -> set[str]:
    try:
        return set(admin.list_topics(timeout=REQUESTS_LIMIT_S).topics)
    except KafkaException as error:
        admin.poll(0)
        reason = client_log.last_error or describe(error)
        raise BrokerTrouble(
            f"no answer from the Kafka broker {config.bootstrap_servers}: {reason}"
        ) from error


def _read_limits(admin: AdminClient, names: Iterable[str], log: Log, deadline: float) -> list[int]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    futures = admin.describe_configs(resources, request_timeout=_left_s(deadline))
    limits = []
    for resource in resources:
        try:
            entries = futures[resource].result(_left_s(deadline))
            limits.append(min(int(entries[_LIMIT].value), _MOST_BYTES))
        except (KafkaException, LateError, KeyError, ValueError) as error:
            # Not every user may describe a topic's configuration, and not every broker can.
            log.warning(
                "a topic's limit is unknown, the default is assumed",
                topic=resource.name,
                limit_bytes=DEFAULT_LIMIT_BYTES,
                error=describe(error),
            )
            limits.append(DEFAULT_LIMIT_BYTES)
    return limits


def _left_s(deadline: float) -> float:
    """How long to wait; a moment in any case, for answers that are there already."""
    return max(0.1, deadline - time.monotonic())


def probe_broker(config: KafkaConfig) -> str:
    """Asks the broker who it is: a line for the operator.

    :raises BrokerTrouble: it can't be reached, or a property is invalid.
    """
    client_log = ClientLog(None)
    try:
        admin = admin_client(config, client_log)
    except KafkaException as error:
        raise BrokerTrouble(f"kafka.properties: {describe(error)}") from error
    known = _list_topics(config, admin, client_log)
    ours = sum(name.startswith(f"{config.topic_prefix}.") for name in known)
    return (
        f"Kafka at {config.bootstrap_servers} answers; "
        f"{ours} topics begin with {config.topic_prefix}."
    )
