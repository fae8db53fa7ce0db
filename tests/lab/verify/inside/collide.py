"""One source port for two connections at a time, reset, used again, and sockets that change their peer.

Arguments: rounds, the first of the ports, then two of NAME=HOST:PORT. Each server greets with its name and
then echoes. Every answer must be of the server that was asked, and what was said to it. Prints a JSON object:
`done` conversations, `wrong` (what went wrong -> how often).
"""

from __future__ import annotations

import collections
import ctypes
import json
import os
import socket
import struct
import sys

PORTS = 8  # few, so that they are used again soon
count: collections.Counter[str] = collections.Counter()
wrong: collections.Counter[str] = collections.Counter()


def opened(port: int) -> socket.socket:
    """A socket at `port`, which others may use as well; closed, it resets its connection."""
    made = socket.socket()
    made.settimeout(10)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.bind(("", port))
    return made


def disconnect(end: socket.socket) -> None:
    """connect(AF_UNSPEC): the socket and its port live on, without a peer."""
    if ctypes.CDLL(None).connect(end.fileno(), ctypes.create_string_buffer(16), 16):
        raise OSError("connect(AF_UNSPEC)")


def talk(ends: dict[str, socket.socket], mark: str) -> None:
    """Say something to every server, then hear from each."""
    said = {name: f"{name} {os.getpid()} {mark} ".encode() * 40 for name in ends}
    for name, end in ends.items():
        end.sendall(said[name])
    for name, end in ends.items():
        got = b""
        while len(got) < len(said[name]) or not got.endswith(said[name]):
            more = end.recv(65536)
            if not more:
                break
            got += more
        first, _, rest = got.partition(b"\n")
        if first.split()[:1] != [name.encode()] or rest != said[name]:
            wrong[f"{name} {mark}: {got[:60]!r}"] += 1
        else:
            count["done"] += 1


def round_of(number: int, port: int, servers: dict[str, tuple[str, int]]) -> None:
    """Both servers from one port; then the same two sockets the other way round."""
    names = list(servers)
    ends = [opened(port) for _ in names]
    try:
        for name, end in zip(names, ends, strict=True):
            end.connect(servers[name])
        talk(dict(zip(names, ends, strict=True)), f"{number}")
        for end in ends:
            disconnect(end)
        for name, end in zip(reversed(names), ends, strict=True):
            end.connect(servers[name])
        talk(dict(zip(reversed(names), ends, strict=True)), f"{number} again")
    except OSError as fault:
        wrong[repr(fault)] += 1
    finally:
        for end in ends:
            end.close()


def main() -> None:
    rounds, port = int(sys.argv[1]), int(sys.argv[2])
    servers = {}
    for word in sys.argv[3:]:
        name, _, where = word.partition("=")
        host, _, number = where.partition(":")
        servers[name] = (host, int(number))
    for at in range(rounds):
        round_of(at, port + at % PORTS, servers)
    sys.stdout.write(json.dumps({"done": count["done"], "wrong": wrong}))


main()
