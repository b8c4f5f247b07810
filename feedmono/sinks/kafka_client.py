"""What every Kafka client of feedmono is made of: its properties, its log, how errors read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from feedmono.config import KafkaConfig
from feedmono.log import Log

# One line per facility and minute: a broker that is gone is news once, not twice a second.
_QUIET_S = 60.0
_MAX_FACILITIES = 100
_DETAILS = re.compile(r"\s*\(after \d+ms in state .*\)$")

REQUESTS_LIMIT_S = 5.0
"""How long the requests of one `open`, or of a probe, may take together."""


class BrokerTrouble(Exception):
    """The broker is out of reach or refuses something; its text is for the operator."""


class ClientLog:
    """Takes librdkafka's log lines and error events, which come out of `poll`."""

    def __init__(
        self,
        log: Log | None,
        on_error: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param log: where lines go; None: nowhere, `last_error` is all that is told."""
        self._log = log
        self._on_error = on_error
        self._clock = clock
        self._quiet_until: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}
        self._code: int | None = None
        self.last_error = ""
        """The first error of its kind since `forget`: stable while an outage lasts."""
        self.fatal = ""
        """Why the client is of no more use, if it is not."""

    def forget(self) -> None:
        """Whatever was wrong is over."""
        self._code = None
        self.last_error = ""

    def log(self, level: int, _pattern: str, *details: str) -> None:
        """One line of librdkafka's log; the signature is that of `logging.Logger.log`."""
        facility = details[0] if details else "?"
        self._say(facility, level, details[-1] if details else "")

    def error(self, error: KafkaError) -> None:
        """librdkafka's ``error_cb``."""
        self._on_error()
        if error.fatal():
            self.fatal = describe(error)
        # "All brokers are down" comes behind the reason why each of them is.
        brokers_down = error.code() == KafkaError._ALL_BROKERS_DOWN
        if error.code() != self._code and not (brokers_down and self.last_error):
            self._code = error.code()
            self.last_error = describe(error)
        self._say(error.name(), 30, describe(error))

    def _say(self, facility: str, level: int, text: str) -> None:
        if self._log is None:
            return
        now = self._clock()
        if now < self._quiet_until.get(facility, 0.0):
            self._suppressed[facility] = self._suppressed.get(facility, 0) + 1
            return
        if len(self._quiet_until) >= _MAX_FACILITIES:
            self._quiet_until.clear()
            self._suppressed.clear()
        self._quiet_until[facility] = now + _QUIET_S
        say = self._log.warning if level >= 30 else self._log.info
        say(
            "kafka client",
            facility=facility,
            message=text,
            suppressed=self._suppressed.pop(facility, 0),
        )


def properties(
    config: KafkaConfig, client_id: str, client_log: ClientLog, **own: str | float | bool
) -> dict[str, Any]:
    """A client's properties: what all clients share, then *own* (dots as underscores), then the
    operator's."""
    return {
        "bootstrap.servers": config.bootstrap_servers,
        "client.id": client_id,
        "socket.keepalive.enable": True,
        "allow.auto.create.topics": False,
        "statistics.interval.ms": 0,
        "reconnect.backoff.max.ms": 2000,
        **{name.replace("_", "."): value for name, value in own.items()},
        **config.properties,
        "logger": client_log,
        "error_cb": client_log.error,
    }


def describe(error: KafkaError | BaseException) -> str:
    """An error in words, with its name, without how long it took."""
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    if isinstance(cause, KafkaError):
        return f"{_DETAILS.sub('', cause.str())} ({cause.name()})"
    return f"{cause}" or type(error).__name__
