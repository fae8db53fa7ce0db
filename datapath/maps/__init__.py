"""Typed access to the pinned maps."""

from datapath.maps.opened import DEFAULT_PINS, Maps, open_maps
from datapath.maps.spec import MapSpec, specs
from datapath.maps.typed import TypedMap

__all__ = ["DEFAULT_PINS", "MapSpec", "Maps", "TypedMap", "open_maps", "specs"]
