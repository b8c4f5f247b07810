"""A small schema registry over HTTP, for machines without Java: the endpoints of Confluent's API
that a client needs to register, look up and read Avro schemas. It compares no schemas; every
subject accepts every one unless it is told to refuse (``PUT /refuse {"refuse": true}``).

``python tests/mock_registry.py PORT`` serves on that loopback port until it is killed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Reply = tuple[int, Any]


class Schemas:
    """What is registered. One schema text has one id, whatever its subjects are."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.subjects: dict[str, list[str]] = {}
        self.levels: dict[str, str] = {}
        self.refuse = False

    def list_subjects(self, _: Any) -> Reply:
        return 200, sorted(self.subjects)

    def versions(self, _: Any, subject: str) -> Reply:
        if subject not in self.subjects:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        return 200, list(range(1, len(self.subjects[subject]) + 1))

    def register(self, body: Any, subject: str) -> Reply:
        if self.refuse:
            message = f"Schema being registered is incompatible with an earlier one of {subject}"
            return 409, {"error_code": 409, "message": message}
        text = body["schema"]
        known = self.subjects.setdefault(subject, [])
        if text not in known:
            known.append(text)
        return 200, {"id": self.ids.setdefault(text, len(self.ids) + 1)}

    def look_up(self, body: Any, subject: str) -> Reply:
        text, known = body["schema"], self.subjects.get(subject, [])
        if text not in known:
            return 404, {"error_code": 40403, "message": "Schema not found"}
        version, number = known.index(text) + 1, self.ids[text]
        return 200, {"subject": subject, "version": version, "id": number, "schema": text}

    def latest(self, _: Any, subject: str) -> Reply:
        known = self.subjects.get(subject)
        if not known:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        return self.look_up({"schema": known[-1]}, subject)

    def by_id(self, _: Any, number: str) -> Reply:
        for text, known in self.ids.items():
            if known == int(number):
                return 200, {"schema": text}
        return 404, {"error_code": 40403, "message": f"Schema {number} not found"}

    def default_level(self, _: Any) -> Reply:
        return 200, {"compatibilityLevel": "BACKWARD"}

    def level(self, _: Any, subject: str) -> Reply:
        if subject not in self.levels:
            message = f"Subject '{subject}' does not have subject-level compatibility configured"
            return 404, {"error_code": 40408, "message": message}
        return 200, {"compatibilityLevel": self.levels[subject]}

    def set_level(self, body: Any, subject: str) -> Reply:
        self.levels[subject] = body["compatibility"]
        return 200, body

    def set_refuse(self, body: Any) -> Reply:
        self.refuse = bool(body["refuse"])
        return 200, body


ROUTES: tuple[tuple[str, str, Callable[..., Reply]], ...] = (
    ("GET", r"/subjects", Schemas.list_subjects),
    ("GET", r"/subjects/([^/]+)/versions", Schemas.versions),
    ("GET", r"/subjects/([^/]+)/versions/latest", Schemas.latest),
    ("POST", r"/subjects/([^/]+)/versions", Schemas.register),
    ("POST", r"/subjects/([^/]+)", Schemas.look_up),
    ("GET", r"/schemas/ids/(\d+)", Schemas.by_id),
    ("GET", r"/config", Schemas.default_level),
    ("GET", r"/config/([^/]+)", Schemas.level),
    ("PUT", r"/config/([^/]+)", Schemas.set_level),
    ("PUT", r"/refuse", Schemas.set_refuse),
)


def serve(port: int) -> None:
    """Answers on loopback *port* for ever."""
    schemas = Schemas()

    # HTTP/1.0, the handler's default: a kept connection would block the next client.
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or b"null")
            status, reply = self.route(urlsplit(self.path).path, body)
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def route(self, path: str, body: Any) -> Reply:
            for method, pattern, handle in ROUTES:
                if method == self.command and (match := re.fullmatch(pattern, path)):
                    return handle(schemas, body, *map(unquote, match.groups()))
            return 404, {"error_code": 404, "message": f"HTTP 404 Not Found: {path}"}

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Says nothing: a test that wants to know asks."""

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
