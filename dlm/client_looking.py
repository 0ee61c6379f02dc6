"""The part of ``Client`` that looks at the past and the reasons of things; it changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm import answers
from dlm.events import HeldAt, NameHistory
from dlm.reasons import Why, Withheld

if TYPE_CHECKING:
    from dlm.session import Session

__all__ = ["ClientLooking"]


class ClientLooking:
    """What happened to a name, and why it waits. A part of ``Client``."""

    _session: Session

    def history(self, name: str | bytes, position: int | None = None, limit: int = 100) -> NameHistory:
        """The last ``limit`` events of ``name`` that this node still knows, up to ``position`` (looking.md)."""
        args = {"name": answers.name_bytes(name), "space": self._session.space, "limit": limit}
        if position is not None:
            args["position"] = position
        return NameHistory.from_answer(self._session.call("history", args, answers.name_bytes(name)))

    def held_at(self, name: str | bytes, position: int) -> HeldAt:
        """Who held ``name`` at a position of the table.

        Raises ``InvalidRequest`` (code ``position``) for one that this node does not know any more, or yet.
        """
        key = answers.name_bytes(name)
        args = {"name": key, "space": self._session.space, "position": position}
        return HeldAt.from_answer(self._session.call("held_at", args, key))

    def waiting(self) -> list[Withheld]:
        """What answers in this lockspace wait for at this node, beside other locks: most important first."""
        return [Withheld.from_row(row) for row in self._session.call("waiting", {"space": self._session.space})]

    def why(self, name: str | bytes) -> Why:
        """Who waits for ``name``, blocked by whom, and what those wait for in turn; what keeps the node from
        answering. ``print(locks.why(name))`` is for people.
        """
        key = answers.name_bytes(name)
        return Why.from_answer(self._session.call("why", {"name": key, "space": self._session.space}, key))
