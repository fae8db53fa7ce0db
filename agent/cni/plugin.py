#!/usr/bin/python3 -ISB
"""The CNI plugin: hands containerd's request to the agent of this node and prints the answer.

Hook:     started by the container runtime for each ADD, DEL, CHECK, GC, STATUS and VERSION.
Contract: CNI specification 0.4.0 to 1.1.0; the agent does all of the work.
Cost:     one start of the interpreter (about 10 ms). Only built-in modules are imported: `socket`,
          `os` and `json` would double that.

The request is the six CNI_* variables and the standard input, separated by NUL; the answer is the exit
status on a line of its own, then what to print.
"""

import _socket
import posix
import sys

SOCKET = "/run/underpass/cni.sock"
WAIT_SECONDS = 100  # below the two minutes after which the runtime gives up
VARIABLES = ("COMMAND", "CONTAINERID", "NETNS", "IFNAME", "ARGS", "PATH")
VERSIONS = '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'


def read_all(number: int) -> bytes:
    """Everything up to the end of the file descriptor."""
    parts = []
    while part := posix.read(number, 65536):
        parts.append(part)
    return b"".join(parts)


def ask(request: bytes, path: str) -> bytes:
    """Send the request, return the whole answer. Raises OSError."""
    with_agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    with_agent.settimeout(WAIT_SECONDS)
    with_agent.connect(path)
    with_agent.sendall(request)
    with_agent.shutdown(_socket.SHUT_WR)
    parts = []
    while part := with_agent.recv(65536):
        parts.append(part)
    return b"".join(parts)


def absent(command: bytes, config: bytes, fault: object) -> str:
    """The error for an agent that does not answer, in the version that the configuration speaks."""
    version = "1.0.0"
    for known in ("0.4.0", "1.1.0"):
        if f'"cniVersion":"{known}"'.encode() in config.replace(b" ", b""):
            version = known
    code = 50 if command == b"STATUS" else 11
    details = str(fault).replace("\\", "").replace('"', "")
    return (
        f'{{"cniVersion":"{version}","code":{code},"msg":"the agent of this node does not answer",'
        f'"details":"{details}"}}'
    )


def main() -> int:
    """Exit status: 0, or 1 with an error object printed."""
    fields = [posix.environ.get(b"CNI_" + name.encode(), b"") for name in VARIABLES]
    config = read_all(0)
    if fields[0] == b"VERSION":
        posix.write(1, VERSIONS.encode())
        return 0
    path = posix.environ.get(b"UNDERPASS_CNI_SOCKET", SOCKET.encode()).decode()
    try:
        answer = ask(b"\0".join([*fields, config]), path)
        status, _, output = answer.partition(b"\n")
        if not status:
            raise OSError("the agent ended before it answered")
    except OSError as fault:
        posix.write(1, absent(fields[0], config, fault).encode())
        return 1
    while output:
        output = output[posix.write(1, output) :]
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
