"""Private, Shared, Handover: the forms of a name; the fence numbers of an owner (design §5.1, K14)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from dlm.messages import Op
from dlm.resource import Mint, Resource
from vsync.types import RingId

__all__ = ["FENCE_BLOCK", "Fences", "Form", "Name"]

FENCE_BLOCK = 4096  #: numbers reserved at once for an owner


class Form(IntEnum):
    """Which of the three states a name is in. An unknown name has no entry at all."""

    PRIVATE = 0
    SHARED = 1
    HANDOVER = 2


_FORMS = tuple(Form)  # by number: a call of the class takes its time


class Fences:
    """Numbers for private grants, reserved at positions of *this* ownership (pitfalls B2).

    Each ordered operation of the owner on its own name reserves another block, and the fast path is taken
    only with more numbers left than operations queued; so ``take`` never finds it empty.
    """

    __slots__ = ("_blocks", "_last", "_lent", "asked", "left")

    def __init__(self) -> None:
        self._blocks: list[list[int]] = []
        self._last = 0  #: the number taken last
        self._lent = False  #: clients have taken several at once
        self.left = 0
        self.asked = False  #: a refill is on its way

    def add(self, first: int, count: int) -> None:
        """Append the numbers ``first .. first+count-1``, larger than all before."""
        self._blocks.append([first, first + count])
        self.left += count
        self.asked = False

    def take(self) -> int:
        """The next number."""
        block = self._blocks[0]
        number = self._last = block[0]
        block[0] += 1
        self.left -= 1
        if block[0] == block[1]:
            del self._blocks[0]
        return number

    def more(self, count: int) -> int:
        """Take up to ``count`` numbers that follow the last one taken; those that one event may need stay."""
        self._lent = True
        block = self._blocks[0] if self._blocks else None
        if block is None or block[0] != self._last + 1:
            return 0
        given = max(0, min(count, block[1] - block[0], self.left - FENCE_BLOCK // 2))
        block[0] += given
        self._last += given
        self.left -= given
        if block[0] == block[1]:
            del self._blocks[0]
        return given

    @property
    def low(self) -> bool:
        """Whether it is time to ask for another block."""
        return self.left < FENCE_BLOCK // 2 or (self._lent and self.left < FENCE_BLOCK * 3 // 4)

    def encode(self, base: int) -> tuple[Any, ...]:
        """As a msgpack-able tuple, with numbers as distances from ``base``: the next often comes right after it."""
        return self.asked, tuple((first - base, end - first) for first, end in self._blocks)

    @classmethod
    def decode(cls, row: tuple[Any, ...], base: int) -> Fences:
        """The inverse of ``encode``."""
        fences = cls()
        for first, count in row[1]:
            fences.add(base + first, count)
        fences.asked = row[0]
        return fences


class Name:
    """What is known about one name. The last fields exist at the owner only and are not replicated.

    Every node has one of these for every name there is: the contents are elsewhere, and most names have none here.
    """

    __slots__ = ("epoch", "era", "fences", "folded", "form", "owner", "resource", "waiting")

    def __init__(self, form: Form, owner: int, epoch: int, era: int = 0) -> None:
        self.form = form
        self.era = era  #: the last event about all names that has been carried out on this one (``dlm.purge``)
        self.owner = owner  #: node that owns it, or owned it before the handover; 0 when shared
        self.epoch = epoch  #: position at which this ownership began
        self.waiting: Sequence[Op] = ()  #: handover: what was ordered since, in order (A4)
        self.resource: Resource | None = None  #: shared: at everybody; private: at the owner only
        # ---- owner only
        self.fences: Fences | None = None
        self.folded: bytes | None = None  #: the contents and ``fences``, instead of both (``dlm.folded``)

    def share(self, resource: Resource) -> None:
        """Become Shared with these contents."""
        self.form, self.owner, self.resource = Form.SHARED, 0, resource
        self.fences = None

    def wait(self, op: Op) -> None:
        """In a handover: this has been ordered, and waits."""
        if not isinstance(self.waiting, list):
            self.waiting = list[Op]()
        self.waiting.append(op)

    def encode(self, key: bytes) -> tuple[Any, ...]:
        """The replicated part: no private contents."""
        shared = self.resource if self.form is Form.SHARED else None
        run, contents = ((shared.run_node, shared.run), shared.encode()) if shared is not None else ((0, 0), None)
        waiting = tuple(tuple(op) for op in self.waiting) if self.waiting else ()
        return key, int(self.form), self.owner, self.epoch, *run, waiting, contents

    @classmethod
    def decode(cls, row: tuple[Any, ...], mint: Mint, now: int) -> Name:
        """The inverse of ``encode``, for a node that owns nothing. Raises ``ValueError``."""
        name = cls(_FORMS[row[1]], row[2], row[3])
        if row[6]:
            name.waiting = [Op(op[0], op[1], RingId(*op[2]), *op[3:]) for op in row[6]]
        if row[7] is not None:
            name.resource = Resource.decode(row[7], mint, now)
            name.resource.run_node, name.resource.run = row[4], row[5]
        elif row[4] or row[5]:
            raise ValueError("only shared names count runs")
        return name
