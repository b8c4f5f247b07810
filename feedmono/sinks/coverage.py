"""Coverage as an Avro record: what of a symbol is stored for good."""

from __future__ import annotations

import io

import fastavro

from feedmono import avro
from feedmono.avro import Schema
from feedmono.sinks.base import MAX_COVERAGE_HOLES, Coverage


class CoverageEncoder:
    """Encodes what is complete of an exchange's symbols, by ``schemas/coverage.avsc``.

    It holds an array, and there are few of them: fastavro writes them.
    """

    def __init__(self, exchange: str) -> None:
        self.schema: Schema = avro.load_schema("coverage")
        self._parsed = fastavro.parse_schema(self.schema)
        self._exchange = exchange
        version = next(f for f in self.schema["fields"] if f["name"] == "schema_version")
        self._version: str = version["default"]

    def encode(self, coverage: Coverage) -> bytes:
        """The record, of the open holes the first `MAX_COVERAGE_HOLES`."""
        record = {
            "schema_version": self._version,
            "exchange": self._exchange,
            **coverage._asdict(),
            "open_holes": [
                {**hole._asdict(), "since": hole.since_us}
                for hole in coverage.open_holes[:MAX_COVERAGE_HOLES]
            ],
            "as_of": coverage.as_of_us,
        }
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, self._parsed, record)
        return stream.getvalue()
