"""The page at ``/``: its files, and as JSON what it shows.

The verdict is made here, so that the page only shows it: whether all is well, and if not, what is
wrong with which exchange.
"""

from __future__ import annotations

import json
import platform
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

from feedmono import events
from feedmono.config import Config
from feedmono.delivery import ledger_file
from feedmono.delivery.holes import State
from feedmono.delivery.ids import Ids
from feedmono.delivery.ledger_file import LedgerError
from feedmono.events import Event
from feedmono.supervision import samples
from feedmono.supervision.samples import Row
from feedmono.supervision.snapshot import FILE, ExchangeStatus, Snapshot
from feedmono.web.health import Health
from feedmono.workers import Shared

FRESH_S = 10.0
"""A state older than this tells nothing of now."""
MAX_MINUTES = 7 * 24 * 60
"""The longest history that is given."""
MAX_SYMBOLS = 1000
"""Of an exchange, so many symbols are listed: those with open holes first."""

_POINTS = 360
"""How many points a line has at most: about one for two pixels of a chart."""
_EVENTS = 50
_LOOKED_AT = 1000
_TEXT = 300
"""Characters of an event's field that are shown."""

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
_FILES = {name: Path(__file__).with_name("pages").joinpath(name).read_bytes() for name in _TYPES}
_VERSION = zlib.crc32(b"".join(_FILES.values()))

ASSETS: Mapping[str, tuple[str, bytes]] = MappingProxyType(
    {f"/{name}": (_TYPES[name], body) for name, body in _FILES.items() if name != "index.html"}
)
"""What the page needs beside itself: path → content type and body."""


def html() -> bytes:
    """The page itself: UTF-8."""
    return _FILES["index.html"]


# --- what is now


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is not as it should be."""

    level: str
    """``warn``, or ``bad``: trades do not get through."""
    exchange: str
    """Empty if it concerns all."""
    text: str
    since_s: float | None = None
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all is well."""

    level: str
    """``ok``, ``warn`` or ``bad``."""
    text: str
    """In one line."""
    reasons: tuple[Reason, ...] = ()
    """The worst first; none if all is well."""


# The states in which trades do not get through; the other ones that are not ``flowing`` only warn.
_BAD_STATES = ("waiting", "restarting", "stopped", "connecting")


def state(config: Config, health: Health | None = None) -> bytes:
    """What is now, as JSON: ``verdict``, ``snapshot`` (null if there is none), ``events`` (the
    newest first), and the time. It never fails: what can't be read is said in the verdict.

    :param health: what ``/readyz`` says; the verdict names its reasons too.
    """
    now_s = time.time()
    snapshot, trouble = _snapshot(config.state_dir)
    return _json(
        {
            "now_s": now_s,
            "host": platform.node(),
            "version": _VERSION,
            "verdict": asdict(judge(snapshot, now_s, trouble, health)),
            "snapshot": asdict(snapshot) if snapshot else None,
            "events": [_event(e) for e in _newest(config.state_dir)],
        }
    )


def _snapshot(state_dir: Path) -> tuple[Snapshot | None, str]:
    """The published state; else why there is none."""
    path = state_dir / FILE
    try:
        return Snapshot.from_json(path.read_text("utf-8")), ""
    except FileNotFoundError:
        return None, f"no state has been published in {state_dir} yet"
    except (OSError, ValueError) as error:
        return None, f"{path} can't be read: {error}"


def judge(
    snapshot: Snapshot | None, now_s: float, trouble: str = "", health: Health | None = None
) -> Verdict:
    """The verdict on a state and on what ``/readyz`` says; *trouble* tells why there is none."""
    if snapshot is None:
        return Verdict("bad", "Nothing is known", (Reason("bad", "", trouble),))
    if now_s - snapshot.taken_at_s > FRESH_S:
        text = "the supervisor does not renew its status: it hangs, or can't write to state_dir"
        reason = Reason("bad", "", text, snapshot.taken_at_s)
        return Verdict("bad", "Nothing is known of now", (reason,))
    unready = [
        Reason("bad", r.exchange, r.text, now_s - r.for_s)
        for r in (health.reasons if health else ())
    ]
    told = {r.exchange for r in unready}
    reasons = [*unready, *_reasons(snapshot, told)]
    reasons.sort(key=lambda r: r.level)  # "bad" stands before "warn"
    if not reasons:
        return Verdict("ok", "All exchanges flowing, " + _remark(snapshot.exchanges))
    names = ", ".join(dict.fromkeys(r.exchange or "the machine" for r in reasons))
    word = "Trouble" if reasons[0].level == "bad" else "Attention"
    return Verdict(reasons[0].level, f"{word}: {names}", tuple(reasons))


def _reasons(snapshot: Snapshot, told: Collection[str]) -> Iterator[Reason]:
    """:param told: exchanges of whose state there is a reason already."""
    for alarm in snapshot.alarms:
        yield Reason("warn", alarm.exchange, alarm.text, alarm.since_s)
    for exchange in snapshot.exchanges:
        if exchange.name not in told and exchange.state != "flowing":
            yield _not_flowing(exchange)
        yield from _reasons_of(exchange)
    if not snapshot.exchanges:
        yield Reason("warn", "", "no exchange is enabled")


def _not_flowing(exchange: ExchangeStatus) -> Reason:
    text = f"{exchange.state}: {exchange.detail}" if exchange.detail else exchange.state
    return Reason("bad" if exchange.state in _BAD_STATES else "warn", exchange.name, text)


