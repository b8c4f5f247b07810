"""The table of all configuration keys: what each may hold, and the variable that sets it."""

from __future__ import annotations

from collections.abc import Iterable

from feedmono.config import budget
from feedmono.config.sinks import SINKS
from feedmono.config.values import (
    CanonicalSymbols,
    Choice,
    Duration,
    Folder,
    Host,
    Key,
    Size,
    Switch,
    Symbols,
    Url,
    Whole,
)
from feedmono.log import FORMATS, LEVELS

VARIABLE_PREFIX = "FEEDMONO_"

_KIB = 1024
_GIB = 1024**3
_TIB = 1024**4

_GENERAL = (
    Key("state_dir", Folder(), "FEEDMONO_STATE_DIR"),
    Key("ring_dir", Folder(), "FEEDMONO_RING_DIR"),
    Key("ring_capacity", Size(64 * _KIB, _TIB), "FEEDMONO_RING_CAPACITY"),
    Key("window", Whole(1, 10_000_000), "FEEDMONO_WINDOW"),
    Key("linger", Duration("0", "2 s"), "FEEDMONO_LINGER"),
    Key("stop_limit", Duration("0", "1 h"), "FEEDMONO_STOP_LIMIT"),
    Key("coverage_interval", Duration("100 ms", "1 h"), "FEEDMONO_COVERAGE_INTERVAL"),
    Key("sink", Choice(tuple(SINKS)), "FEEDMONO_SINK"),
    Key("samples.keep", Duration("1 h", "3660 d"), "FEEDMONO_SAMPLES_KEEP"),
    Key("http.enabled", Switch(), "FEEDMONO_HTTP_ENABLED"),
    Key("http.host", Host(), "FEEDMONO_HTTP_HOST"),
    Key("http.port", Whole(0, 65535), "FEEDMONO_HTTP_PORT"),
    Key("log.level", Choice(LEVELS), "FEEDMONO_LOG_LEVEL"),
    Key("log.format", Choice(FORMATS), "FEEDMONO_LOG_FORMAT"),
    Key("connections.frame_limit", Size(_KIB, _GIB), "FEEDMONO_CONNECTIONS_FRAME_LIMIT"),
    Key(
        "connections.silence_limit", Duration("10 ms", "1 d"), "FEEDMONO_CONNECTIONS_SILENCE_LIMIT"
    ),
    Key("connections.stale_limit", Duration("10 ms", "1 d"), "FEEDMONO_CONNECTIONS_STALE_LIMIT"),
    Key("connections.backoff_cap", Duration("1 ms", "1 h"), "FEEDMONO_CONNECTIONS_BACKOFF_CAP"),
    Key("connections.max_age", Duration("100 ms", "31 d"), "FEEDMONO_CONNECTIONS_MAX_AGE"),
    Key("connections.redundancy", Whole(1, 2), "FEEDMONO_CONNECTIONS_REDUNDANCY"),
    Key("backfill.max_age", Duration("0", "366 d"), "FEEDMONO_BACKFILL_MAX_AGE"),
    Key("backfill.max_trades", Whole(0, 1_000_000_000), "FEEDMONO_BACKFILL_MAX_TRADES"),
    Key("backfill.confirm_after", Duration("0", "1 d"), "FEEDMONO_BACKFILL_CONFIRM_AFTER"),
)

# With the end of the variable's name, behind FEEDMONO_<NAME>_.
_PER_EXCHANGE = (
    Key("enabled", Switch(), "ENABLED"),
    Key("symbols", Symbols(), "SYMBOLS"),
    Key("ws_url", Url(("wss", "ws"), bare=True), "WS_URL"),
    Key("rest_url", Url(("https", "http"), bare=True), "REST_URL"),
    Key("canonical_symbols", CanonicalSymbols(), "CANONICAL_SYMBOLS"),
    *budget.KEYS.values(),
)


def keys(exchanges: Iterable[str]) -> dict[str, Key]:
    """Every key by its name, for these exchanges, in the order of the default file."""
    named = [
        Key(f"exchanges.{exchange}.{key.name}", key.kind, variable(exchange, key.variable))
        for exchange in exchanges
        for key in _PER_EXCHANGE
    ]
    of_sinks = [key for _, own in SINKS.values() for key in own.values()]
    return {key.name: key for key in (*_GENERAL, *named, *of_sinks)}


def variable(exchange: str, end: str) -> str:
    """The variable of an exchange's key: ``FEEDMONO_<NAME>_CPU`` for ``CPU``."""
    return f"{VARIABLE_PREFIX}{exchange.upper()}_{end}"
