"""The contents of private names that their owner has not used lately, as bytes.

A node may own a million names, most with one lock that somebody keeps for long. What is in use of such a name –
queues, counts, numbers for the next grants – are a dozen objects; written down they are some hundred bytes. So of a
node's private names those used last stand *open*, and of the others, if they have locks, the contents are *folded*.

Nobody sees a difference: ``Table.find`` and ``Table.local`` open a name, and names are folded between events only.
Who looks at many names asks for a view (``contents``), which opens none. Names that somebody waits for stay open.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgpack

from dlm.names import Fences, Form, Name
from dlm.resource import Resource

if TYPE_CHECKING:
    from dlm.table import Table

__all__ = ["OPEN", "Lately", "contents", "unfold"]

OPEN = 1024  #: private names that stand open, with their contents as objects

_FENCE, _HEAD = 7, 10  # in ``Lock.encode``: the place of the fence, and what stands before ..
_TAIL = (0, 0, 0, 0, 0, 0, ())  # .. this, which most locks have there
_PACK = msgpack.Packer().pack


class Lately:
    """The private names of one node that stand open, the one used last at the end."""

    __slots__ = ("_keys", "_table", "last", "many")

    def __init__(self, table: Table) -> None:
        self.last = b""  #: the name that was used last
        self.many = False  #: some are to be folded
        self._table = table
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def used(self, key: bytes) -> None:
        """This name was used, and others are folded before it. To be called with the contents of none in hand."""
        self.last = key
        self.opened(key)
        if self.many:
            self.fold()

    def opened(self, key: bytes) -> None:
        """Somebody has looked at this name."""
        if key in self._keys:
            self._keys.move_to_end(key)
        else:
            self._keys[key] = None
        self.many = len(self._keys) > OPEN

    def fold(self) -> None:
        """Fold those that were not used lately. To be called when nobody has the contents of a name in hand."""
        self.many = False
        while len(self._keys) > OPEN:
            key, _ = self._keys.popitem(last=False)
            if key == self.last:
                self.last = b""
            name = self._table.names.get(key)
            if name is not None:
                _fold(name)


def _fold(name: Name) -> None:
    """Fold a name of this node. One that is to be given back soon, or has changed hands, stays as it is."""
    resource, fences = name.resource, name.fences
    if resource is None or not resource.locks or fences is None or name.form is not Form.PRIVATE or resource.queued:
        return
    since = [lock.since for _, lock in sorted(resource.locks.items())]
    value, valid, granted, *_ = resource.encode()
    name.folded = _PACK((fences.encode(granted[0][_FENCE]), since, value, valid, list(map(_short, granted))))
    name.resource = name.fences = None


def unfold(table: Table, key: bytes, name: Name) -> None:
    """Open a name that is folded."""
    fences, resource = _read(key, name)
    resource.history = table.history
    name.resource, name.fences, name.folded = resource, fences, None
    table.lately.opened(key)


def contents(key: bytes, name: Name) -> Resource | None:
    """What is known here of a name's contents: to be looked at, not to be kept."""
    return name.resource if name.folded is None else _read(key, name)[1]


def _read(key: bytes, name: Name) -> tuple[Fences, Resource]:
    numbers, since, value, valid, granted = msgpack.unpackb(name.folded, use_list=False)
    fences = Fences.decode(numbers, granted[0][_FENCE])
    resource = Resource.decode((value, valid, map(_long, granted), (), ()), fences.take, 0)
    resource.more = fences.more
    resource.name = key
    for lock, at in zip(resource.locks.values(), since, strict=True):
        lock.since = at
    return fences, resource


def _short(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A lock as it is written down, without what it has in common with most."""
    end = len(row)
    while end > _HEAD and not row[end - 1]:
        end -= 1
    return row[:end]


def _long(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inverse."""
    return row + _TAIL[len(row) - _HEAD :]
