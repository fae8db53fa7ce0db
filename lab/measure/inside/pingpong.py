"""Runs in pods: messages there and back, one at a time, over TCP or a UNIX socket: the limit of both.

serve PORT PATH                  answers at the TCP port and the UNIX socket
tcp HOST PORT SIZE SECONDS       prints percentiles of the round trip in us, as JSON
unix PATH SIZE SECONDS           the same
"""

import contextlib
import json
import math
import socket
import sys
import threading
import time
from pathlib import Path

WARM = 0.2  # seconds before anything counts


def answer(listener: socket.socket) -> None:
    """One client after the other; what came goes back."""
    while True:
        end, _ = listener.accept()
        if end.family == socket.AF_INET:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with end, contextlib.suppress(OSError):
            while data := end.recv(65536):
                end.sendall(data)


def serve(port: int, path: str) -> None:
    Path(path).unlink(missing_ok=True)
    pair = socket.socket(socket.AF_UNIX)
    pair.bind(path)
    pair.listen()
    threading.Thread(target=answer, args=(pair,), daemon=True).start()
    answer(socket.create_server(("", port)))


def ask(end: socket.socket, size: int, seconds: float) -> None:
    message, clock = b"x" * size, time.perf_counter
    send, receive = end.sendall, end.recv
    times: list[float] = []
    first = clock() + WARM
    last = first + seconds
    requests, now = 0, 0.0
    while now < last:
        began = clock()
        send(message)
        left = size
        while left:
            left -= len(receive(left))
        now = clock()
        requests += 1
        if began > first:
            times.append(now - began)
    times.sort()
    shares = (50.0, 75.0, 90.0, 99.0, 99.9)
    found = {str(share): times[math.ceil(share / 100 * len(times)) - 1] * 1e6 for share in shares}
    print(json.dumps({"percentiles": found, "requests": requests, "rate": len(times) / seconds}))


def main(words: list[str]) -> None:
    if words[0] == "serve":
        serve(int(words[1]), words[2])
    elif words[0] == "tcp":
        end = socket.create_connection((words[1], int(words[2])))
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask(end, int(words[3]), float(words[4]))
    else:
        end = socket.socket(socket.AF_UNIX)
        end.connect(words[1])
        ask(end, int(words[2]), float(words[3]))


main(sys.argv[1:])
