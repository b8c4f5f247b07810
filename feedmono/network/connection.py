"""One WebSocket to an exchange: opened, read in bulk, watched, and opened again when it ends.

websocket-client makes the connection (`feedmono.network.handshake`). Then its socket is taken over:
whatever has arrived is read at once, cut by `framing` and handed on in batches: 0.7 µs of CPU a
frame of 180 bytes, where the library's ``recv_data`` takes 15 and its ``recv``, which checks
UTF-8 in Python, 60. Reads downward like the life of a connection: wait for the turn, open, flow,
end. Before it is to end it says so, and goes on: its successor is another `Connection`, see
`feedmono.network.slots`.

An operator's own certificate authority is added by OpenSSL's variables ``SSL_CERT_FILE`` or
``SSL_CERT_DIR``, a proxy by ``https_proxy``, ``http_proxy`` and ``no_proxy``.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import socket
import threading
import time
from collections.abc import Callable, Sequence
from random import Random

from feedmono.config import ConnectionsConfig
from feedmono.exchanges import base
from feedmono.exchanges.base import Exchange
from feedmono.heartbeat import BEAT_S, Pulse
from feedmono.log import Log
from feedmono.network import framing, handshake
from feedmono.network.contract import AGE, MAINTENANCE, SHUTDOWN, Deliver, Report, State
from feedmono.network.life import Life
from feedmono.network.limiter import AttemptLimiter, Backoff, steady_time
from feedmono.network.watch import Watch
from feedmono.network.wire import READ_BYTES, WAIT_LIMIT_S, Ended, Wake, Wire

SEND_LIMIT_S = 5.0
"""A peer that takes none of our few bytes for so long is gone."""
FAREWELL_LIMIT_S = 1.0
"""How long an orderly close waits for the peer's last frames."""
PONG_INTERVAL_S = 0.5
"""Between two pongs. An exchange that counts them among our messages (Binance: 5 a second, over
it the address is banned) must not be provoked by a storm of its own pings."""
RETRY_S = 0.01
"""How often a full ring is asked again."""
AGE_SHARE = 0.95
"""Of the age at which the exchange ends a connection: when it is to be replaced at the latest."""
AGE_JITTER = 0.05
"""By what share it may be replaced earlier, so that not all are at the same moment."""

_LOG_BLOCKED_AFTER_S = 1.0
# Of small frames about eighty: company enough.
_COMPANY_BYTES = 16 * 1024
# Between two reads while trades come closer than that: a read costs a hundred times as much as one
# more frame in it, and a stamp is late by as much.
_REST_S = 0.002


