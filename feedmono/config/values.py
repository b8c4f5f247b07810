"""How configured values are written: sizes, durations, symbols, addresses; parsed and shown.

A `Kind` reads what the configuration file gives (text, numbers, truth values, lists, blocks) or
the text of a variable by the same rules, and shows the result again. Numbers and units are exact:
nothing is rounded on the way in.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

SIZE_UNITS: Mapping[str, int] = {
    "B": 1,
    "KB": 1000,
    "KiB": 1024,
    "MB": 1000**2,
    "MiB": 1024**2,
    "GB": 1000**3,
    "GiB": 1024**3,
    "TB": 1000**4,
    "TiB": 1024**4,
}
"""Bytes of each unit; upper and lower case are the same (``kB``, ``mib``)."""

DURATION_UNITS_US: Mapping[str, int] = {
    "us": 1,
    "ms": 1000,
    "s": 10**6,
    "m": 60 * 10**6,
    "h": 3600 * 10**6,
    "d": 86400 * 10**6,
}
"""Microseconds of each unit."""

_LONG_UNITS = {
    "us": ("micro", "micros", "microsecond", "microseconds"),
    "ms": ("milli", "millis", "millisecond", "milliseconds"),
    "s": ("sec", "second", "seconds"),
    "m": ("min", "minute", "minutes"),
    "h": ("hour", "hours"),
    "d": ("day", "days"),
}
_UNIT_US = {
    name: DURATION_UNITS_US[unit] for unit, names in _LONG_UNITS.items() for name in (unit, *names)
}
_UNIT_BYTES = {unit.lower(): count for unit, count in SIZE_UNITS.items()}

MASK = "********"
_SECRET = re.compile(
    r"password|passphrase|secret|token|credential|jaas|user\.info|oauthbearer\.config"
    r"|key\.pem|private\.key",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"://\S*@")
# A URL that is not one, perhaps without its scheme, may hold a password all the same.
_PERHAPS_USER_INFO = re.compile(r"^([A-Za-z+]+://)?.*@", re.DOTALL)
_WITH_UNIT = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]+)", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})(?:[eE][+-]?\d{1,3})?", re.ASCII)
_SYMBOL = re.compile(r"[^\s,]{1,64}")
_CANONICAL = re.compile(r"[^\s,/]{1,32}/[^\s,/]{1,32}")
_SERVER = re.compile(
    r"(?:[A-Za-z_]+://)?(?:[^\s,:/@\[\]]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?"
)

_MAX_SYMBOLS = 10_000
_MAX_SECRET_BYTES = 64 * 1024
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something in the configuration that is not allowed."""

    where: str
    """File and line, or variable, and the key."""
    found: str
    allowed: str
    nearest: str = ""
    """The known name that was probably meant."""

    def __str__(self) -> str:
        meant = f" (did you mean {self.nearest}?)" if self.nearest else ""
        return f"{self.where}: found {self.found}{meant}; allowed: {self.allowed}"


class Wrong(Exception):
    """A value that is not allowed: what was found, what is allowed, the nearest known name."""

    def __init__(self, found: str, allowed: str, nearest: str = "") -> None:
        super().__init__(found, allowed, nearest)
        self.found = found
        self.allowed = allowed
        self.nearest = nearest


class Property(NamedTuple):
    """One value of `Properties`."""

    text: str
    secret: bool
    """It came from a file made for secrets, whatever its name is."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that *name* is most likely a slip of; empty if there is none."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def is_secret(name: str) -> bool:
    """Whether a property of that name holds a secret."""
    return _SECRET.search(name) is not None


def mask_urls(text: str) -> str:
    """*text* without the user and password of the URLs in it."""
    return _USER_INFO.sub(f"://{MASK}@", text)


def describe(value: object) -> str:
    """A value as a mistake quotes it: short, on one line, without a URL's password."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a block"
    if isinstance(value, list):
        return "a list"
    if not isinstance(value, str):
        return f"the number {value}"
    if not value.strip():
        return "empty text"
    text = _PERHAPS_USER_INFO.sub(rf"\g<1>{MASK}@", value)
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…")


