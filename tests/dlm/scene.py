"""Owners by letter on three lock managers, names that are shared for good, and what refusals have said."""

from __future__ import annotations

from typing import Any

from dlm.modes import EX, NL
from tests.dlm.bus import Bus

__all__ = ["A", "B", "C", "Scene"]

A, B, C = b"A", b"B", b"C"


class Scene:
    """A bus whose names are shared for good, owners by letter, and what refusals have said."""

    def __init__(self, names: bytes = b"ABC", nodes: int = 3, bus: Bus | None = None) -> None:
        self.bus = bus or Bus(nodes)
        self.said: dict[int, dict[str, Any]] = {}
        for node in self.bus.alive():
            self.listen(node.id)
        for name in names:
            for keeper in (1, 2):
                self.bus.lock(keeper, bytes([name]), NL, session=2)
            self.bus.run()

    def listen(self, node: int) -> None:
        """Note what a node's refusals say besides the code."""
        host = self.bus[node].host
        refuse = host.refuse

        def on_refuse(session: int, rid: int, code: str, message: str, **more: Any) -> None:
            self.said[rid] = {"code": code, **more}
            refuse(session, rid, code, message, **more)

        host.refuse = on_refuse  # type: ignore[method-assign]

    def send(self, who: str, name: bytes, mode: int = EX, **more: Any) -> tuple[int, int]:
        """A request of an owner, not yet delivered: node 1 for a, d, .., 2 for b, e, .., 3 for c, f, .."""
        number = ord(who) - ord("a")
        return self.bus.lock(number % 3 + 1, name, mode, **{"owner": number + 1, **more})

    def lock(self, who: str, name: bytes, mode: int = EX, **more: Any) -> tuple[int, int]:
        """The same, delivered."""
        asked = self.send(who, name, mode, **more)
        self.bus.run()
        return asked

    def convert(self, who: str, h: int, mode: int, **more: Any) -> int:
        rid = self.bus.call((ord(who) - ord("a")) % 3 + 1, "convert", h=h, mode=mode, **more)
        self.bus.run()
        return rid

    def unlock(self, who: str, h: int) -> None:
        self.bus.call((ord(who) - ord("a")) % 3 + 1, "unlock", h=h)
        self.bus.run()

    def result(self, asked: tuple[int, int] | int) -> Any:
        """The word "granted", an error code, or ``None`` while it waits."""
        rid = asked if isinstance(asked, int) else asked[0]
        return "granted" if self.bus.granted(rid) else self.bus.result(rid)

    def cycle(self, asked: tuple[int, int] | int) -> list[tuple[bytes, int, str | None, str | None]]:
        """The circle that a refusal told of: (name, node, held, asked)."""
        rows = self.said[asked if isinstance(asked, int) else asked[0]]["cycle"]
        return [(row["name"], row["node"], row["mode"], row["asked"]) for row in rows]

    @property
    def found(self) -> set[int]:
        """How many circles each node has found."""
        return {node.service.status()["deadlocks"] for node in self.bus.alive()}
