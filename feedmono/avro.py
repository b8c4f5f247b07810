"""Avro: a schema becomes one straight-line encoder; trades become records of the trade schema.

fastavro spends most of its time on finding out, for each value anew, what the schema says about
it. Here the schema is read once and turned into the Python source of one function, which
writes exactly the same bytes. Two tricks make that source fast:

- An encoding is put together as *text* of the characters U+0000 … U+00FF, one a byte, by a
  single f-string, and becomes bytes at the very end (Latin-1 maps the two one to one). ASCII
  text, which most of a trade is, then needs no encoding of its own.
- Avro's long is a zigzag varint of 7 bits a byte. Two tables hold 14 bits an entry, and a third
  the upper digits of what counts up, so that a time in microseconds takes three look-ups.

Source of the encoding: Apache Avro 1.11 specification, "Binary Encoding". This is the only file
that knows fastavro.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast, get_type_hints

import fastavro

from feedmono import native, resources
from feedmono.trade import ORIGINS, SIDES, EncodedTrade, Trade, multiply

Schema = Any
"""An Avro schema as JSON has it: text, list or dict."""

_Encode = Callable[..., "list[EncodedTrade]"]

MAX_TIME_US = 253_402_300_800_000_000
"""Times from the year 10,000 on: most Avro readers fail on them, so no trade may carry one."""

_MAX_SYMBOLS = 10_000
"""How many symbols' constant parts are kept before the cache starts anew."""


class _Entries(Protocol):
    """A table of texts."""

    def __getitem__(self, k: int, /) -> str: ...


class _Growing(dict[int, str]):
    """A table whose entries are made when they are first looked at; at most *limit* are kept."""

    def __init__(self, entry: Callable[[int], str], limit: int) -> None:
        super().__init__()
        self._entry = entry
        self._limit = limit

    def __missing__(self, k: int) -> str:
        if len(self) >= self._limit:
            self.clear()
        made = self[k] = self._entry(k)
        return made


def _more(k: int) -> str:
    """14 bits of a varint with more to follow."""
    return chr(k & 127 | 128) + chr(k >> 7 | 128)


def _last(k: int) -> str:
    """The end of a varint."""
    return chr(k) if k < 128 else chr(k & 127 | 128) + chr(k >> 7)


def _table(entry: Callable[[int], str]) -> _Entries:
    """The entries of 14 bits. Both tables are 2.3 MiB, for Python's encoders alone: where the
    native one is, those only get what is rare and the raw records of files."""
    if native.trades is not None:
        return _Growing(entry, 1 << 14)
    return tuple(map(entry, range(1 << 14)))


_MORE, _LAST = _table(_more), _table(_last)


def _varint(k: int) -> str:
    """A varint of any length."""
    text = ""
    while k >= 1 << 14:
        text += _MORE[k & 16383]
        k >>= 14
    return text + _LAST[k]


# What counts up (times, ids, sequences) keeps its upper digits for a while, those above 14 bits for
# 8,192 values, those above 28 for 134 s of microseconds: one look-up instead of several. With
# `_TOGETHER`, 4.7 instead of 5.4 µs a trade. Each symbol's ids have an entry.
_UPPER = _Growing(_varint, 1 << 14)

# From which zigzag number on, and up to `_END`, a number has such an encoding.
_COUNTING = (1 << 14, "{MORE[z & 16383]}{UPPER[z >> 14]}")
_TIMES = {
    "timestamp-millis": _COUNTING,
    "timestamp-micros": (1 << 28, "{MORE[z & 16383]}{MORE[z >> 14 & 16383]}{UPPER[z >> 28]}"),
}
_END = 1 << 56


class SchemaError(Exception):
    """The schema can't be used: invalid, of an unsupported kind, or not what the code gives."""


def load_schema(name: str) -> Schema:
    """The schema of that name (``trade``, ``raw``, ``dead``) that is installed with feedmono."""
    return json.loads(resources.path("schemas", f"{name}.avsc").read_text(encoding="utf-8"))


