"""Stands in for bookinfo's reviews: the same paths, JSON and settings as the Java program."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 9080
RATED = os.environ.get("ENABLE_RATINGS") == "true"
COLOR = os.environ.get("STAR_COLOR", "black")
DOMAIN = os.environ.get("SERVICES_DOMAIN", "")
RATINGS = "http://{}{}:{}/ratings".format(
    os.environ.get("RATINGS_HOSTNAME", "ratings"),
    f".{DOMAIN}" if DOMAIN else "",
    os.environ.get("RATINGS_SERVICE_PORT", "9080"),
)
#: As upstream: who waits for stars in black waits longer.
SECONDS = 10.0 if COLOR == "black" else 2.5

#: Headers that carry a trace, or the user, from one request to the next.
PROPAGATED = (
    "x-request-id",
    "x-ot-span-context",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "traceparent",
    "tracestate",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "sw8",
    "end-user",
    "user-agent",
    "cookie",
    "authorization",
    "jwt",
)

TEXTS = (
    ("Reviewer1", "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"),
    (
        "Reviewer2",
        "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays "
        "by Shakespeare.",
    ),
)


def reviews(product: str, stars: dict[str, int]) -> dict[str, object]:
    """The document for a product; `stars` by reviewer, none where the ratings did not answer."""
    listed: list[dict[str, object]] = []
    for reviewer, text in TEXTS:
        review: dict[str, object] = {"reviewer": reviewer, "text": text}
        if RATED and reviewer in stars:
            review["rating"] = {"stars": stars[reviewer], "color": COLOR}
        elif RATED:
            review["rating"] = {"error": "Ratings service is currently unavailable"}
        listed.append(review)
    return {
        "id": product,
        "podname": os.environ.get("HOSTNAME", "null"),
        "clustername": os.environ.get("CLUSTER_NAME", "null"),
        "reviews": listed,
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        product = re.fullmatch(r"/reviews/(-?\d+)", self.path.partition("?")[0])
        if product:
            self._answer(200, reviews(product[1], self._stars(product[1]) if RATED else {}))
        elif self.path == "/health":
            self._answer(200, {"status": "Reviews is healthy"})
        else:
            self._answer(404, {"error": "not found"})

    def _stars(self, product: str) -> dict[str, int]:
        headers = {name: self.headers[name] for name in PROPAGATED if name in self.headers}
        try:
            asked = urllib.request.Request(f"{RATINGS}/{product}", headers=headers)  # noqa: S310
            with urllib.request.urlopen(asked, timeout=SECONDS) as answer:  # noqa: S310
                stars: dict[str, int] = json.load(answer).get("ratings", {})
                return stars
        except (OSError, ValueError) as fault:
            print(f"Error: unable to contact {RATINGS}: {fault}")  # noqa: T201
            return {}

    def _answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", PORT), Handler).serve_forever()
