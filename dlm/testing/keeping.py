"""Clients that keep locks after their release: ``dlm.cache`` as the library uses it, with the simulator's daemons.

What ``dlm.caching`` does with threads is done here in single steps, whose order is drawn: a client hears late that
its lock is in somebody's way, or is lost, and takes it again meanwhile. Each use is a handle of its own, which the
rules for holders and fences judge as any other; no number of a block is ever seen with another lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dlm.cache import Key
from dlm.modes import EX, NONE
from dlm.testing.clients import Client, Handle, Operation
from vsync.testing.violation import Violation

if TYPE_CHECKING:
    from dlm.testing.workload import LockPlugin

__all__ = ["Keeping"]

SPACE = "default"
Lock = tuple[int, int, int, int]  #: node, its incarnation, session, handle number


class Keeping:
    """The part of ``LockPlugin`` that is about kept locks."""

    def __init__(self, plugin: LockPlugin) -> None:
        self._plugin = plugin
        self._users = 0
        self._blocks: dict[bytes, list[tuple[int, int, Lock]]] = {}  #: by name: numbers from .. to, and whose

    # -- what a client does

    def lock(self, client: Client, name: bytes, mode: int = EX, noqueue: bool = False) -> Handle:
        """Take a kept lock again, or ask for one that may be kept."""
        self._users += 1
        key: Key = (SPACE, name, mode, 0)
        entry = client.cache.idle.get(key)
        lease = (client.page.generation, client.page.deadline)
        if entry is not None and client.cache.take(entry, self._users, lease, client.node.clock()):
            return self._again(client, entry.serial, name, mode)
        self.make_room(client, name)
        handle = client.new_handle(name)
        handle.entry = entry = client.cache.ask(key, handle.h, self._users)
        handle.user = self._users
        more = {"name": name, "cache": True, "blocking": True, "fences": entry.fences}
        self._plugin.ask("lock", handle, mode, noqueue, more)
        return handle

    def _again(self, client: Client, serial: int, name: bytes, mode: int) -> Handle:
        entry = client.cache.entries[serial]
        handle = client.handles[serial] = Handle(client, serial, name, listens=True)
        handle.entry, handle.user = entry, self._users
        handle.mode = handle.granted = mode
        handle.first, handle.fence, handle.generation = client.firsts[serial], entry.fence, entry.generation
        self._plugin.met["taken again"] += 1
        if not handle.valid():
            raise Violation("LEASE", f"{handle} of {name!r} is taken again, and not held for certain")
        self.granted(handle)
        self._plugin.believes(handle, new_fence=True)
        return handle

    def release(self, handle: Handle) -> bool:
        """The handle is over. Whether its lock is kept; if not, it is for the caller to release."""
        client, entry = handle.client, handle.entry
        if entry is None:
            return False
        if handle.operation is not None or handle.canceling or not handle.valid():
            self.drop(handle)
            return False
        if not client.cache.put(entry, handle.user, client.node.clock()):
            return False
        client.drop(handle)
        return True

    @staticmethod
    def drop(handle: Handle) -> None:
        """Its lock is a lock like any other from now on."""
        if handle.entry is not None:
            handle.client.cache.drop(handle.entry, handle.user)
            handle.entry = None

    def make_room(self, client: Client, name: bytes) -> None:
        """It asks for this name in another way."""
        self._unlock(client, client.cache.make_room(SPACE, name))

    def expire(self, client: Client) -> None:
        """What has been idle for long goes."""
        self._unlock(client, client.cache.expire(client.node.clock()))

    def give_back(self, client: Client) -> None:
        """All that is idle goes."""
        self._unlock(client, client.cache.clear())

    # -- what it hears

    def succeeded(self, operation: Operation, data: dict[str, Any]) -> None:
        """A lock request was granted; its handle knows the fence by now."""
        handle = operation.handle
        handle.first, count = handle.fence, data.get("fences", 1)
        self._reserved(handle, count)
        if handle.entry is not None:
            handle.client.firsts[handle.h] = handle.fence
            handle.client.cache.granted(handle.entry, handle.fence, count, handle.generation)

    def called(self, client: Client, serial: int) -> None:
        """The lock is in somebody's way."""
        state = client.cache.call(serial)
        if state == "idle":
            self._unlock(client, [serial])
        elif state == "used" and client.connected:
            self._plugin.ask("in_use", Handle(client, serial, b""), NONE, False, {})

    # -- rules

    def granted(self, handle: Handle) -> None:
        """FENCE-K14: its number is in nobody else's block. Raises ``Violation``."""
        who = _lock_of(handle)
        for first, last, whose in self._blocks.get(handle.name, ()):
            if first <= handle.fence <= last and whose != who:
                text = f"{handle} has fence {handle.fence}, of the block {first}..{last} of {whose}"
                raise Violation("FENCE-K14", f"{handle.name!r}: {text}")

    def _reserved(self, handle: Handle, count: int) -> None:
        self.granted(handle)
        if count > 1:
            block = handle.fence, handle.fence + count - 1, _lock_of(handle)
            self._blocks.setdefault(handle.name, []).append(block)
            self._plugin.met["blocks"] += 1

    def _unlock(self, client: Client, serials: list[int]) -> None:
        for serial in serials:
            if client.connected:
                self._plugin.ask("unlock", Handle(client, serial, b"", over=True), NONE, False, {})


def _lock_of(handle: Handle) -> Lock:
    client = handle.client
    return client.node.id, client.incarnation, client.session, handle.h
