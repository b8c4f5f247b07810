"""The status process: metrics, health and the page, for whoever asks by HTTP.

It only reads, and nothing waits for it: when it ends, or hangs, only the supervisor notices. Its
loop wakes each two seconds to tell that it does not hang, and each ten it looks how the symbols
trade.
"""

from __future__ import annotations

import os
import socket
import time

from feedmono.collector import Collector
from feedmono.config import Config
from feedmono.log import Log
from feedmono.web.health import Health, Judge, alive_json, alive_text, ready_json, ready_text
from feedmono.web.httpd import Request, Response, Server, plain
from feedmono.web.metrics import Exporter
from feedmono.web.observer import Observer, View

BEAT_S = 2.0
DEFAULT_MINUTES = 60
MAX_MINUTES = 7 * 24 * 60

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"
_SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; "
        "script-src 'self' 'unsafe-inline'; connect-src 'self'; img-src 'self' data:"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def main(config: Config, listener: socket.socket, beat_fd: int, log: Log) -> int:
    """Serves on *listener*, which is bound and listens, until it is ended.

    Adds 1 to the eventfd *beat_fd* at least each 2 s while it comes round.
    """
    site = Site(config)
    server = Server(listener, site.respond, log)
    collector = Collector()
    beat_s = time.monotonic()
    while True:
        if time.monotonic() >= beat_s:
            site.watch()
            collector.tick()
            os.eventfd_write(beat_fd, 1)
            beat_s = time.monotonic() + BEAT_S
        server.turn(beat_s - time.monotonic())


class Site:
    """What is served, by address."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._observer = Observer(config)
        self._judge = Judge(config)
        self._exporter = Exporter()

    def watch(self) -> None:
        """Follows what the verdicts rest on while nobody asks."""
        self._observer.notice()
        if self._judge.due(time.monotonic()):
            self._look()

    def respond(self, request: Request) -> Response:
        """The answer to a GET."""
        response = self._respond(request)
        headers = {**_SAFE, **response.headers}
        return Response(response.status, response.content_type, response.body, headers)

    def _respond(self, request: Request) -> Response:
        if request.path == "/metrics":
            page = self._exporter.page(*self._look(), request.headers.get("accept", ""))
            return Response(200, page.content_type, page.body)
        if request.path in ("/healthz", "/readyz"):
            return self._health(request)
        return self._page(request)

    def _look(self) -> tuple[View, Health]:
        view = self._observer.look()
        return view, self._judge.judge(view)

    def _health(self, request: Request) -> Response:
        _, health = self._look()
        as_json = request.accepts(_JSON)
        if request.path == "/healthz":
            well = health.dead is None
            text = alive_json(health) if as_json else alive_text(health)
        else:
            well = not health.reasons
            text = ready_json(health) if as_json else ready_text(health)
        return Response(200 if well else 503, _JSON if as_json else _TEXT, text.encode())

    def _page(self, request: Request) -> Response:
        from feedmono.web import page  # noqa: PLC0415  only who looks at it pays for it

        if request.path == "/":
            return Response(200, _HTML, page.html())
        if request.path == "/api/state":
            return Response(200, _JSON, page.state(self._config, self._look()[1]))
        if request.path == "/api/history":
            return self._history(request.query.get("minutes", str(DEFAULT_MINUTES)))
        if request.path in page.ASSETS:
            return Response(200, *page.ASSETS[request.path])
        return plain(404, "not here: /, /metrics, /healthz, /readyz\n")

    def _history(self, minutes: str) -> Response:
        from feedmono.web import page  # noqa: PLC0415  as above

        if not minutes.isascii() or not minutes.isdecimal() or int(minutes[:9]) < 1:
            return plain(400, "minutes: a whole number from 1\n")
        return Response(200, _JSON, page.history(self._config, min(int(minutes[:9]), MAX_MINUTES)))
