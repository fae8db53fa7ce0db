"""The datapath: BPF programs (`src/`, `include/`), their loader, and typed access to their maps.

Knows nothing of Kubernetes or Istio and imports nothing of ours.
"""
