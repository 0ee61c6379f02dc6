"""Multi-locks: several names at one position of the order, or none (design §5.5, pitfalls F2–F4).

A multi-lock stands as one waiting lock in the queue of each of its names, a *part*; ``Lock.batch`` are all the
names, sorted, and the handles of the parts follow each other in that order. A part is never granted by its
resource: only here, together with all others, and only when each of them would be granted now if it were alone.
A part at the head of a queue holds back who stands behind it, like any waiter (fairness).

All parts enter their queues at one position (in a handover: the list of what waits for it, A4), so two multi-locks
stand in the same order in every queue that they share, and cannot block each other for ever.

Where the parts are: all in shared names, or all in names private to the node of the session. In between, while one
of the names changes hands, some parts stand in queues that only one node can see, and then nothing is granted; the
owner gives up its other names at once, so that this passes. For the same reason whoever withdraws a part withdraws
all of them in one message that names them all: each member then does what it can see.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dlm import tries
from dlm.lock import Effect, Key, Lock, State, Step, What
from dlm.messages import Kind, Op
from dlm.modes import NOQUEUE
from dlm.names import Form, Name
from dlm.resource import Resource
from dlm.waits import alone

if TYPE_CHECKING:
    from typing import Any

    from dlm.table import Effects, Life, Table

__all__ = ["HANDLERS", "Part", "enter", "follow", "grantable", "keys_of", "parts", "refuse", "settle"]

Part = tuple[bytes, Resource, Lock]


# -- messages ------------------------------------------------------------------------------------------------


def _lock_all(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """All names become the sender's own, or all become shared: nobody can judge what only others see (F2)."""
    session, h, asked, pid, program, xid, owner = body
    batch = tuple(key for key, _, _ in asked)
    code = next(filter(None, map(table.spaces.refuses, batch)), "")
    if code:
        out.extend(Effect(What.REFUSED, (life.node, session, h + index), code) for index in range(len(batch)))
        return
    known = [name for name in map(table.find, batch) if name is not None]
    own = all(name.form is Form.PRIVATE and name.owner == life.node for name in known)
    entering: list[Part] = []
    for index, (key, mode, flags) in enumerate(asked):
        request = session, h + index, mode, flags, None, pid, program, xid, owner, batch
        op = Op(Kind.LOCK, life.node, life.ring, *request)
        name = _prepare(table, key, life.node, own, out)
        if name.form is Form.HANDOVER:
            name.wait(op)
        elif name.resource is not None:
            entering.append((key, name.resource, Lock.asked_for(op, table.now)))
    enter(table, entering, out)
    for key, _, _ in entering:
        table.operated(key, life.node)


def _prepare(table: Table, key: bytes, node: int, own: bool, out: Effects) -> Name:
    """Bring a name into the form that the multi-lock needs."""
    name = table.find(key)
    if name is None:
        if own:
            return table.own(key, node)
        name = table.add(key, Form.SHARED, 0)
        table.share(key, name, Resource(table.mint))
    elif name.form is Form.PRIVATE:
        if own:
            table.reserve(name)
        else:
            table.hand_over(key, name, out)
    return name


