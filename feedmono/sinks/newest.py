"""The newest records of a sink from a span of time, without reading all that it holds.

For looks at a running instance: what `feedmono.sinks.base.Source` reads is everything, for hours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

from fastavro.validation import ValidationError, validate

from feedmono.avro import Schema
from feedmono.sinks.base import StoredRecord

_REASON_CHARS = 200


class Newest(ABC):
    """Reads back what a sink of the same configuration stored of one exchange lately."""

    @abstractmethod
    def schemas(self) -> Mapping[str, Schema]:
        """What every trade must conform to, parsed, and each one's name for people.

        :raises Exception: what the source could not do.
        """

    @abstractmethod
    def read(self, kind: str, since_s: float, until_s: float, limit: int) -> Iterator[StoredRecord]:
        """About *limit* records of that kind (``trades``, ``raw``) that were stored from
        *since_s* to *until_s* (Unix time), by and large the newest ones; a few from outside that
        time may be among them. Fewer than *limit*: those are all. What can't be decoded is a record
        with an error.

        :raises Exception: what the source could not do.
        """


def departure(record: Mapping[str, object], schema: Schema) -> str:
    """How a record departs from a parsed schema; empty if it does not."""
    try:
        validate(record, schema)
    except ValidationError as error:
        return " ".join(str(error).split())[:_REASON_CHARS]
    return ""
