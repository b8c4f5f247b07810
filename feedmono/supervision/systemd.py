"""What systemd is told: that it runs, that it stops, and each second that it does not hang.

sd_notify(3): a datagram to the socket that ``$NOTIFY_SOCKET`` names. Without systemd there is none,
and nothing is sent. With ``WatchdogSec=`` in the unit a supervisor that hangs is started again.
"""

from __future__ import annotations

import contextlib
import os
import socket

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(state: str) -> None:
    """Tells it; whatever is in the way is no reason to fail, nor to wait."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A name in the abstract namespace begins with @, which stands for a zero byte.
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(state.encode(), name)
