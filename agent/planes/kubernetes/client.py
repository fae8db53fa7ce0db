"""Raw JSON over the official client's connection.

The client reads the kubeconfig and holds the TLS connections; its generated models are left out, since
making them costs ten times the memory and time of the JSON that they are made from.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes.client import Configuration
from kubernetes.config import new_client_from_config
from urllib3.exceptions import HTTPError

CONNECT_SECONDS = 15.0  # with TLS's handshake, which takes its time where processors are emulated
ANSWER_SECONDS = 30.0
# A dead peer shows itself after 10 + 3 * 5 seconds, also on a watch that is rightly silent.
_SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000),
]

MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """The API server answered with an error, or did not answer (`code` 0).

    `reason` is the machine-readable reason of the Status object, such as "Conflict" or "Expired".
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}" if code else message)
        self.code = code
        self.reason = reason
        self.message = message


class Api:
    """Requests to one API server. Safe to use from many threads."""

    def __init__(self, kubeconfig: Path) -> None:
        configuration = Configuration()
        configuration.retries = False
        configuration.socket_options = _SOCKET_OPTIONS
        configuration.connection_pool_maxsize = 32
        self._client: Any = new_client_from_config(  # type: ignore[no-untyped-call]
            config_file=str(kubeconfig), persist_config=False, client_configuration=configuration
        )
        self._host = configuration.host.rstrip("/")
        self._pool = self._client.rest_client.pool_manager

    def close(self) -> None:
        """Drop the connections. A watch that is open ends with an error."""
        self._pool.clear()

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object | None,
        content: str,
        read_seconds: float | None,
    ) -> Any:
        import urllib3

        url = self._host + path + ("?" + urlencode(query) if query else "")
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content
        try:
            answer = self._pool.request(
                method,
                url,
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
                preload_content=False,
                retries=False,
                redirect=False,
            )
        except (HTTPError, OSError) as fault:
            raise ApiError(0, "Unreachable", f"{method} {path}: {fault}") from fault
        if answer.status >= 300:
            try:
                raise _error(answer.status, answer.read())
            finally:
                answer.release_conn()
        return answer

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object | None = None,
        content: str = "application/json",
    ) -> dict[str, Any]:
        """One request; the answer as JSON. Raises ApiError."""
        answer = self._open(method, path, query, body, content, ANSWER_SECONDS)
        try:
            data = json.loads(answer.read())
        except (HTTPError, OSError, ValueError) as fault:
            answer.close()
            raise ApiError(0, "BadAnswer", f"{method} {path}: {fault}") from fault
        finally:
            answer.release_conn()
        if not isinstance(data, dict):
            raise ApiError(0, "BadAnswer", f"{method} {path}: the answer is not an object")
        return data

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self.request("GET", path, query=query)

    def create(self, path: str, body: object) -> dict[str, Any]:
        return self.request("POST", path, body=body)

    def merge(self, path: str, body: object) -> dict[str, Any]:
        """JSON merge patch (RFC 7386): the only kind that custom and built-in resources share."""
        return self.request("PATCH", path, body=body, content=MERGE_PATCH)

    def delete(self, path: str, body: object | None = None) -> dict[str, Any]:
        return self.request("DELETE", path, body=body)

    def watch(self, path: str, query: Mapping[str, str], idle_seconds: float) -> Iterator[dict[str, Any]]:
        """Events of a watch until the server ends it. No event for `idle_seconds` is an error.

        The first is an empty bookmark of ours: the server has accepted the watch.
        """
        answer = self._open("GET", path, {**query, "watch": "true"}, None, "", idle_seconds)
        rest = b""
        try:
            yield {"type": "BOOKMARK", "object": {}}
            for chunk in answer.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield json.loads(line)
        except (HTTPError, OSError, ValueError) as fault:
            raise ApiError(0, "WatchBroken", f"watch {path}: {fault}") from fault
        finally:
            answer.close()


def _error(code: int, raw: bytes) -> ApiError:
    try:
        status = json.loads(raw)
        return ApiError(code, str(status.get("reason", "")), str(status.get("message", "")))
    except (ValueError, AttributeError):
        return ApiError(code, "", raw[:200].decode(errors="replace"))
