"""Tells systemd how the agent is (sd_notify)."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send `state`, such as "READY=1"; nothing happens where systemd did not start us."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall(state.encode())
