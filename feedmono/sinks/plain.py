"""Reads Avro's times as the numbers that they are: to make datetimes of them takes longer than a
third of reading a trade."""

from __future__ import annotations

from feedmono.avro import Schema


def plain(schema: Schema) -> Schema:
    """A parsed schema without its logical types."""
    if isinstance(schema, dict):
        return {key: plain(value) for key, value in schema.items() if key != "logicalType"}
    return [plain(each) for each in schema] if isinstance(schema, list) else schema
