"""A bus whose nodes have something about lockspaces in their configurations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.dlm.bus import Bus
from vsync.types import ClusterConfig

__all__ = ["Told", "done", "stable"]

DAEMON = 4  #: the user that the nodes run as


class Told(Bus):
    """``said[node]``, or for all others ``said[0]``, is what stands under ``[dlm.lockspace]``."""

    def __init__(self, said: dict[int, dict[str, Any]], nodes: int = 3) -> None:
        self.said = said
        super().__init__(nodes)

    def config(self, node: int) -> ClusterConfig:
        lockspace = self.said.get(node, self.said.get(0, {}))
        return replace(super().config(node), sections={"dlm": {"lockspace": lockspace}}, uid=DAEMON)


def stable(nodes: int = 3, **more: Any) -> Told:
    """A bus whose lockspace ``default`` answers when it is settled, with these options more."""
    return Told({0: {"default": {"answer": "stable", **more}}}, nodes)


def done(bus: Bus, node: int, verb: str, session: int = 1, /, **args: Any) -> Any:
    """Call and run; the answer."""
    rid = bus.call(node, verb, session, **args)
    bus.run()
    return bus.result(rid)
