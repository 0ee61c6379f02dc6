"""The word of clients that may have a lock idle: it is in use (``dlm.tries``). Who gives it, and where it goes.

A client says so when it is told that the lock is in somebody's way; who converts a lock uses it; and of a client
that is silent for too long it is taken for said (``dlm.upkeep``), as others do not wait for a stopped process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm import tries
from dlm.lock import Effect, Key
from dlm.messages import Kind
from dlm.modes import NONE
from dlm.resource import Resource
from dlm.waits import alone_all

if TYPE_CHECKING:
    from dlm.handle import Handle
    from dlm.home import Home
    from dlm.table import Table

__all__ = ["given", "taken"]


def given(home: Home, handle: Handle) -> None:
    """The lock of this handle is in use, if nobody has said so before."""
    if not handle.cached or handle.ending or handle.mode == NONE:
        return
    handle.cached = False
    home.teller.advice.answered(handle)
    name = home.own_now(handle.key)
    if name is None or name.resource is None:
        home.operate(Kind.IN_USE, handle, 0, 0, None)
    else:
        key = (home.host.me.node, handle.session, handle.h)
        home.locally(handle.key, name, taken(home.table, name.resource, key))


def taken(table: Table, resource: Resource, key: Key) -> list[Effect]:
    """What follows from it in the table."""
    effects: list[Effect] = []
    tries.in_use(resource, key, effects)
    return effects + alone_all(table, resource)
