"""The part of ``AsyncClient`` that looks at locks; it changes nothing."""

from __future__ import annotations

from typing import Any

from dlm import answers
from dlm.aio.session import Part
from dlm.events import HeldAt, NameHistory
from dlm.info import Holder, LockInfo
from dlm.reasons import Why, Withheld

__all__ = ["AsyncLooking"]

LS_LIMIT = 10_000


class AsyncLooking(Part):
    """Who holds what, and why it is so. A part of ``AsyncClient``; everything is as in ``Client``."""

    async def show(self, name: str | bytes) -> LockInfo | None:
        """Who holds, converts and waits for ``name``, as this node knows it; ``None`` if nobody does."""
        return await self.session.show(answers.name_bytes(name), self.session.space)

    async def ls(self, prefix: str | bytes = b"", limit: int = LS_LIMIT) -> list[LockInfo]:
        """All names with locks that begin with ``prefix``, as this node knows them, sorted by name."""
        found: dict[bytes, LockInfo] = {}
        args: dict[str, Any] = {"space": self.session.space, "prefix": answers.name_bytes(prefix), "limit": limit}
        while len(found) < limit:  # a long list comes in several answers
            known = len(found)
            page = [LockInfo.from_row(row) for row in await self.session.call("ls", args)]
            found.update((row.name, row) for row in page)
            if len(found) == known:
                break
            args = {**args, "after": max(found), "limit": limit - len(found)}
        return [found[name] for name in sorted(found)]

    async def holders(self, name: str | bytes) -> tuple[Holder, ...] | None:
        """The holders of ``name`` in the order of their grants; ``None`` if only another node knows them."""
        info = await self.show(name)
        return () if info is None else info.holders

    async def contenders(self, name: str | bytes) -> tuple[Holder, ...] | None:
        """Who waits for ``name``, in the order in which they will be served, conversions first (API-R13); ``None``
        if only another node knows.
        """
        info = await self.show(name)
        if info is None:
            return ()
        return None if info.waiters is None else (info.converting or ()) + info.waiters

    async def snapshot(self) -> dict[bytes, LockInfo]:
        """All names that this node knows, as ``ls`` tells them, by name."""
        return {info.name: info for info in await self.ls()}

    async def purge(self, node: int | None = None, pid: int = 0) -> int | None:
        """Drop the orphans of a process; see ``Client.purge``."""
        return await self.session.purge(node, pid)

    async def history(self, name: str | bytes, position: int | None = None, limit: int = 100) -> NameHistory:
        """The last ``limit`` events of ``name`` that this node still knows, up to ``position`` (looking.md)."""
        args = {"name": answers.name_bytes(name), "space": self.session.space, "limit": limit}
        if position is not None:
            args["position"] = position
        return NameHistory.from_answer(await self.session.call("history", args, answers.name_bytes(name)))

    async def held_at(self, name: str | bytes, position: int) -> HeldAt:
        """Who held ``name`` at a position of the table.

        Raises ``InvalidRequest`` (code ``position``) for one that this node does not know any more, or yet.
        """
        key = answers.name_bytes(name)
        args = {"name": key, "space": self.session.space, "position": position}
        return HeldAt.from_answer(await self.session.call("held_at", args, key))

    async def waiting(self) -> list[Withheld]:
        """What answers in this lockspace wait for at this node; see ``Client.waiting``."""
        return [Withheld.from_row(row) for row in await self.session.call("waiting", {"space": self.session.space})]

    async def why(self, name: str | bytes) -> Why:
        """Who waits for ``name``, blocked by whom, and what those wait for in turn; what keeps the node from
        answering.
        """
        key = answers.name_bytes(name)
        return Why.from_answer(await self.session.call("why", {"name": key, "space": self.session.space}, key))