def generate_encoder(schema: Schema) -> Callable[[Any], bytes]:
    """A function that encodes one value of *schema*, as ``fastavro.schemaless_writer`` does.

    It knows records (mappings that hold every field), unions of null and one type, enums (the
    symbol or its index), string, bytes, boolean, int, long, null, and logical types as their
    plain number. The function raises ValueError for a number, text or symbol that the schema
    can't hold and KeyError for a missing field; it trusts its caller with everything else.

    :raises SchemaError: the schema is invalid or holds another kind of type.
    """
    generator = _Generator()
    fragment = generator.value(_parse(schema), "value")
    generator.line(f'return f"{fragment}".encode("latin-1")')
    return generator.function("encode(value)")


def decode_records(schema: Schema, data: bytes, count: int) -> list[dict[str, Any]]:
    """The *count* records that *data* holds, exactly.

    :raises ValueError: it holds something else.
    """
    stream = io.BytesIO(data)
    try:
        records = [
            cast("dict[str, Any]", fastavro.schemaless_reader(stream, schema, None))
            for _ in range(count)
        ]
    except Exception as error:  # on damaged bytes fastavro raises whatever it stumbles over
        raise ValueError(f"not {count} Avro records: {error!r}") from error
    if stream.tell() != len(data):
        raise ValueError(f"{len(data) - stream.tell()} bytes behind {count} Avro records")
    return records


def parse_schema(text: str) -> Schema:
    """A schema from its JSON text, ready for `decode_records`.

    :raises SchemaError: it is not one.
    """
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise SchemaError(f"not an Avro schema: {error}") from error
    return _parse(schema)


def container_header(schema: Schema, sync_marker: bytes) -> bytes:
    """The header of an Avro object container file of deflated blocks."""
    stream = io.BytesIO()
    fastavro.writer(stream, _parse(schema), [], codec="deflate", sync_marker=sync_marker)
    return stream.getvalue()


def _parse(schema: Schema) -> Schema:
    try:
        return fastavro.parse_schema(schema, _force=True)
    except Exception as error:  # besides its own: whatever a misshapen schema makes it raise
        raise SchemaError(f"not an Avro schema: {error!r}") from error


def _long(value: int) -> str:
    """Avro's zigzag varint, as text of one character a byte."""
    z = value << 1 if value >= 0 else ~(value << 1)
    if z < 1 << 14:
        return _LAST[z]
    if z < 1 << 28:
        return _MORE[z & 16383] + _LAST[z >> 14]
    if z < 1 << 42:
        return f"{_MORE[z & 16383]}{_MORE[z >> 14 & 16383]}{_LAST[z >> 28]}"
    if z < 1 << 64:
        return _varint(z)
    raise ValueError(f"{value} does not fit an Avro long")


def _int(value: int) -> str:
    if not -(1 << 31) <= value < 1 << 31:
        raise ValueError(f"{value} does not fit an Avro int")
    return _long(value)


class _Symbols(dict[object, str]):
    """An enum's encodings, by symbol and by index."""

    def __init__(self, name: str, symbols: Sequence[str]) -> None:
        self._name = name
        for index, symbol in enumerate(symbols):
            self[symbol] = self[index] = _long(index)

    def __missing__(self, value: object) -> str:
        raise ValueError(f"{value!r} is not in the Avro enum {self._name}")


