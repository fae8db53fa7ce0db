"""Runs in pods: one-way streams, and what they cost their sender.

serve PORT PACED RATE    reads what comes: at PORT as fast as it can, at PACED so many bytes a second
send FD SIZE SETTLE SECONDS
                         sends messages by a connection that the shell has opened, and leaves it open, so that
                         others can look at it; prints bytes, seconds until all was read, and CPU seconds, of
                         what was sent after the first SETTLE seconds
"""

import json
import select
import socket
import sys
import threading
import time

BUFFER = 65536
EARLY = 0.001  # seconds that a paced reader may be ahead: it sleeps for at least so long


def read(end: socket.socket, rate: int) -> None:
    """Until the stream ends, then tell how much came. `rate`: bytes a second, 0: as fast as it goes."""
    buffer, clock = bytearray(BUFFER), time.perf_counter
    total, began = 0, 0.0
    while got := end.recv_into(buffer):
        began = began or clock()
        total += got
        if rate and (early := began + total / rate - clock()) > EARLY:
            time.sleep(early)
    end.sendall(total.to_bytes(8, "big"))


def serve(port: int, rate: int) -> None:
    """One stream after the other. The last one stays open until the next comes."""
    listener = socket.create_server(("", port))
    while True:
        end, _ = listener.accept()
        try:
            read(end, rate)
        except OSError:
            end.close()


def stream(end: socket.socket, size: int, seconds: float) -> int:
    """Send messages for so long; returns their bytes."""
    message, clock = b"x" * size, time.perf_counter
    sent, over = 0, clock() + seconds
    while clock() < over:
        end.sendall(message)
        sent += size
    return sent


def send(end: socket.socket, size: int, settle: float, seconds: float) -> None:
    clock = time.perf_counter
    before = stream(end, size, settle)
    used, began = time.process_time(), clock()
    sent = stream(end, size, seconds)
    end.shutdown(socket.SHUT_WR)
    select.select(
        [end], [], []
    )  # a recv() that waits may say EAGAIN when the end of the stream is acknowledged
    told = end.recv(8)
    took, used = clock() - began, time.process_time() - used
    if int.from_bytes(told, "big") != before + sent:
        sys.exit(f"{before + sent} bytes were sent, and the reader says {told.hex() or 'nothing'}")
    print(json.dumps({"bytes": sent, "seconds": took, "cpu": used}))


def main(words: list[str]) -> None:
    if words[0] == "serve":
        threading.Thread(target=serve, args=(int(words[2]), int(words[3])), daemon=True).start()
        serve(int(words[1]), 0)
    else:
        send(socket.socket(fileno=int(words[1])), int(words[2]), float(words[3]), float(words[4]))


main(sys.argv[1:])
