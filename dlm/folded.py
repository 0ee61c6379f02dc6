"""The contents of private names that their owner has not used lately, as bytes.

A node may own a million names, most with one lock that somebody keeps for long. What is in use of such a name –
queues, counts, numbers for the next grants – are a dozen objects; written down they are some hundred bytes. So of a
node's private names those used last stand *open*, and of the others, if they have locks, the contents are *folded*.

Nobody sees a difference: ``Table.find`` and ``Table.local`` open a name, and names are folded between events only.
Who looks at many names asks for a view (``contents``), which opens none. Names that somebody waits for stay open.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgpack

from dlm.names import Fences, Form, Name
from dlm.resource import Resource

if TYPE_CHECKING:
    from dlm.table import Table

__all__ = ["OPEN", "Lately", "contents", "unfold"]

OPEN = 1024  #: private names that stand open, with their contents as objects

_PACK = msgpack.Packer().pack


class Lately:
    """The private names of one node that stand open, the one used last at the end."""

    __slots__ = ("_keys", "_table")

    def __init__(self, table: Table) -> None:
        self._table = table
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def used(self, key: bytes) -> None:
        """This name is open, and others go first."""
        self._keys[key] = None
        self._keys.move_to_end(key)

    def fold(self) -> None:
        """Fold those that were not used lately. To be called when nobody has the contents of a name in hand."""
        while len(self._keys) > OPEN:
            key, _ = self._keys.popitem(last=False)
            name = self._table.names.get(key)
            if name is not None:
                _fold(name)


def _fold(name: Name) -> None:
    """Fold a name of this node. One that is to be given back soon, or has changed hands, stays as it is."""
    resource, fences = name.resource, name.fences
    if name.form is not Form.PRIVATE or resource is None or fences is None or resource.queued or not resource.locks:
        return
    since = [lock.since for _, lock in sorted(resource.locks.items())]
    name.folded = _PACK((fences.encode(), since, resource.encode()))
    name.resource = name.fences = None


def unfold(table: Table, key: bytes, name: Name) -> None:
    """Open a name that is folded."""
    fences, resource = _read(key, name)
    resource.history = table.history
    name.resource, name.fences, name.folded = resource, fences, None
    table.lately.used(key)


def contents(key: bytes, name: Name) -> Resource | None:
    """What is known here of a name's contents: to be looked at, not to be kept."""
    return name.resource if name.folded is None else _read(key, name)[1]


def _read(key: bytes, name: Name) -> tuple[Fences, Resource]:
    numbers, since, row = msgpack.unpackb(name.folded, use_list=False)
    fences = Fences.decode(numbers)
    resource = Resource.decode(row, fences.take, 0)
    resource.name = key
    for lock, at in zip(resource.locks.values(), since, strict=True):
        lock.since = at
    return fences, resource
