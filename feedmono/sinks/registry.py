"""The schema registry: a subject's compatibility, a schema's id, a schema by its id.

The only file that knows the registry's client. It speaks Confluent's API, which Apicurio,
Karapace and others serve as well. A private certificate authority is named by the variable
``SSL_CERT_FILE``; user and password may stand in the URL.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit, urlunsplit

from confluent_kafka.schema_registry import (
    Schema,
    SchemaRegistryClient,
    SchemaRegistryError,
)

from feedmono import avro
from feedmono.config import KafkaConfig
from feedmono.log import Log

COMPATIBILITY = "BACKWARD"
# Levels that promise what BACKWARD promises, and more: whoever set one keeps it.
_AT_LEAST = frozenset({COMPATIBILITY, "BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"})

_TIMEOUT_S = 2.0
_MAX_ID = 2**31 - 1
_MAX_SCHEMAS = 100
_NOT_FOUND = 404
_CONFLICT = 409
# What a registry answers to a client that may read and not write.
_READ_ONLY = frozenset({401, 403, 405, 422})


class RegistryTrouble(Exception):
    """The registry is out of reach or refuses something; its text is for the operator."""


class NoSuchSchema(RegistryTrouble):
    """The registry knows no schema of that id."""


class SchemaRegistry:
    """A registry at a URL. Every request ends within about two seconds, once tried."""

    def __init__(self, url: str) -> None:
        self.name = _without_secrets(url)
        try:
            self._client = SchemaRegistryClient(
                {"url": url, "timeout": _TIMEOUT_S, "max.retries": 0}
            )
        except (ValueError, TypeError, OSError) as error:
            raise RegistryTrouble(f"schema registry {self.name}: {error}") from error

    def close(self) -> None:
        self._client.close()

    def register(self, subject: str, schema_text: str, log: Log) -> int:
        """The id of the schema under *subject*, where it is registered if it was not.

        The subject's compatibility becomes BACKWARD first, so that the registry itself refuses a
        schema that would break its consumers. A level that promises more is kept.

        :raises RegistryTrouble: no answer, or the schema is refused.
        """
        self._require_compatibility(subject, log)
        schema = Schema(json.dumps(json.loads(schema_text), separators=(",", ":")), "AVRO")
        with self._asking(f"does not register the schema of {subject}"):
            number = self._known_id(subject, schema)
            if number is None:
                number = self._new_id(subject, schema)
                log.info("schema registered", subject=subject, id=number)
        if not isinstance(number, int) or not 0 <= number <= _MAX_ID:
            raise RegistryTrouble(
                f"schema registry {self.name} gave {number!r} as the id of {subject}: a number "
                "of 31 bits was expected"
            )
        return number

    def schema(self, number: int) -> str:
        """The text of the schema with that id.

        :raises NoSuchSchema: there is none.
        :raises RegistryTrouble: no answer.
        """
        with self._asking(f"gives no schema {number}"):
            try:
                text = self._client.get_schema(number).schema_str
            except SchemaRegistryError as error:
                if error.http_status_code != _NOT_FOUND:
                    raise
                raise NoSuchSchema(
                    f"schema registry {self.name} knows no schema {number}"
                ) from error
        if text is None:
            raise RegistryTrouble(f"schema registry {self.name}: schema {number} has no text")
        return text

    def default_compatibility(self) -> str:
        """The level of subjects that have none of their own. :raises RegistryTrouble: no answer."""
        with self._asking("does not tell its default compatibility"):
            return self._client.get_compatibility()

    def _require_compatibility(self, subject: str, log: Log) -> None:
        with self._asking(f"does not tell the compatibility of {subject}"):
            level = self._level(subject)
        if level in _AT_LEAST:
            return
        with self._asking(f"does not set the compatibility of {subject}"):
            try:
                self._client.set_compatibility(subject, COMPATIBILITY)
            except SchemaRegistryError as error:
                if error.http_status_code not in _READ_ONLY:
                    raise
                # Where others manage the schemas, the id may still be had.
                log.warning("compatibility not set", subject=subject, now=level, error=str(error))
            else:
                log.info("compatibility set", subject=subject, now=COMPATIBILITY, before=level)

    def _level(self, subject: str) -> str | None:
        """The subject's own level; None: none, or not to be told."""
        try:
            return self._client.get_compatibility(subject)
        except SchemaRegistryError as error:
            if error.http_status_code in _READ_ONLY | {_NOT_FOUND}:
                return None
            raise

    def _known_id(self, subject: str, schema: Schema) -> int | None:
        try:
            return self._client.lookup_schema(subject, schema).schema_id
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND:
                return None
            raise

    def _new_id(self, subject: str, schema: Schema) -> int:
        try:
            return self._client.register_schema(subject, schema)
        except SchemaRegistryError as error:
            if error.http_status_code != _CONFLICT:
                raise
            raise RegistryTrouble(
                f"schema registry {self.name} refuses this version's schema for {subject}: it "
                "is incompatible with what is registered there. Nothing is produced: use another "
                f"kafka.topic_prefix, or settle it in the registry. It says: {error.error_message}"
            ) from error

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turns whatever the client, or the HTTP client below it, raises into a trouble."""
        try:
            yield
        except RegistryTrouble:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise RegistryTrouble(f"schema registry {self.name} {what}: {reason}") from error


class KnownSchemas:
    """The schemas whose ids records carry, asked for once each."""

    def __init__(
        self,
        config: KafkaConfig,
        prepare: Callable[[avro.Schema], avro.Schema] = lambda schema: schema,
    ) -> None:
        """:param prepare: makes of a parsed schema what is kept of it."""
        self._url = config.schema_registry_url
        self._prepare = prepare
        self._registry: SchemaRegistry | None = None
        self._known: dict[int, avro.Schema | None] = {}

    def close(self) -> None:
        if self._registry is not None:
            self._registry.close()

    def schema(self, number: int) -> avro.Schema | None:
        """The schema with that id; None if the registry does not know it as one of Avro.

        :raises RegistryTrouble: no answer.
        """
        if number not in self._known:
            if self._registry is None:
                self._registry = SchemaRegistry(self._url)
            if len(self._known) >= _MAX_SCHEMAS:
                self._known.clear()
            try:
                schema = avro.parse_schema(self._registry.schema(number))
                self._known[number] = self._prepare(schema)
            except (NoSuchSchema, avro.SchemaError):
                self._known[number] = None
        return self._known[number]


def _without_secrets(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def probe_registry(config: KafkaConfig) -> str:
    """Asks the registry for its default compatibility: a line for the operator.

    :raises RegistryTrouble: it can't be reached or does not speak Confluent's API.
    """
    registry = SchemaRegistry(config.schema_registry_url)
    try:
        level = registry.default_compatibility()
    finally:
        registry.close()
    return f"schema registry at {registry.name} answers; its default compatibility is {level}"