def parse_size(text: str) -> int:
    """Bytes of a size such as ``64 MiB``.

    :raises ValueError: it has no unit or no known one, or is no whole number of bytes.
    """
    return _with_unit(text, {}, _UNIT_BYTES)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``500 ms``; ``0`` needs no unit.

    :raises ValueError: it has no unit or no known one, or is no whole number of microseconds.
    """
    return 0.0 if text.strip() == "0" else _with_unit(text, _UNIT_US, {}) / 1e6


def _with_unit(text: str, exact: Mapping[str, int], folded: Mapping[str, int]) -> int:
    match = _WITH_UNIT.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a number with a unit")
    factor = exact.get(match[2]) or folded.get(match[2].lower())
    if factor is None:
        raise ValueError(f"{match[2]!r} is not a known unit")
    amount = Fraction(match[1]) * factor
    if amount.denominator != 1:
        raise ValueError(f"{text!r} is finer than the smallest unit")
    return int(amount)


def format_size(size_bytes: int) -> str:
    """A size in the largest unit that gives a whole number: ``64 MiB``. `parse_size` reads it."""
    return _in_units(size_bytes, SIZE_UNITS)


def format_duration(duration_s: float) -> str:
    """A duration in the largest unit that gives a whole number: ``500 ms``; `parse_duration`
    reads it."""
    return _in_units(round(duration_s * 1e6), DURATION_UNITS_US) if duration_s else "0"


def _in_units(amount: int, units: Mapping[str, int]) -> str:
    return next(
        f"{amount // factor} {unit}"
        for unit, factor in reversed(list(units.items()))
        if amount % factor == 0 and (amount or factor == 1)
    )


class Kind(ABC):
    """What a key may hold."""

    unit: ClassVar[str] = ""
    """Of `plain`'s number: ``bytes``, ``s``."""

    @abstractmethod
    def parse(self, value: object, folder: Path) -> Any:
        """The value, checked. *folder* is what relative paths count from.

        :raises Wrong: it is not allowed.
        """

    def plain(self, value: Any) -> Any:
        """The value for JSON, without secrets."""
        return mask_urls(value) if isinstance(value, str) else value

    def show(self, value: Any) -> str:
        """The value for a person, without secrets; what `parse` reads where it can."""
        return str(self.plain(value))


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    """With the blocks around it: ``kafka.topic_prefix``."""
    kind: Kind
    variable: str = ""
    """The environment variable that sets it; empty if there is none."""


class EntriesKind(Kind):
    """A block of named values that the operator chooses. `parse` reads a whole one from the text
    of a variable."""

    @abstractmethod
    def parse_entry(self, name: str, value: object, folder: Path) -> Any:
        """One value of the block.

        :raises Wrong: it is not allowed.
        """

    def entry(self, value: Any) -> Any:
        """What `parse_entry` gave, as it is used."""
        return value

    def is_entry(self, value: object) -> bool:
        """Whether *value* is one entry; else it is a block of entries with longer names."""
        return not isinstance(value, Mapping)

    def plain_entry(self, name: str, value: Any) -> str:
        """One value of the block, without secrets."""
        return mask_urls(str(value))


def _text(value: object, allowed: str) -> str:
    if not isinstance(value, str) or not value.strip():
        quote = isinstance(value, bool | int | float)
        raise Wrong(describe(value), allowed + (", in quotation marks" if quote else ""))
    return value.strip()


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    names: tuple[str, ...]

    def parse(self, value: object, folder: Path) -> str:
        allowed = " or ".join(self.names)
        text = _text(value, allowed).lower()
        if text not in self.names:
            raise Wrong(describe(value), allowed, nearest(text, self.names))
        return text


@dataclass(frozen=True, slots=True)
class Switch(Kind):
    """On or off."""

    WORDS: ClassVar[Mapping[str, bool]] = {
        **dict.fromkeys(("true", "yes", "on", "1"), True),
        **dict.fromkeys(("false", "no", "off", "0"), False),
    }

    def parse(self, value: object, folder: Path) -> bool:
        word = str(value).strip().lower()
        if not isinstance(value, str | bool | int) or word not in self.WORDS:
            raise Wrong(describe(value), "true or false")
        return self.WORDS[word]

    def show(self, value: Any) -> str:
        return describe(value)


@dataclass(frozen=True, slots=True)
class Whole(Kind):
    low: int
    high: int

    def parse(self, value: object, folder: Path) -> int:
        number = None
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            number = int(value)
        if number is None or not self.low <= number <= self.high:
            raise Wrong(describe(value), f"a whole number from {self.low} to {self.high}")
        return number


@dataclass(frozen=True, slots=True)
class Number(Kind):
    low: float
    high: float

    def parse(self, value: object, folder: Path) -> float:
        number = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            # A whole number above 10^308 fits no float.
            number = float(value) if abs(value) <= 1e300 else math.inf
        elif isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
            number = float(value)
        if not self.low <= number <= self.high:
            raise Wrong(describe(value), f"a number from {self.low:g} to {self.high:g}")
        return number


