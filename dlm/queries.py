"""What people may ask the table: ``ls`` and ``show`` rows, msgpack-able."""

from __future__ import annotations

from typing import Any

from dlm.folded import contents
from dlm.messages import key_of, split_key
from dlm.modes import NAMES, NONE
from dlm.names import Form, Name
from dlm.resource import Lock, Resource, State
from dlm.table import Table

__all__ = ["listing", "row"]

PAGE_BYTES = 1 << 20  #: of one answer: half of what a frame to a client may have
ROW_BYTES, LOCK_BYTES = 320, 180  #: what a name and a lock take in it, with names that are not short

_FORMS = {Form.PRIVATE: "private", Form.SHARED: "shared", Form.HANDOVER: "handover"}


def listing(table: Table, space: str, prefix: bytes, limit: int, after: bytes = b"") -> list[dict[str, Any]]:
    """The rows of the names in a lockspace that begin with ``prefix`` and come after ``after``, sorted.

    At most ``limit``, and no more than fit into one answer: whoever wants the rest asks again, with the last name
    as ``after``.
    """
    start, last = key_of(space, prefix), key_of(space, after)
    keys = sorted(
        key
        for key in table.names
        if key.startswith(start) and (not after or key > last) and key not in table.vacant
    )
    rows: list[dict[str, Any]] = []
    size = 0
    for key in keys[:limit]:
        name = table.names[key]
        size += ROW_BYTES
        resource = contents(key, name)
        if resource is not None:
            size += LOCK_BYTES * len(resource.locks)
            size += sum(len(key) for lock in resource.waiting for key in lock.batch)
        if rows and size > PAGE_BYTES:
            break
        rows.append(row(key, name, queues=False))
    return rows


def row(key: bytes, name: Name, queues: bool = True) -> dict[str, Any]:
    """One name. ``holders`` and queues are ``None`` if it is private to another node or in handover."""
    space, plain = split_key(key)
    resource = contents(key, name)
    result: dict[str, Any] = {
        "name": plain,
        "space": space,
        "state": _FORMS[name.form],
        "owner": name.owner or None,
        "mode": None,
        "holders": None,
        "converting": None,
        "waiters": None,
        "fence": None,
        "value_valid": None,
    }
    if resource is not None:
        result.update(_contents(resource))
    if queues and resource is not None:
        result["value"] = resource.value
    return result


def _contents(resource: Resource) -> dict[str, Any]:
    granted = [lock for lock in resource.locks.values() if lock.state is State.GRANTED]
    top = resource.top_mode()
    return {
        "mode": NAMES[top] if top != NONE else None,
        "holders": [_lock(lock) for lock in granted],
        "converting": [_lock(lock) for lock in resource.converting],
        "waiters": [_lock(lock) for lock in resource.waiting],
        "fence": max((lock.fence for lock in resource.locks.values()), default=0),
        "value_valid": resource.valid,
    }


def _lock(lock: Lock) -> dict[str, Any]:
    node, session, h = lock.key
    return {
        "node": node,
        "session": session,
        "h": h,
        "mode": NAMES[lock.mode] if lock.mode != NONE else None,
        "asked": NAMES[lock.asked],
        "pid": lock.pid,
        "name": lock.program,
        "fence": lock.fence,
        "since_us": lock.since,
        "orphan": lock.orphan,
        "cached": lock.cached,
        "together": [split_key(key)[1] for key in lock.batch],
    }