def _reasons_of(exchange: ExchangeStatus) -> Iterator[Reason]:
    name, counts = exchange.name, exchange.counts
    if holes := counts.get("holes_open", 0):
        trades = _counted(counts.get("open_trades", 0), "trade")
        yield Reason("warn", name, f"{trades} missing in {_counted(holes, 'gap')}, being fetched")
    if exchange.dead_letters:
        dead = _counted(exchange.dead_letters, "message")
        yield Reason("warn", name, f"{dead} could not be stored, see the dead letters")
    if exchange.throttle < 1.0:
        share = f"{exchange.throttle:.0%}"
        yield Reason("warn", name, f"over its CPU budget: throttled to {share} of its time")


def _remark(exchanges: Iterable[ExchangeStatus]) -> str:
    """What is missing for good: no trouble of now, but not to be passed over either."""
    lost = sum(e.counts.get("beyond", 0) for e in exchanges)
    return f"{_counted(lost, 'trade')} missing for good" if lost else "nothing missing"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _newest(state_dir: Path) -> list[Event]:
    """The newest events first. The summaries, each minute one an exchange, are left out: the page
    has these figures, and what happened would be lost among them."""
    told = events.recent(state_dir, _LOOKED_AT)[::-1]
    return [event for event in told if event.event != "summary"][:_EVENTS]


def _event(event: Event) -> dict[str, object]:
    fields = {str(k): _cut(str(v)) for k, v in event.fields.items()}
    return {**asdict(event), "event": _cut(event.event), "fields": fields}


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"


# --- what was


def history(config: Config, minutes: int) -> bytes:
    """The last *minutes* (1 to `MAX_MINUTES`) as JSON: ``series``, one list a figure, by exchange
    ("" is all processes); and ``symbols``, what the ledgers hold, by exchange. An answer serves
    all who ask within some seconds."""
    allowed = min(max(minutes, 1), MAX_MINUTES)
    return _answers.get((config.state_dir, allowed), lambda: _history(config, allowed))


def _history(config: Config, minutes: int) -> bytes:
    until_s = time.time()
    from_s = until_s - 60.0 * minutes
    step_s = max(1.0, 60.0 * minutes / _POINTS)
    rows: dict[str, list[Row]] = {}
    for row in samples.read(config.state_dir, from_s, until_s, step_s=step_s):
        rows.setdefault(row.exchange, []).append(row)
    return _json(
        {
            "from_s": from_s,
            "until_s": until_s,
            "step_s": step_s,
            "series": {name: _series(of) for name, of in rows.items()},
            "symbols": {
                e.name: _symbols(Shared.of(config, e.name).ledger) for e in config.enabled_exchanges
            },
        }
    )


class _Answers:
    """What took some work, kept for others who ask: however many pages are open, and however
    often they ask, it costs 5 % of a core at most."""

    _FRESH_S = 4.0
    _SHARE = 20
    _MOST = 8

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, int], tuple[float, bytes]] = {}
        self._lock = threading.Lock()

    def get(self, key: tuple[Path, int], make: Callable[[], bytes]) -> bytes:
        with self._lock:
            began_s = time.monotonic()
            until_s, answer = self._kept.get(key, (0.0, b""))
            if until_s < began_s:
                answer = make()
                took_s = time.monotonic() - began_s
                self._kept.pop(key, None)
                self._kept[key] = (began_s + max(self._FRESH_S, self._SHARE * took_s), answer)
                for oldest in list(self._kept)[: -self._MOST]:
                    del self._kept[oldest]
            return answer


_answers = _Answers()


def _series(rows: Sequence[Row]) -> Mapping[str, Sequence[float | None]]:
    return {
        "at_s": [round(r.at_s, 1) for r in rows],
        "span_s": [round(r.span_s, 1) for r in rows],
        "trades_per_s": [round(r.trades / r.span_s, 2) if r.span_s > 0 else None for r in rows],
        "delivery_p50_s": [_rounded(r.delivery_p50_s) for r in rows],
        "delivery_p99_s": [_rounded(r.delivery_p99_s) for r in rows],
        "cpu_cores": [_rounded(r.cpu_cores) for r in rows],
        "cpu_cores_max": [_rounded(r.cpu_cores_max) for r in rows],
        "memory_bytes": [r.memory_bytes for r in rows],
        "ring_used_bytes": [r.ring_used_bytes for r in rows],
        "open_trades": [r.open_trades for r in rows],
        "reconnects": [r.reconnects for r in rows],
        "restarts": [r.restarts for r in rows],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _symbols(path: Path) -> Mapping[str, object]:
    """What a ledger holds, a row a symbol."""
    try:
        content = ledger_file.read(path)
    except LedgerError as error:
        return {"total": 0, "rows": [], "trouble": str(error)}
    rows = [_symbol(s, ids) for s, ids in content.symbols.items()] if content else []
    rows.sort(key=lambda row: (not row["open_holes"], row["symbol"]))
    return {"total": len(rows), "rows": rows[:MAX_SYMBOLS], "trouble": ""}


def _symbol(symbol: str, ids: Ids) -> dict[str, object]:
    missing = {state: ids.missing(state) for state in State}
    return {
        "symbol": symbol,
        "first_id": ids.first_id,
        "last_id": ids.last_id,
        "trades": ids.last_id - ids.first_id + 1 - sum(missing.values()) - ids.folded,
        "open_holes": sum(hole.state is State.OPEN for hole in ids.holes),
        "open_ids": missing[State.OPEN],
        "backfilled": ids.backfilled,
        "absent": missing[State.ABSENT],
        "beyond": missing[State.BEYOND] + ids.folded,
        "newest_s": ids.newest_us / 1e6 if ids.newest_us > 0 else None,
    }


def _json(content: Mapping[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