class _Generator:
    """Writes the source of an encoder; each kind of type has a method.

    Such a method takes a schema and the source of an expression, adds the lines that prepare
    the encoding of the expression's value, and returns an f-string's fragment which then gives
    it: ``{p3}``, or ``\\x02{p3}{p4}``.
    """

    def __init__(self, names: dict[str, object] | None = None) -> None:
        self.names: dict[str, object] = {"MORE": _MORE, "LAST": _LAST, "UPPER": _UPPER}
        self.names |= {"long": _long, "int_": _int}
        self.names.update(names or {})
        self._lines: list[str] = []
        self._depth = 1
        self._count = 0
        self._named: dict[str, Schema] = {}
        self._open: list[str] = []

    def line(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    def fresh(self, prefix: str) -> str:
        """A name that was not used before."""
        self._count += 1
        return f"{prefix}{self._count}"

    def function(self, signature: str) -> Callable[..., Any]:
        """Compiles what was written so far as one function and starts anew."""
        source = "\n".join([f"def {signature}:", *self._lines, ""])
        self._lines.clear()
        exec(compile(source, "<Avro encoder>", "exec"), self.names)  # noqa: S102 (own source)
        return cast("Callable[..., Any]", self.names[signature.partition("(")[0]])

    def value(self, schema: Schema, expression: str, path: str = "") -> str:
        """Writes the encoding of a value of any supported kind."""
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        if isinstance(schema, list):
            return self._union(schema, expression, path)
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind == "record":
            return self._record(schema, expression, path)
        if kind == "enum":
            return self._enum(schema, expression)
        simple = {
            "null": lambda _: "",
            "boolean": self._boolean,
            "int": lambda e: self._piece(f"int_({e})"),
            "long": lambda e: self._long(schema, e),
            "string": self._string,
            "bytes": self._bytes,
        }
        if not isinstance(kind, str) or kind not in simple:
            raise SchemaError(
                f"{path or 'the schema'}: Avro type {json.dumps(kind)[:100]} is not supported; "
                "use record, [null, …], enum, string, bytes, boolean, int or long"
            )
        return simple[kind](expression)

    def field(self, record: str, path: str, field: Mapping[str, Any]) -> str:
        """The source of the expression that gives a record's field."""
        return f"{record}[{field['name']!r}]"

    def _piece(self, expression: str) -> str:
        piece = self.fresh("p")
        self.line(f"{piece} = {expression}")
        return f"{{{piece}}}"

    def _boolean(self, expression: str) -> str:
        return self._piece(f"'\\x01' if {expression} else '\\x00'")

    def _long(self, schema: Schema, expression: str) -> str:
        logical = schema.get("logicalType") if isinstance(schema, dict) else None
        if logical not in _TIMES:
            return self._piece(f"long({expression})")
        return self._counting(*_TIMES[logical], expression)

    def _counting(self, least: int, encoding: str, expression: str) -> str:
        """A long whose zigzag number nearly always has that encoding, and needs no call then."""
        value, zigzag = self.fresh("v"), self.fresh("z")
        self.line(f"{value} = {expression}")
        self.line(f"{zigzag} = {value} << 1")
        text = encoding.replace("z", zigzag)
        return self._piece(f'f"{text}" if {least} <= {zigzag} < {_END} else long({value})')

    def _string(self, expression: str) -> str:
        text = self.fresh("s")
        self.line(f"{text} = {expression}")
        self.line(f"if not {text}.isascii():")
        self.line(f"    {text} = {text}.encode().decode('latin-1')")
        return f"{self._length(text)}{{{text}}}"

    def _bytes(self, expression: str) -> str:
        text = self.fresh("s")
        self.line(f"{text} = {expression}.decode('latin-1')")
        return f"{self._length(text)}{{{text}}}"

    def _length(self, text: str) -> str:
        size = self.fresh("n")
        self.line(f"{size} = len({text})")
        return self._piece(f"LAST[{size} << 1] if {size} < 8192 else long({size})")

    def _enum(self, schema: Mapping[str, Any], expression: str) -> str:
        self._named[schema["name"]] = schema
        symbols = self.fresh("ENUM")
        self.names[symbols] = _Symbols(schema["name"], schema["symbols"])
        return self._piece(f"{symbols}[{expression}]")

    def _record(self, schema: Mapping[str, Any], expression: str, path: str) -> str:
        name = schema["name"]
        if name in self._open:
            raise SchemaError(f"{path}: the record {name} holds itself: not supported")
        self._named[name] = schema
        self._open.append(name)
        record = self.fresh("r")
        self.line(f"{record} = {expression}")
        fragments = []
        for field in schema["fields"]:
            inner = f"{path}.{field['name']}" if path else field["name"]
            fragments.append(self.value(field["type"], self.field(record, inner, field), inner))
        self._open.pop()
        return "".join(fragments)

    def _union(self, schema: list[Schema], expression: str, path: str) -> str:
        if len(schema) != 2 or schema[0] != "null":
            raise SchemaError(
                f"{path or 'the schema'}: the union {json.dumps(schema)[:100]} is not supported; "
                'use ["null", one other type]'
            )
        value, piece = self.fresh("v"), self.fresh("p")
        self.line(f"{value} = {expression}")
        self.line(f"if {value} is None:")
        self.line(f"    {piece} = '\\x00'")
        self.line("else:")
        self._depth += 1
        fragment = self.value(schema[1], value, path)
        self.line(f'{piece} = f"\\x02{fragment}"')
        self._depth -= 1
        return f"{{{piece}}}"


_SHARED = ("origin", "received_ns", "sequence", "now_ms")
"""What all trades of a frame share, in the order in which `TradeEncoder.encode` takes it."""

_VALUES = (*Trade._fields, *_SHARED)
"""What a record is made of, as the native encoder numbers it."""

_MAKINGS = {
    "": "{}",
    "digits": "str({})",
    "product": "multiply({})",
    "thousandth": "{} // 1000",
    "always": "True",
}
"""The ways to make a field of its values, as Python source."""


class _Origin(NamedTuple):
    """Where the value of a field of the trade schema comes from."""

    type: str
    """What the schema must say; a union as ``null|long``, a logical type behind a slash."""
    values: str
    """Names over the names of its scope, see `_TradeGenerator`."""
    making: str = ""
    """One of `_MAKINGS`."""
    scope: str = "trade"
    """How often it changes: with each ``symbol``, ``frame`` or ``trade``."""

    @property
    def expression(self) -> str:
        return _MAKINGS[self.making].format(self.values)


_OPTIONAL_TYPES: Mapping[object, str] = {
    bool | None: "null|boolean",
    int | None: "null|long",
    str | None: "null|string",
}


def _optional(trade: type[NamedTuple]) -> dict[str, _Origin]:
    """The fields of a trade that may be missing, as those of the same names in ``metadata``."""
    hints = get_type_hints(trade)
    return {
        f"metadata.{name}": _Origin(_OPTIONAL_TYPES.get(hints[name], str(hints[name])), name)
        for name in trade._field_defaults
    }


_FIELDS: Mapping[str, _Origin] = {
    "schema_version": _Origin("string", "schema_version", scope="symbol"),
    "exchange": _Origin("string", "exchange", scope="symbol"),
    "symbol": _Origin("string", "symbol", scope="symbol"),
    "canonical_symbol": _Origin("string", "name", scope="symbol"),
    "trade_id": _Origin("string", "trade_id", "digits"),
    "price": _Origin("string", "price"),
    "quantity": _Origin("string", "quantity"),
    "quote_volume": _Origin("string", "price, quantity", "product"),
    "side": _Origin(f"enum {' '.join(SIDES)}", "side"),
    "timestamp": _Origin("long/timestamp-millis", "now_ms", scope="frame"),
    "exchange_timestamp": _Origin("long/timestamp-millis", "time_us", "thousandth"),
    "metadata": _Origin("null|record TradeMetadata", "", "always"),
    "metadata.sequence_number": _Origin("null|long", "trade_id"),
    **_optional(Trade),
    "exchange_timestamp_us": _Origin("long/timestamp-micros", "time_us"),
    "received_timestamp_us": _Origin(
        "long/timestamp-micros", "received_ns", "thousandth", scope="frame"
    ),
    "origin": _Origin(f"enum {' '.join(ORIGINS)}", "origin", scope="frame"),
    "frame_sequence": _Origin("long", "sequence", scope="frame"),
}
"""Every field of ``schemas/trade.avsc``. A new one needs its line here, unless it is one of `Trade`
that may be missing: those are the fields of the same name in ``metadata``. Fields that only change
with the symbol must come first in the schema."""


_SHORT = frozenset({"str(trade_id)", "price", "quantity", "multiply(price, quantity)"})
"""Texts of trades that are ASCII and not long by the time at which a record is put together (the
product exists only of two decimal texts): not to ask again saves 0.4 µs a trade."""

_TOGETHER = frozenset({"now_ms", "received_ns // 1000"})
"""Numbers that frames which were read together have in common."""

_MOST_TOGETHER = 256
"""How many of them are kept."""

_NEVER_NULL = frozenset({"True", *Trade._fields[: len(Trade._fields) - len(Trade._field_defaults)]})
"""Expressions of which a union need not ask whether they are null."""


def _describe(schema: Schema) -> str:
    """A type in the notation of `_Origin.type`."""
    if isinstance(schema, list):
        return "|".join(map(_describe, schema))
    if not isinstance(schema, dict):
        return str(schema)
    if schema["type"] == "enum":
        return f"enum {' '.join(schema['symbols'])}"
    if schema["type"] == "record":
        return f"record {schema['name'].rpartition('.')[2]}"
    logical = schema.get("logicalType")
    return f"{schema['type']}/{logical}" if logical else str(schema["type"])


class _TradeGenerator(_Generator):
    """Writes the trade encoder: fields come from `_FIELDS` instead of from a mapping."""

    def __init__(self, exchange: str) -> None:
        super().__init__({"EncodedTrade": EncodedTrade, "new": tuple.__new__})
        self.names |= {"multiply": multiply, "exchange": exchange, "MAX_TIME_US": MAX_TIME_US}
        self.names["TOGETHER"] = _Growing(_long, _MOST_TOGETHER)
        self.used: set[str] = set()

    def field(self, record: str, path: str, field: Mapping[str, Any]) -> str:
        origin, found = _FIELDS.get(path), _describe(field["type"])
        if origin is None:
            raise SchemaError(f"the trade schema has a field that no code fills: {path}")
        if origin.type != found:
            raise SchemaError(f"trade schema, {path}: it says {found}, the code {origin.type}")
        self.used.add(path)
        if path == "schema_version":
            return repr(str(field.get("default", "")))
        return origin.expression

    def _string(self, expression: str) -> str:
        if expression not in _SHORT:
            return super()._string(expression)
        text = self.fresh("s")
        self.line(f"{text} = {expression}")
        return f"{{LAST[len({text}) << 1]}}{{{text}}}"

    def _long(self, schema: Schema, expression: str) -> str:
        if expression in _TOGETHER:
            return self._piece(f"TOGETHER[{expression}]")
        if expression in ("trade_id", "sequence"):
            return self._counting(*_COUNTING, expression)
        return super()._long(schema, expression)

    def _union(self, schema: list[Schema], expression: str, path: str) -> str:
        if expression in _NEVER_NULL:
            return f"\\x02{self.value(schema[1], expression, path)}"
        return super()._union(schema, expression, path)

    def fields(self, fields: Sequence[Mapping[str, Any]], scope: str) -> dict[str, str]:
        """Writes the fields of that scope; gives their fragments by name."""
        return {
            field["name"]: self.value(field["type"], self.field("", name, field), name)
            for field in fields
            if (name := field["name"]) not in _FIELDS or _FIELDS[name].scope == scope
        }

    def head(self, fields: Sequence[Mapping[str, Any]]) -> Callable[[str, str], str]:
        """Compiles what gives the leading fields, which only change with the symbol."""
        fragments = self.fields(fields, "symbol")
        if list(fragments) != [field["name"] for field in fields[: len(fragments)]]:
            raise SchemaError(f"trade schema: {', '.join(fragments)} must be its first fields")
        self.line(f'return f"{"".join(fragments.values())}"')
        return self.function("head_of(symbol, name)")

    def encoder(self, fields: Sequence[Mapping[str, Any]]) -> Callable[..., list[EncodedTrade]]:
        """Compiles the loop over a frame's trades."""
        fragments = self.fields(fields, "frame")
        self.line("encoded = []")
        self.line(f"for {', '.join(Trade._fields)} in trades:")
        self._depth += 1
        self.line("try:")
        self._depth += 1
        self.line("name = canonical[symbol]")
        self.line("head = heads.get((symbol, name)) or new_head(symbol, name)")
        self.line("if not 0 <= time_us < MAX_TIME_US:")
        self.line("    raise ValueError(f'the time {time_us} µs is not in the years 1970 … 9999')")
        fragments |= self.fields(fields, "trade")
        order = "".join(fragments.get(field["name"], "") for field in fields)
        self.line(f'body = f"{{head}}{order}".encode("latin-1")')
        self.line("encoded.append(new(EncodedTrade, (symbol, body)))")
        self._depth -= 1
        self.line("except ValueError as error:")
        self.line("    raise ValueError(f'trade {trade_id} of {symbol}: {error}') from error")
        self._depth -= 1
        self.line("return encoded")
        return self.function(f"encode(trades, canonical, {', '.join(_SHARED)})")


class _Step(NamedTuple):
    """One step of the native encoder's plan: it appends some bytes to a record."""

    task: str
    """One of those in ``records.c``."""
    value: int = 0
    """A number in `_VALUES`."""
    other: int = 0
    """The second factor of a product; of no meaning for other tasks."""
    number: int = 1
    """What a long is divided by; below what an enum or a range must be."""
    text: bytes = b""


def _plan(fields: Sequence[Mapping[str, Any]]) -> tuple[_Step, ...]:
    """How the native encoder writes a trade, by fields that `_TradeGenerator` has accepted."""
    steps = [_Step("range", _VALUES.index("time_us"), number=MAX_TIME_US), _Step("head")]
    for field in fields:
        if _FIELDS[field["name"]].scope != "symbol":
            steps += _steps(field["type"], field["name"])
    return tuple(steps)


def _steps(schema: Schema, path: str) -> list[_Step]:
    """The steps that write the field at *path*; one alone behind an optional step."""
    origin = _FIELDS[path]
    kind = schema["type"] if isinstance(schema, dict) else schema
    if origin.making == "always":
        inner = schema[1]["fields"]
        steps = [step for f in inner for step in _steps(f["type"], f"{path}.{f['name']}")]
        return [_Step("bytes", text=b"\x02"), *steps]
    values = [_VALUES.index(name) for name in origin.values.split(", ")]
    if isinstance(schema, list):
        return [_Step("optional", values[0]), *_steps(schema[1], path)]
    if kind == "enum":
        return [_Step("enum", values[0], number=len(schema["symbols"]))]
    if kind == "long":
        return [_Step("long", values[0], number=1000 if origin.making == "thousandth" else 1)]
    task = str(kind) if kind != "string" else origin.making or "text"
    return [_Step(task, values[0], values[-1])]


class TradeEncoder:
    """Normalizes and encodes the trades of one exchange, by ``schemas/trade.avsc``.

    :raises SchemaError: the schema and this file disagree.
    """

    def __init__(self, exchange: str, schema: Schema = None) -> None:
        parsed = _parse(load_schema("trade") if schema is None else schema)
        fields = parsed["fields"]
        generator = _TradeGenerator(exchange)
        self._heads: dict[tuple[str, str], str] = {}
        self._head_of = generator.head(fields)
        generator.names |= {"heads": self._heads, "new_head": self._new_head}
        self._encode: _Encode = generator.encoder(fields)
        if missing := _FIELDS.keys() - generator.used:
            raise SchemaError(f"the trade schema lacks {', '.join(sorted(missing))}")
        self.native: object | None = None
        """What encodes in C; None: nothing does."""
        if native.trades is not None:
            encoder = native.trades.TradeEncoder(
                plan=_plan(fields),
                encoded=EncodedTrade,
                fields=len(Trade._fields),
                shared=len(_SHARED),
                symbol=_VALUES.index("symbol"),
                head_of=self._head_of,
                otherwise=self._encode,
            )
            self.native = encoder
            self._encode = encoder.encode

    def encode(
        self,
        trades: Sequence[Trade],
        canonical: Mapping[str, str],
        origin: int,
        received_ns: int,
        sequence: int,
        now_ms: int,
    ) -> list[EncodedTrade]:
        """The records of the trades of one frame, in their order.

        *canonical* gives each symbol's canonical one, *origin* is an index into
        `feedmono.trade.ORIGINS`, *received_ns* and *now_ms* are Unix times, *sequence* is the
        frame's in the ring.

        :raises ValueError: one of the trades can't be stored (not a decimal, a number or time
            out of range); its text names symbol and id.
        :raises KeyError: a symbol has no canonical one; the caller sees to that.
        """
        return self._encode(trades, canonical, origin, received_ns, sequence, now_ms)

    def _new_head(self, symbol: str, name: str) -> str:
        if len(self._heads) >= _MAX_SYMBOLS:
            self._heads.clear()
        head = self._heads[symbol, name] = self._head_of(symbol, name)
        return head
