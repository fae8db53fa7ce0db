"""Runs in a pod: answers on the ports in its arguments, by TCP and UDP, and writes down what came.

A TCP connection is greeted with "NAME PEER\\n", then echoed; a datagram is answered with the greeting and
itself. A line of CAME is "PROTOCOL PORT PEER", one of ENDED is "PEER PORT ERRNO TIME" (EOF for a close).
"""

import errno
import os
import socket
import sys
import threading
import time

CAME, ENDED = "/tmp/came", "/tmp/ended"
NAME = socket.gethostname().encode()


def note(path: str, *words: object) -> None:
    """One line, whole: each write goes to the end of the file."""
    with open(path, "a") as file:  # noqa: PTH123
        file.write(" ".join(str(word) for word in words) + "\n")


def take(connection: socket.socket) -> bytes:
    """What comes next. An accelerated socket may say EAGAIN once, in place of the reset: docs/redirect.md."""
    try:
        return connection.recv(65536)
    except BlockingIOError:
        return connection.recv(65536)


def talk(connection: socket.socket, peer: tuple[str, int]) -> None:
    """Greet and echo until the connection ends."""
    how = "EOF"
    try:
        connection.sendall(NAME + b" " + peer[0].encode() + b"\n")
        while data := take(connection):
            connection.sendall(data)
    except OSError as fault:
        how = errno.errorcode.get(fault.errno or 0, "?")
    note(ENDED, *peer, how, time.time())
    connection.close()


def tcp(port: int) -> None:
    with socket.create_server(("", port), backlog=512) as server:
        while True:
            connection, peer = server.accept()
            note(CAME, "tcp", port, peer[0])
            threading.Thread(target=talk, args=(connection, peer), daemon=True).start()


def udp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        server.bind(("", port))
        while True:
            data, peer = server.recvfrom(65536)
            note(CAME, "udp", port, peer[0])
            server.sendto(NAME + b" " + peer[0].encode() + b"\n" + data, peer)


for path in (CAME, ENDED):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
for text in sys.argv[1:]:
    for serve in (tcp, udp):
        threading.Thread(target=serve, args=(int(text),)).start()