@dataclass(frozen=True, slots=True)
class Size(Kind):
    low_bytes: int
    high_bytes: int
    unit: ClassVar[str] = "bytes"

    def parse(self, value: object, folder: Path) -> int:
        allowed = (
            f"a size with its unit ({', '.join(SIZE_UNITS)}), from {format_size(self.low_bytes)} "
            f"to {format_size(self.high_bytes)}"
        )
        try:
            size_bytes = parse_size(value if isinstance(value, str) else "")
        except ValueError:
            raise Wrong(describe(value), allowed) from None
        if not self.low_bytes <= size_bytes <= self.high_bytes:
            raise Wrong(describe(value), allowed)
        return size_bytes

    def show(self, value: Any) -> str:
        return format_size(value)


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    low: str
    high: str
    unit: ClassVar[str] = "s"

    def parse(self, value: object, folder: Path) -> float:
        allowed = (
            f"a duration with its unit ({', '.join(DURATION_UNITS_US)}), "
            f"from {self.low} to {self.high}"
        )
        zero = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
        try:
            duration_s = parse_duration("0" if zero else value if isinstance(value, str) else "")
        except ValueError:
            raise Wrong(describe(value), allowed) from None
        if not parse_duration(self.low) <= duration_s <= parse_duration(self.high):
            raise Wrong(describe(value), allowed)
        return duration_s

    def show(self, value: Any) -> str:
        return format_duration(value)


@dataclass(frozen=True, slots=True)
class Symbols(Kind):
    """Names of markets, as the exchange has them: a list, or text with commas."""

    def parse(self, value: object, folder: Path) -> tuple[str, ...]:
        allowed = "symbols such as [BTCUSDT, ETHUSDT], or text with commas; each once"
        names: Sequence[object]
        if isinstance(value, str):
            names = value.split(",") if value.strip() else []
        elif isinstance(value, list):
            # An optional reference to nothing leaves no element.
            names = [name for name in value if name is not None]
        else:
            raise Wrong(describe(value), allowed)
        if not names:
            raise Wrong("an empty list", allowed)
        if len(names) > _MAX_SYMBOLS:
            raise Wrong(f"{len(names)} symbols", f"at most {_MAX_SYMBOLS}")
        symbols = [name.strip() if isinstance(name, str) else name for name in names]
        found = [
            "an empty symbol" if symbol == "" else f"{describe(symbol)}, which is no symbol"
            for symbol in symbols
            if not (isinstance(symbol, str) and _is_symbol(symbol))
        ]
        texts = [symbol for symbol in symbols if isinstance(symbol, str) and symbol]
        found += [f"{name!r} twice" for name in dict.fromkeys(texts) if texts.count(name) > 1]
        if found:
            raise Wrong(" and ".join(dict.fromkeys(found)), allowed)
        return tuple(texts)

    def plain(self, value: Any) -> list[str]:
        return list(value)

    def show(self, value: Any) -> str:
        return ", ".join(value)


def _is_symbol(text: str) -> bool:
    return _SYMBOL.fullmatch(text) is not None and text.isprintable()


@dataclass(frozen=True, slots=True)
class CanonicalSymbols(EntriesKind):
    """Symbol → canonical symbol; as a variable ``BTCUSDT=BTC/USDT,ETHUSDT=ETH/USDT``."""

    def parse(self, value: object, folder: Path) -> dict[str, str]:
        allowed = "pairs such as BTCUSDT=BTC/USDT,ETHUSDT=ETH/USDT, each symbol once"
        if not isinstance(value, str):
            raise Wrong(describe(value), "a block such as { BTCUSDT = BTC/USDT }")
        found: dict[str, str] = {}
        for pair in value.split(",") if value.strip() else []:
            symbol, equals, canonical = (part.strip() for part in pair.partition("="))
            if not equals:
                raise Wrong(describe(pair), allowed)
            if symbol in found:
                raise Wrong(f"{symbol!r} twice", allowed)
            found[symbol] = self.parse_entry(symbol, canonical, folder)
        return found

    def parse_entry(self, name: str, value: object, folder: Path) -> str:
        if not _is_symbol(name):
            raise Wrong(f"{describe(name)} as a symbol", "a symbol as the exchange has it")
        allowed = "base and quote such as BTC/USDT"
        text = _text(value, allowed)
        if not _CANONICAL.fullmatch(text) or not text.isprintable():
            raise Wrong(describe(value), allowed)
        return text


