"""The verbs of people who look on: nothing here changes a lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlm import arguments, history, queries, waiting, why
from dlm.messages import key_of
from dlm.names import Form

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["VERBS", "status"]

Args = Mapping[str, Any]

MAX_EVENTS = 1000  #: in one answer


def status(service: DlmService) -> dict[str, Any]:
    """A snapshot for people and programs; msgpack-able."""
    table, home = service.table, service.home
    forms = table.forms
    return {
        "state": service.state,
        "ring": str(table.ring),
        "applied": table.applied,
        "names": len(table.names),
        "private": forms[Form.PRIVATE],
        "shared": forms[Form.SHARED],
        "handover": forms[Form.HANDOVER],
        "spaces": len(table.spaces.by_name),
        "handles": sum(len(session.handles) for session in home.sessions.values()),
        "outbox": len(home.outbox),
        "sent": home.outbox.sent,
        "fast": home.fast,
        "ignored": table.ignored,
        "checksum": f"{table.history.rolling.value:08x}",
        "checked": service.checker.checked,
        "diverged": service.checker.found,
        "deadlock_searches": table.waits.searches,
        "deadlocks": table.waits.found,
        "lost": home.teller.lost,
        "deferred": len(home.teller.backlog),
        "waiting": waiting.records(service),
        "fences": home.stonith.rows(),
        "generation": service.lease_clock.generation,
        "lease_left_ms": max(0, service.lease_clock.deadline - home.now) // 1000,
        "grants_wait_ms": max(0, service.lease_clock.horizon - home.now) // 1000,
    }


def _ls(service: DlmService, session: int, rid: int, args: Args) -> None:
    space, limit = _seen(service, session, args), arguments.number(args, "limit", 0, 1000)
    prefix, after = arguments.prefix(args), arguments.prefix(args, "after")
    service.host.reply(session, rid, queries.listing(service.table, space, prefix, limit, after))


def _show(service: DlmService, session: int, rid: int, args: Args) -> None:
    key = key_of(_seen(service, session, args), arguments.name(args))
    name = service.table.find(key)
    if name is None or key in service.table.vacant:
        service.host.refuse(session, rid, "unknown", "no locks on this name")
    else:
        service.host.reply(session, rid, queries.row(key, name))


def _history(service: DlmService, session: int, rid: int, args: Args) -> None:
    key, table = key_of(_seen(service, session, args), arguments.name(args)), service.table
    position = arguments.number(args, "position", 0, table.applied)
    limit = arguments.number(args, "limit", 1, 100)
    service.host.reply(session, rid, history.recent(table, key, position, min(limit, MAX_EVENTS)))


def _held_at(service: DlmService, session: int, rid: int, args: Args) -> None:
    key = key_of(_seen(service, session, args), arguments.name(args))
    position = arguments.number(args, "position", 0)
    try:
        answer = history.past(service.table, key, position)
    except ValueError as known:
        service.host.refuse(session, rid, "position", f"who held it at position {position} is not known: {known}")
    else:
        service.host.reply(session, rid, answer)


def _why(service: DlmService, session: int, rid: int, args: Args) -> None:
    key = key_of(_seen(service, session, args), arguments.name(args))
    service.host.reply(session, rid, why.explain(service, key))


def _waiting(service: DlmService, session: int, rid: int, args: Args) -> None:
    """What answers in a lockspace wait for, at this node."""
    service.host.reply(session, rid, waiting.records(service, _seen(service, session, args)))


def _record(service: DlmService, session: int, rid: int, args: Args) -> None:
    """For administrators: everybody's names, programs and value blocks are in it."""
    if service.home.sessions[session].who.uid not in (0, service.host.config.uid):
        service.host.refuse(session, rid, "permission", "only root and the daemon's user may record")
    elif not service.complete:
        service.host.refuse(session, rid, "joining", "this node has not got the lock table from the others yet")
    elif service.taps.full(session):
        service.host.refuse(session, rid, "busy", "this node is being recorded already")
    else:
        service.host.reply(session, rid, service.taps.begin(session))


def _record_read(service: DlmService, session: int, rid: int, args: Args) -> None:
    """The next piece of the table, when it is there; an empty one at its end."""
    if not service.taps.piece(session, rid):
        service.host.refuse(session, rid, "unknown", "this session records nothing")


def _record_end(service: DlmService, session: int, rid: int, args: Args) -> None:
    service.taps.end(session, rid)


def _stats(service: DlmService, session: int, rid: int, args: Args) -> None:
    service.host.reply(session, rid, service.status())


def _seen(service: DlmService, session: int, args: Args) -> str:
    """The lockspace, if the caller may look into it."""
    return service.home.gate.seen(service.home.sessions[session], args)


VERBS: dict[str, Callable[[DlmService, int, int, Args], None]] = {
    "ls": _ls,
    "show": _show,
    "history": _history,
    "held_at": _held_at,
    "why": _why,
    "waiting": _waiting,
    "record": _record,
    "record_read": _record_read,
    "record_end": _record_end,
    "stats": _stats,
}
