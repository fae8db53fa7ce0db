"""The Kubernetes API by its own client, where starting kubectl would be measured too."""

from __future__ import annotations

from typing import Any

from kubernetes import client, config

from lab.cluster import Cluster


def core(cluster: Cluster) -> Any:
    """Pods, Services, namespaces."""
    return client.CoreV1Api(_connection(cluster))


def networking(cluster: Cluster) -> Any:
    """Network policies."""
    return client.NetworkingV1Api(_connection(cluster))


def _connection(cluster: Cluster) -> Any:
    return config.new_client_from_config(  # type: ignore[no-untyped-call]
        config_file=str(cluster.kubeconfig)
    )
