"""The part of ``AsyncClient`` that is about lockspaces; see docs/lockspaces.md."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

from dlm.aio.session import AsyncSession, Part
from dlm.arguments import PERMISSIONS, VALUE_LIMIT
from dlm.client_spaces import SpaceInfo, space_options

if TYPE_CHECKING:
    from typing import Self

__all__ = ["AsyncSpaces", "open_space"]

WhenNoQuorum = Literal["wait", "fail"]
Answer = Literal["delivery", "stable"]


class AsyncSpaces(Part):
    """Everything is as in ``Client``."""

    _opened: AsyncSession | None
    _root: bool = True  #: it ends the session when it is closed; a view of another lockspace does not

    @property
    def space_name(self) -> str:
        """The lockspace whose names this client locks."""
        return self.session.space

    async def space(self, name: str, *, create: bool = True, no_quorum: WhenNoQuorum = "wait") -> Self:
        """A client of another lockspace over the same session; see ``Client.space``.

        ``async with await locks.space("blue") as blue`` gives back at its end what the session has there.
        """
        limit = await open_space(self.session, name, create, no_quorum)
        view = copy.copy(self)
        view._opened = self.session.within(name, limit)
        view._root = False
        return view

    async def create_space(
        self,
        name: str,
        *,
        permissions: int = PERMISSIONS,
        value_limit: int = VALUE_LIMIT,
        exclusive: bool = True,
        answer: Answer | None = None,
        lock_delay: float | None = None,
        fencing: bool | None = None,
        recovery: bool | None = None,
    ) -> SpaceInfo:
        """Make a lockspace; see ``Client.create_space``."""
        args = {"permissions": permissions, "value_limit": value_limit, "exclusive": exclusive}
        args |= space_options(answer, lock_delay, fencing, recovery)
        return SpaceInfo.from_row(await self.session.call("space_create", {"space": name, **args}))

    async def set_space(
        self,
        name: str,
        *,
        answer: Answer | None = None,
        lock_delay: float | None = None,
        fencing: bool | None = None,
        recovery: bool | None = None,
    ) -> SpaceInfo:
        """Change options of a lockspace; see ``Client.set_space``."""
        args = space_options(answer, lock_delay, fencing, recovery)
        return SpaceInfo.from_row(await self.session.call("space_set", {"space": name, **args}))

    async def release_space(self, name: str, force: int = 0) -> None:
        """Release a lockspace; see ``Client.release_space``."""
        await self.session.call("space_release", {"space": name, "force": force})

    async def spaces(self) -> list[SpaceInfo]:
        """All lockspaces, sorted by name, as this node knows them."""
        return [SpaceInfo.from_row(row) for row in await self.session.call("space_ls", {})]


async def open_space(session: AsyncSession, name: str, create: bool, no_quorum: WhenNoQuorum) -> int:
    """Make lockspace ``name`` usable for the session; ``default`` always is. Returns its value limit."""
    if name == "default":
        return VALUE_LIMIT
    verb = "space_create" if create else "space_open"
    row = await session.call(verb, {"space": name, "no_quorum": no_quorum})
    return int(row.get("value_limit", VALUE_LIMIT))