class Connection:
    """Keeps one connection to *exchange* for its symbols, until `stop` or `retire`.

    Everything that may carry a trade is delivered, in order, each batch stamped with the time of
    its read; so is whatever is not understood. Only what the session knows as control (acks,
    heartbeats, status) is not.
    """

    def __init__(
        self,
        number: int,
        exchange: Exchange,
        symbols: Sequence[str],
        ws_url: str,
        limits: ConnectionsConfig,
        limiter: AttemptLimiter,
        deliver: Deliver,
        publish: Callable[[], None],
        report: Report,
        log: Log,
        *,
        random: Random,
        linger_s: float = 0.0,
        delay_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param number: of the connection within the exchange; stands in each ring record.
        :param ws_url: scheme, host, port; the session appends the path.
        :param limiter: shared by all connections of the exchange.
        :param publish: called when what was delivered is to be worked on.
        :param linger_s: how long that may wait for company: to wake up whoever works on it costs a
            hundred times as much as one more frame. What comes after a silence of as long, so
            that no company is to be expected, does not wait, nor do `_COMPANY_BYTES`.
        :param delay_s: how long the first attempt waits.
        """
        self.number = number
        self._exchange = exchange
        self._symbols = tuple(symbols)
        self._ws_url = ws_url.rstrip("/")
        self._limits = limits
        self._limiter = limiter
        self._deliver = deliver
        self._publish = publish
        self._linger_s = linger_s
        self._report = report
        self._log = log.bind(connection=number)
        self._random = random
        self._delay_s = delay_s
        self._clock = clock
        self._ending = Wake()
        """Set by `stop` and `retire`."""
        self.pulse = Pulse()
        """Beats while `run` comes round."""
        self._changed = Wake()
        self._stopped = threading.Event()
        self._last = False
        """Whether no other follows when it ends."""
        self._backoff = Backoff(limits.backoff_cap_s, random)
        self._watch = Watch(limits.silence_limit_s, limits.stale_limit_s)
        # Of a mapping only what reads have filled takes memory; a bytearray is filled with zeros.
        self._buffer = memoryview(mmap.mmap(-1, READ_BYTES, mmap.MAP_PRIVATE))
        self._state = State.STOPPED
        self._refused: dict[str, str] = {}
        self._status = ""

    def stop(self) -> None:
        """Ends `run` soon, from any thread: at once while it waits or connects, else after an
        orderly close of at most `FAREWELL_LIMIT_S`."""
        self._stopped.set()
        self._ending.set()

    def set_symbols(self, symbols: Sequence[str]) -> None:
        """From any thread: from now on it is to serve these. An open connection subscribes and
        unsubscribes what differs, within the exchange's message rate; the next one begins with
        them."""
        self._symbols = tuple(symbols)
        self._changed.set()

    def make_last(self) -> None:
        """From any thread: a successor is on its way, so when this connection ends it is not
        opened again."""
        self._last = True

    def retire(self) -> None:
        """As `stop`, but nothing that was received is given up: where the ring is full it waits
        for room."""
        self._last = True
        self._ending.set()

    def run(self) -> None:
        """The thread's life: connect, flow, reconnect, until `stop`, `retire` or the end that
        `make_last` made the last.

        What goes wrong with the network or the exchange is logged, reported and tried again. Any
        other exception (the ring's, a bug's) leaves it: the process can't go on capturing.
        """
        self._ending.open()
        self._changed.open()
        try:
            first = True
            while True:
                try:
                    self._wait_for_turn(first)
                    self._live()
                except Ended as ended:
                    if self._ending.is_set:
                        return
                    self._report.reconnect(self.number, ended.reason)
                    if self._last:
                        return
                first = False
        finally:
            self._enter(State.STOPPED)
            self._changed.close()
            self._ending.close()

    # --- Before: the turn, the opening.

    def _wait_for_turn(self, first: bool) -> None:
        """Until the backoff is over and the exchange's limit has room."""
        wait_s = self._delay_s if first else self._backoff.next_s()
        if wait_s:
            self._enter(State.WAITING)
            what = "waiting before connecting" if first else "waiting before reconnect"
            self._log.info(what, seconds=round(wait_s, 3))
        told = False
        while True:
            self.pulse.beat(min(wait_s, WAIT_LIMIT_S))
            if self._ending.wait(wait_s):
                raise Ended("stopped")
            wait_s = self._limiter.reserve(steady_time())
            if wait_s == 0.0:
                return
            self._enter(State.WAITING)
            if not told:
                told = True
                self._log.info(
                    "waiting for the exchange's limit of connection attempts",
                    seconds=round(wait_s, 3),
                )
            wait_s = min(wait_s, WAIT_LIMIT_S)

    def _live(self) -> None:
        """One connection from its handshake to its end, which it raises."""
        self.pulse.beat(handshake.CONNECT_LIMIT_S)
        self._enter(State.CONNECTING)
        symbols = self._symbols
        session = self._exchange.session(symbols)
        wire = Wire(self._open(self._ws_url + session.path), self._buffer)
        with contextlib.closing(wire):
            now = self._clock()
            cutter = framing.FrameCutter(self._limits.frame_limit_bytes)
            life = Life(wire, session, symbols, cutter, now, now + self._age_limit_s())
            self._watch.open(now)
            self._enter(State.SUBSCRIBING)
            self._log.info("connected", url=self._ws_url, peer=wire.peer)
            try:
                self._flow(life)
            except Ended as ended:
                self._tell(life)
                self._say_farewell(life, ended)
                self._log_end(
                    "disconnected",
                    ended,
                    after_s=round(self._clock() - life.opened_s, 3),
                    frames=life.frames,
                )
                raise

    def _age_limit_s(self) -> float:
        """After how long it is to be replaced."""
        limit_s = min(self._limits.max_age_s, AGE_SHARE * self._exchange.limits.connection_age_s)
        return limit_s * (1.0 - AGE_JITTER * self._random.random())

    def _open(self, url: str) -> socket.socket:
        """A socket on which the WebSocket handshake is done.

        :raises Ended: it did not come about, or `stop` was called.
        """
        try:
            return handshake.open_socket(url, self._ending)
        except Exception as error:  # the library promises no list of what it raises
            ended = handshake.refusal(error)
            if hold_s := handshake.retry_after_s(error):
                self._limiter.hold(steady_time(), hold_s)
            self._log_end("not connected", ended)
            raise ended from error

    # --- Flow.

    def _flow(self, life: Life) -> None:
        """Reads, sends and watches until something ends it, by raising `Ended`."""
        watch, session, wire = self._watch, life.session, life.wire
        if self._changed.is_set:
            self._change_symbols(life, self._clock())
        self._send_due(life, self._clock())
        while True:
            self.pulse.beat()
            now = self._clock()
            if self._changed.is_set:
                self._change_symbols(life, now)
            poll_s = session.next_poll_s()
            if poll_s <= now:
                self._send_due(life, now)
                poll_s = session.next_poll_s()
            if watch.ping_due(now):
                wire.send(framing.PING, b"", SEND_LIMIT_S, self._ending)
            until = min(poll_s, watch.next_s(), life.next_s(), life.tell_s)
            if life.pong is not None:
                self._send_pong(life, now)
                until = min(until, life.pong_after_s)
            readable = wire.wait(min(until - now, BEAT_S), self._ending, self._changed)
            if self._ending.is_set:
                raise Ended("stopped", code=framing.NORMAL, drain=True)
            now = self._clock()
            if readable:
                self._read(life, now, self._linger_s)
            elif now >= life.tell_s:
                self._tell(life)
            elif watch.is_silent(now):
                raise Ended("silent", f"not a byte for {self._limits.silence_limit_s:g} s")
            if watch.is_stale(now):
                limit_s = watch.gone_stale()
                raise Ended("stale", f"no trade for {limit_s:g} s", code=framing.NORMAL, drain=True)
            if not life.ready and now >= life.ready_s:
                life.ready = True
                self._report.ready(self.number)
            if not life.aging and now >= life.old_s:
                self._age(life, AGE, f"{now - life.opened_s:.0f} s")

    def _change_symbols(self, life: Life, now: float) -> None:
        """Has the session follow what is wanted by now."""
        self._changed.clear()
        symbols = self._symbols
        if symbols == life.symbols:
            return
        life.symbols = symbols
        life.refused.intersection_update(symbols)
        self._refused = {s: reason for s, reason in self._refused.items() if s in symbols}
        life.session.change(symbols)
        life.answered_s = math.inf
        self._note_answers(life, now)

    def _age(self, life: Life, reason: str, detail: str) -> None:
        """Tells once that it is to be replaced."""
        if not life.aging:
            life.aging = True
            self._log.info("to be replaced", reason=reason, detail=detail)
            self._report.aging(self.number, reason)

    def _send_due(self, life: Life, now: float) -> None:
        """Sends what the session wants sent by now."""
        messages, events = life.session.poll(now)
        for message in messages:
            life.wire.send(framing.TEXT, message.encode(), SEND_LIMIT_S, self._ending)
        for event in events:
            self._handle(life, event, now)
        self._note_answers(life, now)
        self._raise_end(life)

    def _read(self, life: Life, now: float, linger_s: float = 0.0) -> None:
        """Takes what has arrived: answers a ping, delivers, and only then ends, if it must.

        :param linger_s: how long it may wait for company.
        """
        data = life.wire.read()
        received_ns = time.time_ns()
        if not data:
            return
        self._watch.heard(now)
        cut = life.cutter.feed(data)
        messages, rare = cut.messages, cut.rare
        frames = len(messages)
        life.frames += frames
        if not rare:
            has_data = self._take(life, messages, received_ns, now)
        else:
            self._answer_ping(life, rare, now)
            has_data = False
            done = 0
            for after, event in rare:
                has_data |= self._take(life, messages[done:after], received_ns, now)
                done = after
                frames += self._take_rare(life, event, received_ns)
            has_data |= self._take(life, messages[done:], received_ns, now)
        self._report.received(self.number, frames, len(data))
        if cut.error is not None and life.ended is None:
            reason = "too large" if isinstance(cut.error, framing.TooLarge) else "protocol error"
            life.ended = Ended(reason, str(cut.error), code=cut.error.code)
        rest_s = self._tell_or_linger(life, len(data), has_data, now, linger_s)
        self._raise_end(life)
        if rest_s:
            self._ending.wait(rest_s)

    def _tell_or_linger(
        self, life: Life, size_bytes: int, has_data: bool, now: float, linger_s: float
    ) -> float:
        """Has what was read worked on, at once or later; how long to rest before the next read."""
        since_s = math.inf
        if has_data:
            since_s = now - life.traded_s
            life.traded_s = now
        company = since_s < linger_s
        life.untold_bytes += size_bytes
        life.tell_s = min(life.tell_s, now + linger_s)
        if not company or life.untold_bytes >= _COMPANY_BYTES or now >= life.tell_s:
            self._tell(life)
        rests = company and since_s < 2 * _REST_S and size_bytes < _COMPANY_BYTES
        return min(linger_s, _REST_S) if rests else 0.0

    def _tell(self, life: Life) -> None:
        """Has everything that was delivered worked on."""
        life.untold_bytes = 0
        life.tell_s = math.inf
        self._publish()

    def _take(self, life: Life, messages: list[bytes], received_ns: int, now: float) -> bool:
        """Delivers the messages but for known control ones; whether there was data."""
        is_data = self._exchange.is_data
        if not messages:
            return False
        has_data = True
        if not all(map(is_data, messages)):
            messages, has_data = self._sort(life, messages, now)
        if has_data:
            life.has_data = True
            self._watch.data(now)
            self._backoff.reset()
            self._enter(State.FLOWING)
        if messages:
            self._hand_over(life, messages, received_ns, False)
        if life.left:
            left, life.left = life.left, []
            for symbol in left:
                self._report.unsubscribed(self.number, symbol)
        return has_data

    def _sort(self, life: Life, messages: list[bytes], now: float) -> tuple[list[bytes], bool]:
        """Of the messages those to deliver, and whether any is data."""
        kept: list[bytes] = []
        has_data = False
        for message in messages:
            if self._exchange.is_data(message):
                kept.append(message)
                has_data = True
                continue
            keep = False
            for event in life.session.receive(message, now):
                if isinstance(event, base.Data):
                    keep = has_data = True
                elif isinstance(event, base.Unknown):
                    keep = True
                    self._report.unknown(self.number, event.reason)
                elif isinstance(event, base.Unsubscribed):
                    life.left.append(event.symbol)
                else:
                    self._handle(life, event, now)
            if keep:
                kept.append(message)
        self._note_answers(life, now)
        return kept, has_data

    def _take_rare(
        self,
        life: Life,
        event: framing.Ping | framing.Pong | framing.Binary | framing.Close,
        received_ns: int,
    ) -> int:
        """Handles a frame that is no text; how many messages it was."""
        if isinstance(event, framing.Binary):
            life.frames += 1
            self._report.unknown(self.number, "a binary message")
            self._hand_over(life, [event.payload], received_ns, True)
            return 1
        if isinstance(event, framing.Close) and life.ended is None:
            echo = framing.NORMAL if event.code == framing.NO_CODE else event.code
            life.ended = Ended(f"closed {event.code}", event.reason, code=echo)
        return 0

    def _answer_ping(self, life: Life, rare: list[framing.Rare], now: float) -> None:
        """Answers the last ping of a batch, as RFC 6455 5.5.3 allows. Before delivering, which
        may have to wait for room; in vain is no reason not to deliver."""
        pings = [event for _, event in rare if isinstance(event, framing.Ping)]
        if pings:
            life.pong = pings[-1].payload
            try:
                self._send_pong(life, now)
            except Ended as ended:
                life.ended = ended

    def _send_pong(self, life: Life, now: float) -> None:
        """Sends the pong that is owed, unless the one before was sent just now."""
        if life.pong is not None and now >= life.pong_after_s:
            payload, life.pong = life.pong, None
            life.pong_after_s = now + PONG_INTERVAL_S
            life.wire.send(framing.PONG, payload, SEND_LIMIT_S, self._ending)

    def _raise_end(self, life: Life) -> None:
        if life.ended is not None:
            ended, life.ended = life.ended, None
            raise ended

    def _hand_over(
        self, life: Life, frames: Sequence[bytes], received_ns: int, binary: bool
    ) -> None:
        """Delivers all, however long the ring stays full; gives up only at `stop`."""
        taken = self._deliver(frames, self.number, received_ns, binary)
        if taken == len(frames):
            return
        # What makes room must know that there is something to read.
        self._publish()
        since = self._clock()
        told = False
        self._report.full(self.number)
        while taken < len(frames):
            frames = frames[taken:]
            self.pulse.beat()
            stopped = self._stopped.wait(RETRY_S)
            taken = self._deliver(frames, self.number, received_ns, binary)
            self._publish()
            if stopped:
                break
            if not told and self._clock() - since >= _LOG_BLOCKED_AFTER_S:
                told = True
                self._log.warning("the ring is full: not reading")
        seconds = self._clock() - since
        life.blocked_s += seconds
        self._watch.forgive(self._clock())
        if taken < len(frames):
            # What would follow on the wire has no room either.
            life.ended = Ended("stopped", code=framing.NORMAL)
            self._report.lost(self.number, len(frames) - taken)
            self._log.warning("stopped while the ring was full", lost=len(frames) - taken)
            return
        self._report.blocked(self.number, seconds)
        if told:
            self._log.info("reading again", blocked_s=round(seconds, 3))

    # --- What the exchange says.

    def _handle(self, life: Life, event: base.Event, now: float) -> None:
        match event:
            case base.Subscribed(symbol):
                life.refused.discard(symbol)
                if self._refused.pop(symbol, None) is not None:
                    self._log.info("subscribed, refused before", symbol=symbol)
                self._report.subscribed(self.number, symbol)
            case base.Unsubscribed(symbol):
                self._report.unsubscribed(self.number, symbol)
            case base.Refused(symbol, reason) if symbol in life.symbols:
                life.refused.add(symbol)
                if self._refused.get(symbol) != reason:
                    self._refused[symbol] = reason
                    self._log.warning("refused", symbol=symbol, reason=reason[:200])
                self._report.refused(self.number, symbol, reason)
            case base.Unanswered(symbols):
                detail = f"{len(symbols)} subscriptions, {', '.join(symbols[:5])}"
                life.ended = life.ended or Ended(
                    "unanswered", detail, code=framing.NORMAL, drain=True
                )
            case base.Shutdown(reason):
                self._age(life, SHUTDOWN, reason[:200])
            case base.SystemStatus(status, trading):
                self._watch.set_trading(trading, now)
                if status != self._status:
                    self._status = status
                    self._log.info("status of the exchange", status=status, trading=trading)
                if life.trading and not trading:
                    self._age(life, MAINTENANCE, status)
                life.trading = trading

    def _note_answers(self, life: Life, now: float) -> None:
        """Once per connection, and once per change of its symbols: every symbol is answered."""
        if life.answered_s < math.inf or life.session.pending:
            return
        life.answered_s = now
        asked, refused = len(life.symbols), len(life.refused)
        # Where all are refused, another connection would be refused as well; this one stays, to
        # be told of a listing by the exchange's next disconnect at the latest.
        self._watch.expect(refused < asked, now)
        if refused == asked:
            self._log.warning(
                "every symbol was refused",
                symbols=asked,
                help="the connection stays open without trades: correct the symbols",
            )
            return
        self._enter(State.FLOWING)
        self._log.info("subscribed", symbols=asked - refused, refused=refused)

    # --- The end.

    def _say_farewell(self, life: Life, ended: Ended) -> None:
        """Closes in order, within `FAREWELL_LIMIT_S` and the time that the ring is full. What the
        peer sent before its own close frame is still taken, so that a stop leaves nothing behind
        on the wire."""
        if ended.code is None:
            return
        self.pulse.beat(2 * FAREWELL_LIMIT_S)
        until = self._clock() + FAREWELL_LIMIT_S
        try:
            life.wire.send_close(ended.code, FAREWELL_LIMIT_S)
            while ended.drain and life.wire.wait(until - self._clock(), None):
                blocked_s = life.blocked_s
                self._read(life, self._clock())
                until += life.blocked_s - blocked_s
                if self._clock() >= until:
                    break
        except Ended:
            return

    def _log_end(self, event: str, ended: Ended, **fields: object) -> None:
        if self._ending.is_set:
            reason = "stopped" if self._stopped.is_set() else "replaced"
            self._log.info(event, reason=reason, **fields)
        else:
            self._log.warning(event, reason=ended.reason, detail=ended.detail, **fields)

    def _enter(self, state: State) -> None:
        if state != self._state:
            self._state = state
            self._report.state(self.number, state)
