"""Services from entry points: what is installed beside vsync and wants to run on the ring (design §2).

A distribution offers a service by an entry point of group ``vsync.services``: a factory that takes the
``ClusterConfig`` and returns a ``vsync.service.Service``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points

from vsync.errors import ConfigError
from vsync.service import Service
from vsync.types import ClusterConfig

__all__ = ["ENTRY_POINT_GROUP", "check_services", "load_services", "service_names"]

ENTRY_POINT_GROUP = "vsync.services"


def service_names() -> list[str]:
    """The names of the installed services, which are those of their entry points; none of them is loaded."""
    return sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})


def load_services(config: ClusterConfig) -> list[Service]:
    """Make every installed service, ordered by name.

    Raises ``ConfigError`` if one cannot be loaded – a node must not silently run without its lock manager
    – or if two claim the same name or tag; and what a service says of its section of the configuration.
    """
    services: list[Service] = []
    # The same distribution can be found twice (an editable install beside a source directory).
    points = {(p.name, p.value): p for p in entry_points(group=ENTRY_POINT_GROUP)}
    for _, point in sorted(points.items()):
        try:
            services.append(point.load()(config))
        except ConfigError:
            raise  # of its own section: it names the key
        except Exception as e:
            raise ConfigError(
                f"service {point.name!r} ({point.value}) cannot be loaded: {e!r}; repair or uninstall it"
            ) from e
    services.sort(key=lambda s: s.name)
    check_services(services)
    return services


def check_services(services: Sequence[Service]) -> None:
    """Raises ``ConfigError`` if two services claim one name or tag, or a tag is out of 1..255."""
    names: dict[str, Service] = {}
    tags: dict[int, Service] = {}
    for service in services:
        if not 1 <= service.tag <= 255:
            raise ConfigError(f"service {service.name!r} has tag {service.tag}; tags are 1..255")
        other = names.setdefault(service.name, service)
        if other is not service:
            raise ConfigError(f"two services are named {service.name!r}; uninstall one of them")
        other = tags.setdefault(service.tag, service)
        if other is not service:
            raise ConfigError(
                f"services {other.name!r} and {service.name!r} both have tag {service.tag}; uninstall one of them"
            )
