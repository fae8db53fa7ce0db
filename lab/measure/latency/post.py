"""The post's figures, read off its graph: "What Cilium and BPF will bring to Istio", 5 December 2017."""

from __future__ import annotations

#: Round trips of two containers on one node, no policy. Path -> percentile -> microseconds.
FIGURES: dict[str, dict[float, float]] = {
    "no proxy": {50.0: 35.8, 75.0: 38.0, 90.0: 43.1, 99.0: 62.9},
    "in-kernel": {50.0: 24.1, 75.0: 27.0, 90.0: 31.1, 99.0: 46.8},
    "Envoy": {50.0: 92.5, 75.0: 101.2, 90.0: 120.6, 99.0: 200.3},
    "HAProxy": {50.0: 82.6, 75.0: 86.3, 90.0: 97.2, 99.0: 169.6},
    "nginx": {50.0: 83.7, 75.0: 96.5, 90.0: 111.5, 99.0: 216.4},
}
