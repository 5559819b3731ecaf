"""Notifies the service manager: ready, alive, stopping. See sd_notify(3). Without a manager it does nothing."""

from __future__ import annotations

import contextlib
import os
import socket

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables for this process alone; the workers do not inherit them."""


def notify(state: str) -> None:
    """Send a state such as `READY=1` to the service manager."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    # The node serves even if the manager is gone.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def watchdog_seconds() -> float | None:
    """Seconds between watchdog notifications: half of the manager's limit. None if it sets none for this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 2_000_000 if microseconds.isdigit() and mine else None
