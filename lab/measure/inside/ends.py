"""Runs in a pod: TCP connections, and when and how each ends. `ends serve PORT`, `ends hold PORT HOST...`.

The holder makes an idle and a busy connection to each HOST, prints `held PORT...` (its own ports) once all of
them have been answered, and begins anew when all have ended. Both sides print `end PORT ERRNO TIME` for each
(PORT is the holder's, EOF stands for a close, TIME is of the wall clock).
"""

import errno
import os
import socket
import sys
import threading
import time

PATIENCE = 0.5  # seconds for which a connection that does not come is waited for; then another is tried
PAUSE = 0.005  # between the words of a busy connection


def say(*words: object) -> None:
    """A line in one write: threads speak at the same time."""
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


def take(end: socket.socket) -> bytes:
    """What comes next. An accelerated socket may say EAGAIN once, in place of the reset."""
    try:
        return end.recv(4096)
    except BlockingIOError:
        return end.recv(4096)


def watch(end: socket.socket, port: int, busy: bool) -> None:
    """Until the connection ends; a busy one sends something back for whatever comes."""
    how = "EOF"
    try:
        while take(end):
            if busy:
                time.sleep(PAUSE)
                end.sendall(b"x")
    except OSError as fault:
        how = errno.errorcode.get(fault.errno or 0, "?")
    say("end", port, how, time.time())
    end.close()


def serve(port: int) -> None:
    with socket.create_server(("", port), backlog=64) as listener:
        while True:
            end, peer = listener.accept()
            threading.Thread(target=answer, args=(end, peer[1]), daemon=True).start()


def answer(end: socket.socket, port: int) -> None:
    end.sendall(b"x")
    watch(end, port, busy=True)


def connect(host: str, port: int) -> socket.socket:
    while True:
        try:
            end = socket.create_connection((host, port), PATIENCE)
            if end.recv(1):
                end.settimeout(None)
                return end
        except OSError:
            time.sleep(PAUSE)


def hold(port: int, hosts: list[str]) -> None:
    while True:
        ends = [(connect(host, port), busy) for host in hosts for busy in (False, True)]
        say("held", *(end.getsockname()[1] for end, _ in ends))
        threads = [
            threading.Thread(target=watch, args=(end, end.getsockname()[1], busy)) for end, busy in ends
        ]
        for end, busy in ends:
            if busy:
                end.sendall(b"x")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    hold(int(sys.argv[2]), sys.argv[3:])
