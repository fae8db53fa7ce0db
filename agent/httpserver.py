"""The HTTP server of the agent's own pages."""

from __future__ import annotations

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Each question has a thread of its own, which ends with the process."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes away before the answer, as a probe does whose time is over, is no fault of the agent's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
