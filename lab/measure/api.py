"""The Kubernetes API by its own client, where starting kubectl would be measured too.

Imported when it is used: it takes longer to load than all else that a `lab` command needs.
"""

from __future__ import annotations

from typing import Any

from lab.cluster import Cluster


def core(cluster: Cluster) -> Any:
    """Pods, Services, namespaces."""
    from kubernetes import client

    return client.CoreV1Api(_connection(cluster))


def networking(cluster: Cluster) -> Any:
    """Network policies."""
    from kubernetes import client

    return client.NetworkingV1Api(_connection(cluster))


def watcher() -> Any:
    """Follows objects: `.stream(list_function, ...)` until `.stop()`."""
    from kubernetes import watch

    return watch.Watch()  # type: ignore[no-untyped-call]


def _connection(cluster: Cluster) -> Any:
    from kubernetes import config

    return config.new_client_from_config(  # type: ignore[no-untyped-call]
        config_file=str(cluster.kubeconfig)
    )
