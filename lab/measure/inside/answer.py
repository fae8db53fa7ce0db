"""Runs in a pod: accepts and closes TCP connections, sends UDP datagrams back. Argument: the port."""

import socket
import sys
import threading

port = int(sys.argv[1])
listener = socket.create_server(("", port), backlog=1024)


def accept() -> None:
    while True:
        listener.accept()[0].close()


threading.Thread(target=accept, daemon=True).start()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", port))
while True:
    data, peer = datagrams.recvfrom(2048)
    datagrams.sendto(data, peer)
