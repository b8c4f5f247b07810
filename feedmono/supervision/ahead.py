"""What the supervisor makes before it forks, so that its workers share it."""

from __future__ import annotations

import gc
import importlib
import ssl

from feedmono.config import Config
from feedmono.network import line


def make_what_workers_share(config: Config) -> None:
    """Imports what the workers will: those of a kind share its pages (35 MiB less for two exchanges
    into Kafka), and a new one is there sooner. Even what only one process uses belongs here: an
    import after the fork touches names all over the pages that were shared, 2 MiB of them for the
    status process beside what it brings. What is there by then is never collected."""
    # By encodings.idna the name of a host is encoded for its lookup.
    modules = {f"feedmono.sinks.{config.sink}", "sqlite3", "encodings.idna"}
    modules |= {f"feedmono.exchanges.{exchange.name}" for exchange in config.enabled_exchanges}
    if config.http.enabled:
        modules.add("feedmono.status")
    if line.names_proxy():
        modules.add("urllib.request")
    for module in sorted(modules):
        importlib.import_module(module)
    # OpenSSL sets itself up with its first context: what that takes, workers share as well.
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    gc.collect()
    gc.freeze()
