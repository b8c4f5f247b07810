"""``feedmono check --online``: tries whatever the configuration points at, and changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from feedmono import exchanges
from feedmono.commands.check import Probe
from feedmono.config import Config, ExchangeConfig
from feedmono.network import handshake, rest
from feedmono.sinks import kinds


def probe(config: Config) -> list[Probe]:
    """Tries each enabled exchange's REST and WebSocket, and what the sink needs; each within a
    time limit."""
    return [_tried(name, attempt) for name, attempt in _attempts(config)]


def _attempts(config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    for exchange in config.enabled_exchanges:
        yield f"{exchange.name} REST", partial(_rest, exchange)
        yield f"{exchange.name} WebSocket", partial(_websocket, exchange)
    yield from kinds.configured(config).probes(config).items()


def _tried(name: str, attempt: Callable[[], str]) -> Probe:
    try:
        return Probe(name, True, attempt())
    except Exception as error:  # whatever a library raises is the answer to the question
        return Probe(name, False, str(error) or type(error).__name__)


def _rest(config: ExchangeConfig) -> str:
    exchange = exchanges.load(config.name)
    with contextlib.closing(rest.RestClient(config.rest_url, exchange.rest_headers)) as client:
        markets = exchange.read_metadata(client.get(exchange.metadata_path).body)
    unknown = [s for s in config.symbols if s not in markets]
    if unknown:
        raise ValueError(f"{config.rest_url} does not list {', '.join(unknown)}")
    return f"{config.rest_url} lists all {len(config.symbols)} configured symbols"


def _websocket(config: ExchangeConfig) -> str:
    exchange = exchanges.load(config.name)
    handshake.try_handshake(config.ws_url + exchange.session(config.symbols[:1]).path)
    return f"{config.ws_url} opens a WebSocket"
