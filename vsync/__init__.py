"""Virtual synchrony: a Totem token ring, membership views, and ordered process groups.

::

    import vsync

    with vsync.connect() as node:
        for view in node.views():
            print(view.id, [m.name for m in view.members], view.primary)

``connect`` speaks to the local ``vsyncd``; ``Node`` runs a node inside this process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vsync.errors import (
    Backpressure,
    ConfigError,
    ForkedProcess,
    MessageTooLarge,
    NotConnected,
    NotMember,
    RequestFailed,
    StateDirectoryError,
    TransportError,
    VsyncError,
)

if TYPE_CHECKING:
    from vsync.client import Client, Group, connect
    from vsync.events import ClusterView, Message, NodeLife, Process, View
    from vsync.keys import ClusterKey, load_key
    from vsync.node import Node
    from vsync.transport.options import TransportConfig
    from vsync.types import ClusterConfig, Peer, Timing

__version__ = "0.1.0"

__all__ = [
    "Backpressure",
    "Client",
    "ClusterConfig",
    "ClusterKey",
    "ClusterView",
    "ConfigError",
    "ForkedProcess",
    "Group",
    "Message",
    "MessageTooLarge",
    "Node",
    "NodeLife",
    "NotConnected",
    "NotMember",
    "Peer",
    "Process",
    "RequestFailed",
    "StateDirectoryError",
    "Timing",
    "TransportConfig",
    "TransportError",
    "View",
    "VsyncError",
    "connect",
    "load_key",
]

_HOME = {
    "Client": "vsync.client",
    "ClusterConfig": "vsync.types",
    "ClusterKey": "vsync.keys",
    "ClusterView": "vsync.events",
    "Group": "vsync.client",
    "Message": "vsync.events",
    "Node": "vsync.node",
    "NodeLife": "vsync.events",
    "Peer": "vsync.types",
    "Process": "vsync.events",
    "Timing": "vsync.types",
    "TransportConfig": "vsync.transport.options",
    "View": "vsync.events",
    "connect": "vsync.client",
    "load_key": "vsync.keys",
}


def __getattr__(name: str) -> Any:
    """Load on first use: a client needs no ZeroMQ, and the pure parts are imported without any I/O."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vsync' has no attribute {name!r}")
