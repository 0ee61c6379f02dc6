"""What concerns every name, carried out name by name: at once where somebody may notice, later everywhere else.

Lives end, a lockspace is released: that is about any number of names, and a step of the ring's loop must not take
long. So such an event becomes a *due* of the table. Each name carries the number of the last due that was carried
out on it, its *era*. Whoever looks at a name by ``Table.find`` brings it up to date first, so that nobody sees a
difference; the rest is done in small pieces, when there is time (``walk``). Names that nobody touches may be done
in any order, at other times at each member, and the table is the same:

* nothing is granted there: who waits, or has parts of multi-locks, waits in a name that is dealt with at once
  (``end_lives``), and who begins to wait later has brought the name up to date before;
* so no fence number is used, no effect comes out, and no circle of waits is closed or opened;
* it goes neither into the rolling checksum nor into the ring of ordered events, but beside it (``history.Late``);
* a name that is left without locks is no more, instead of vacant: the order of those is part of the table.

The rules are those of design §5.2 and pitfalls K5, A7, C4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dlm import multi
from dlm.history import Late
from dlm.names import Form, Name
from dlm.resource import Effect, Resource
from dlm.work import ITEM

if TYPE_CHECKING:
    from dlm.life import Life
    from dlm.table import Effects, Table

__all__ = ["Due", "LivesEnded", "end_lives", "walk"]


class Due:
    """One event that concerns every name that there was at its position."""

    __slots__ = ("era", "late")

    holds = False  #: it is carried out only on names that somebody looks at, and ends by itself

    def __init__(self, table: Table) -> None:
        table.era += 1
        self.era = table.era
        self.late = Late(table.history, table.applied, table.now)

    def settle(self, table: Table, key: bytes, name: Name) -> bool:
        """Carry it out on one name of the table. False: the name is no more."""
        resource = name.resource if name.form is Form.SHARED else None
        if resource is not None:
            resource.history = self.late
        if self.carry(key, name):
            if resource is not None:
                resource.history = table.history
            return True
        if resource is not None:
            table.waits.release(resource)
        self.late.freed(key, table.forget(key))
        return False

    def carry(self, key: bytes, name: Name) -> bool:
        """Do it to one name, and to nothing else. False: the name is no more."""
        raise NotImplementedError


class LivesEnded(Due):
    """The lives of these nodes have ended: their locks go, and the names that were private to them."""

    __slots__ = ("dead", "ending")

    def __init__(self, table: Table, lives: Iterable[Life]) -> None:
        super().__init__(table)
        self.dead = frozenset(life.node for life in lives)
        self.ending = table.failures.ending()

    def settle(self, table: Table, key: bytes, name: Name) -> bool:
        """See ``Due``."""
        if self.ending:
            table.failures.concern(key, name, self.ending)
        return super().settle(table, key, name)

    def carry(self, key: bytes, name: Name) -> bool:
        """See ``Due``. A handover that ends with its owner is never met here (``end_lives``)."""
        if name.form is not Form.SHARED:
            return name.form is Form.HANDOVER or name.owner not in self.dead
        resource = name.resource
        assert resource is not None
        if self.dead.isdisjoint(resource.homes):
            return True
        effects: list[Effect] = []
        resource.purge(sorted(self.dead), effects)
        assert not effects, "somebody waited here"
        return bool(resource.locks)


def end_lives(table: Table, lives: Sequence[Life], out: Effects) -> None:
    """Drop everything of these lives, grant what becomes possible, name by name in sorted order.

    Done here: shared names in which somebody waits, and handovers whose owner is among the dead. Those become
    Shared and empty, their value block not valid, and then what waited in them is applied (A7); last of all, when
    everything else is free. The rest is due from now on.
    """
    if not lives:
        return
    due = LivesEnded(table, lives)
    found = {key for key in table.handovers if table.names[key].owner in due.dead}
    for waiting in table.waits.queued.values():
        found.update(each.name for each in waiting.values() if not due.dead.isdisjoint(each.homes))
    affected = [key for key in found if table.find(key) is not None]  # past this due as well, which is none yet
    table.dues.append(due)
    for key in sorted(affected, key=lambda key: (table.names[key].form is Form.HANDOVER, key)):
        name = table.names[key]
        if due.ending:
            table.failures.concern(key, name, due.ending)
        if name.form is Form.HANDOVER:
            table.publish(key, name, Resource(table.mint, valid=False), out)
            continue
        assert name.resource is not None
        effects: list[Effect] = []
        name.resource.purge(sorted(due.dead), effects)
        out.extend(effects)
        multi.settle(table, key, out)
        if name.resource.locks:
            table.touched[key] = None
        else:
            table.free(key)
    table.sweep(out)


def walk(table: Table, era: int) -> Iterator[int]:
    """Bring all names up to this era, one at a time; gives the cost of each, in ``dlm.work.ITEM``ths of an item.

    Afterwards nothing up to it is due any more, but for what ``holds``.
    """
    for key in list(table.names):
        name = table.names.get(key)
        if name is None or name.era >= era:
            yield 1
            continue
        locks = len(name.resource.locks) if name.resource is not None else 0
        left = table.bring(key, name, era)
        yield 1 if left is not None and (left.resource is None or len(left.resource.locks) == locks) else ITEM
    table.dues = [due for due in table.dues if due.era > era or due.holds]
