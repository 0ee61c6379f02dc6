"""What ``vsync`` finds in the entry point group ``vsync.services``: how to make the lock manager."""

from __future__ import annotations

from dlm.service import DlmService
from vsync.service import Service
from vsync.types import ClusterConfig

__all__ = ["service"]


def service(config: ClusterConfig) -> Service:
    """A new, unattached lock manager for this node."""
    return DlmService(config)