@dataclass(frozen=True, slots=True)
class Url(Kind):
    schemes: tuple[str, ...]
    bare: bool
    """Only scheme, host and port: feedmono appends the path."""

    def parse(self, value: object, folder: Path) -> str:
        allowed = (
            f"{' or '.join(self.schemes)}://host, or with :port"
            f"{', without a path' if self.bare else ', and a path if need be'}"
        )
        text = _text(value, allowed)
        if re.search(r"\s", text) or not text.isprintable():
            raise Wrong(describe(value), allowed)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise Wrong(describe(value), allowed) from None
        path = parts.path.rstrip("/")
        refused = parts.query or parts.fragment or text.endswith(("?", "#"))
        if self.bare:
            refused = refused or path or "@" in parts.netloc
        if parts.scheme not in self.schemes or not parts.hostname or port == 0 or refused:
            raise Wrong(describe(value), allowed)
        return f"{parts.scheme}://{parts.netloc}{path}"


@dataclass(frozen=True, slots=True)
class Servers(Kind):
    """Addresses of brokers, with commas."""

    def parse(self, value: object, folder: Path) -> str:
        allowed = "host:port, several with commas"
        servers = [server.strip() for server in _text(value, allowed).split(",")]
        for server in servers:
            match = _SERVER.fullmatch(server)
            if not match or not 0 < int(match["port"] or 9092) < 65536:
                raise Wrong(describe(server) if server else "an empty address", allowed)
        return ",".join(servers)


@dataclass(frozen=True, slots=True)
class Host(Kind):
    """The address of a network interface of this machine; ``localhost`` is the only name, as the
    lookup of another could take minutes."""

    def parse(self, value: object, folder: Path) -> str:
        allowed = "an IP address such as 127.0.0.1, 0.0.0.0 or ::1, or localhost"
        text = _text(value, allowed).strip()
        if text == "localhost":
            return text
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise Wrong(describe(value), allowed) from None
        if "%" in text:
            raise Wrong(describe(value), allowed)
        return str(address)


@dataclass(frozen=True, slots=True)
class TopicPrefix(Kind):
    # A topic's name has at most 249 characters; `.<exchange>.coverage` comes behind the prefix.
    _NAME: ClassVar[re.Pattern[str]] = re.compile(r"[A-Za-z0-9._-]{1,200}")

    def parse(self, value: object, folder: Path) -> str:
        allowed = "up to 200 letters, digits, dots, underscores and hyphens"
        text = _text(value, allowed)
        if not self._NAME.fullmatch(text):
            raise Wrong(describe(value), allowed)
        return text


@dataclass(frozen=True, slots=True)
class Folder(Kind):
    """A path, made absolute."""

    def parse(self, value: object, folder: Path) -> Path:
        allowed = "the path of a folder"
        text = _text(value, allowed)
        if not text.isprintable():
            raise Wrong(describe(value), allowed)
        if text.startswith("~"):
            raise Wrong(describe(value), "a path without ~, which only shells know; ${HOME} works")
        return folder / text

    def plain(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Properties(EntriesKind):
    """Properties of a library, by their names in it."""

    owned: Mapping[str, str]
    """Names that feedmono sets itself → why, or what to use instead."""

    def parse(self, value: object, folder: Path) -> Any:
        raise Wrong(describe(value), "a block of properties")

    def is_entry(self, value: object) -> bool:
        return not isinstance(value, Mapping) or "file" in value

    def parse_entry(self, name: str, value: object, folder: Path) -> Property:
        if name in self.owned:
            raise Wrong("a property that feedmono sets itself", f"none: {self.owned[name]}")
        if isinstance(value, Mapping):
            return Property(_read_secret(value, folder), True)
        secret = is_secret(name)
        if secret and not isinstance(value, str):
            # pyhocon drops the leading zeros of a number.
            raise Wrong("unquoted text", "text in quotation marks")
        if isinstance(value, bool):
            return Property("true" if value else "false", secret)
        if isinstance(value, str | int):
            return Property(str(value), secret)
        # pyhocon drops the trailing zeros of a decimal number.
        raise Wrong(describe(value), "text (a decimal number in quotation marks), true or false")

    def entry(self, value: Any) -> str:
        text: str = value.text
        return text

    def plain_entry(self, name: str, value: Any) -> str:
        return MASK if value.secret else mask_urls(value.text)


def _read_secret(block: Mapping[str, object], folder: Path) -> str:
    allowed = '{ file = "/path/of/a/file" } whose one line of text is the value'
    name = block.get("file")
    if len(block) != 1 or not isinstance(name, str) or not name.isprintable() or not name.strip():
        raise Wrong("a block", allowed)
    path = folder / name.strip()
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise Wrong(f"{path}, which can't be read: {error.strerror}", allowed) from None
    if len(content) > _MAX_SECRET_BYTES:
        raise Wrong(f"{path}, which has more than {format_size(_MAX_SECRET_BYTES)}", allowed)
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise Wrong(f"{path}, which is no UTF-8 text", allowed) from None
    if not text:
        raise Wrong(f"{path}, which is empty", allowed)
    return text
