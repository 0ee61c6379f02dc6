"""``vsync.testing`` with locks: ``python -m dlm.testing --seed 7``.

Reading order: ``clients`` (what a client process knows and believes), ``rules`` (what must hold, judged from true
time and from the clients' side), ``workload`` (random sessions on every node; a plug-in of the simulator).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlm.testing.workload import LockPlugin

__all__ = ["LockPlugin"]


def __getattr__(name: str) -> Any:
    """The simulator is large, and not everything here needs it."""
    if name == "LockPlugin":
        from dlm.testing.workload import LockPlugin

        return LockPlugin
    raise AttributeError(name)