def _unlock_all(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    session, locks = body
    for key, h, flags, value in locks:
        table.operate(key, Op(Kind.UNLOCK, life.node, life.ring, session, h, 0, flags, value), out)


def _cancel_all(table: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    session, flags, locks = body
    for key, h in locks:
        table.operate(key, Op(Kind.CANCEL, life.node, life.ring, session, h, 0, flags, None), out)


HANDLERS: dict[int, Callable[[Table, Life, tuple[Any, ...], Effects], None]] = {
    Kind.LOCK_ALL: _lock_all,
    Kind.UNLOCK_ALL: _unlock_all,
    Kind.CANCEL_ALL: _cancel_all,
}


# -- granting ------------------------------------------------------------------------------------------------


def enter(table: Table, entering: list[Part], out: Effects) -> None:
    """Queue parts of one multi-lock; grant it if this was all that was missing.

    NOQUEUE is decided where the last part arrives (``settle``); until then it waits like others (F3).
    """
    taken = next((part for part in entering if part[2].key in part[1].locks), None)
    if taken is not None:
        refuse(table, taken[0], taken[2], "exists", out)
        return
    effects: list[Effect] = []
    if _at_once(entering):
        for _, resource, lock in entering:
            resource.admit(lock, effects)
        out.extend(effects)
        return
    for _, resource, lock in entering:
        resource.enter(lock)
    for key, _, _ in entering[:1]:  # each would do: it needs them all
        settle(table, key, out)
    for _, resource, lock in entering:
        if lock.batch and lock.key in resource.locks:
            resource.advise(lock, effects)
    out.extend(effects)
    for _, resource, lock in entering:
        if resource.waits is None:
            out.extend(alone(table, resource, lock.key))


def _at_once(entering: list[Part]) -> bool:
    """Whether these are all parts, and nobody is in the way: the usual case, without the queues."""
    whole = bool(entering) and len(entering) == len(entering[0][2].batch)
    return whole and all(resource.turn(lock) for _, resource, lock in entering)


def settle(table: Table, key: bytes, out: Effects) -> None:
    """Something has changed in this name: grant the multi-locks that can go now, and what then follows; refuse
    those that are only tried and cannot, nor would if all that may be idle went (``dlm.tries``).
    """
    todo = [key]
    for each in todo:  # it grows meanwhile
        while (ready := grantable(table, each)) is not None:
            effects: list[Effect] = []
            for _, resource, lock in ready:
                resource.admit(lock, effects)
            for name, resource, _ in ready:
                resource.scan(effects)
                todo.append(name)
            out.extend(effects)
        while (hopeless := _hopeless(table, each)) is not None:
            refuse(table, each, hopeless, "again", out)


def grantable(table: Table, key: bytes) -> list[Part] | None:
    """The parts of the multi-lock at the head of this name's queue, if it can be granted now."""
    name = table.find(key)
    resource = name.resource if name is not None else None
    if resource is None or not resource.grouped or not resource.waiting:
        return None
    head = resource.waiting[0]
    if not head.batch or not resource.turn(head):
        return None
    found = parts(table, key, head)
    return found if found and all(resource.turn(lock) for _, resource, lock in found) else None


def _hopeless(table: Table, key: bytes) -> Lock | None:
    """A multi-lock in this name's queue that is only tried, and has to wait for locks that are in use."""
    name = table.find(key)
    resource = name.resource if name is not None else None
    for lock in resource.waiting if resource is not None and resource.tries and resource.grouped else ():
        found = parts(table, key, lock) if lock.batch and lock.flags & NOQUEUE else None
        if found and not all(where.turn(part) or tries.hopeful(where, part) for _, where, part in found):
            return lock
    return None


def keys_of(key: bytes, lock: Lock) -> list[tuple[bytes, Key]]:
    """The names of a waiting multi-lock with the keys of its parts there, given one part and its name."""
    node, session, h = lock.key
    first = h - lock.batch.index(key)
    return [(each, (node, session, first + index)) for index, each in enumerate(lock.batch)]


def parts(table: Table, key: bytes, lock: Lock) -> list[Part] | None:
    """All parts of a waiting multi-lock, if all stand in queues that can be judged here: else ``None``."""
    found: list[Part] = []
    forms: set[Form] = set()
    for each, who in keys_of(key, lock):
        name = table.find(each)
        part = name.resource.locks.get(who) if name is not None and name.resource is not None else None
        if name is None or name.resource is None or part is None or part.batch != lock.batch:
            return None
        forms.add(name.form)
        found.append((each, name.resource, part))
    return found if len(forms) == 1 else None


# -- withdrawing ---------------------------------------------------------------------------------------------


def refuse(
    table: Table, key: bytes, lock: Lock, code: str, out: Effects, cycle: tuple[Step, ...] = ()
) -> None:
    """The multi-lock of this waiting part fails as a whole, at this position. ``key`` is the name of the part.

    Parts in a handover follow when it ends, before anything behind them is looked at.
    """
    everywhere = keys_of(key, lock)
    batch = lock.batch
    out.extend(Effect(What.REFUSED, who, code, cycle=cycle) for _, who in everywhere)
    effects: list[Effect] = []
    for each, who in everywhere:
        name = table.find(each)
        if name is None:
            continue
        if name.form is Form.HANDOVER:
            ring = table.lives[who[0]].ring
            name.wait(Op(Kind.CANCEL, who[0], ring, who[1], who[2], 0, 0, None))
        elif name.resource is not None:
            part = name.resource.locks.get(who)
            if part is not None and part.state is State.WAITING and part.batch == batch:
                name.resource.drop(part, code, effects)
            table.touched[each] = None
    out.extend(effects)
    for each, _ in everywhere:
        settle(table, each, out)


def follow(table: Table, resource: Resource) -> list[bytes]:
    """A private name goes into handover: the other names that its waiting multi-locks need, to be given up too."""
    wanted = {key for lock in resource.waiting for key in lock.batch}
    return sorted(key for key in wanted if table.local(key) is not None)
