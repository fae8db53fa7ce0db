"""All pinned maps, opened."""

from dataclasses import dataclass
from pathlib import Path

from datapath import libbpf, tables
from datapath.maps.conntrack import Conntrack
from datapath.maps.departures import Departures
from datapath.maps.metrics import Metrics
from datapath.maps.policies import Policies
from datapath.maps.redirect import Redirect
from datapath.maps.typed import TypedMap

DEFAULT_PINS = Path("/sys/fs/bpf/underpass")


@dataclass(frozen=True, slots=True)
class Maps:
    """One attribute for each map; who writes which stands in `include/maps.h`."""

    config: TypedMap[tables.Index, tables.Config]
    endpoints: TypedMap[tables.AddressKey, tables.Endpoint]
    ipcache: TypedMap[tables.PrefixKey, tables.CacheEntry]
    nodes: TypedMap[tables.AddressKey, tables.Node]
    policies: Policies
    conntrack: Conntrack
    services: TypedMap[tables.ServiceKey, tables.Service]
    backends: TypedMap[tables.BackendKey, tables.Backend]
    members: TypedMap[tables.MemberKey, tables.Member]
    affinity: TypedMap[tables.AffinityKey, tables.Affinity]
    origins: TypedMap[tables.OriginKey, tables.Origin]
    translations: TypedMap[tables.TranslationKey, tables.Translation]
    namespaces: TypedMap[tables.NamespaceKey, tables.Namespace]
    metrics: Metrics
    events_fd: int
    redirect: Redirect
    departures: Departures

    def read_config(self) -> tables.Config | None:
        """The node's configuration, None before the loader has written it."""
        config = self.config.get(tables.Index(index=0))
        return None if config is None or int(config.node) == 0 else config

    def write_config(self, config: tables.Config) -> None:
        """Replace the node's configuration."""
        self.config.put(tables.Index(index=0), config)


def open_maps(pins: Path = DEFAULT_PINS) -> Maps:
    """Open every map under `pins`. FileNotFoundError: the loader has not been run."""
    folder = pins / "maps"

    def fd(name: str) -> int:
        return libbpf.open_pinned(folder / name)

    revisions = TypedMap(fd("revisions"), tables.EndpointId, tables.Revision)
    return Maps(
        config=TypedMap(fd("config"), tables.Index, tables.Config),
        endpoints=TypedMap(fd("endpoints"), tables.AddressKey, tables.Endpoint),
        ipcache=TypedMap(fd("ipcache"), tables.PrefixKey, tables.CacheEntry),
        nodes=TypedMap(fd("nodes"), tables.AddressKey, tables.Node),
        policies=Policies(fd("policies"), revisions),
        conntrack=Conntrack(fd("conntrack")),
        services=TypedMap(fd("services"), tables.ServiceKey, tables.Service),
        backends=TypedMap(fd("backends"), tables.BackendKey, tables.Backend),
        members=TypedMap(fd("members"), tables.MemberKey, tables.Member),
        affinity=TypedMap(fd("affinity"), tables.AffinityKey, tables.Affinity),
        origins=TypedMap(fd("origins"), tables.OriginKey, tables.Origin),
        translations=TypedMap(fd("translations"), tables.TranslationKey, tables.Translation),
        namespaces=TypedMap(fd("namespaces"), tables.NamespaceKey, tables.Namespace),
        metrics=Metrics(fd("metrics"), fd("event_budget")),
        events_fd=fd("events"),
        redirect=Redirect.open(pins),
        departures=Departures.open(pins),
    )
