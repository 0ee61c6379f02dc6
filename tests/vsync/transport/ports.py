"""Free ports, for TCP and for UDP, which takes two."""

from __future__ import annotations

from vsync.testcluster import free_ports

__all__ = ["free_ports"]
