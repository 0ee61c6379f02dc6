"""What an event of the table asks of nodes: outcomes for the homes of locks, and what else there is to be done."""

from __future__ import annotations

from typing import Any, NamedTuple

from dlm import failures, spaces
from dlm.lock import Effect

__all__ = ["Composed", "Effects", "Look", "Purge"]


class Composed(NamedTuple):
    """The owner's publication of a name in handover, to be sent by this node."""

    key: bytes
    epoch: int
    contents: tuple[Any, ...]


class Purge(NamedTuple):
    """The orphans of ``node`` (of process ``pid``, 0: all) are to go; that node knows them, and sees to it."""

    node: int
    pid: int


class Look(NamedTuple):
    """A private name of this node that a multi-lock has changed: to be looked after, or given up."""

    key: bytes
    give_up: bool


Effects = list[Effect | Composed | Look | Purge | spaces.Told | spaces.Ask | spaces.Ended | failures.Fate]
