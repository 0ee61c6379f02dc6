"""What a local client may ask of the lock manager: one function a verb, and the table of them.

Each takes ``(service, session, rid, args)`` and answers through the host, now or later. What is wrong with the
arguments is said at once, with the rule (locks.md §1.7); what happens to a lock is said when it has happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlm import arguments, failure_verbs, fence_verbs, group, looking, space_verbs, words
from dlm.handle import Handle, Request
from dlm.handles import Session
from dlm.messages import Kind
from dlm.modes import CANCEL, IVVALBLK, NONE, PW, VALBLK

if TYPE_CHECKING:
    from dlm.service import DlmService
    from dlm.spaces import Space

__all__ = ["VERBS", "handle", "refuse"]

UNSAFE = (
    "[quorum] policy = {policy!r} lets both parts of a cut cluster grant the same lock, and there is no agent for "
    "{nodes} in [dlm.fencing] here (docs/stonith.md): use 'majority' with a third node, or set unsafe = true if "
    "nothing depends on it (docs/quorum.md)"
)

Args = Mapping[str, Any]
Verb = Callable[["DlmService", int, int, Args], None]


def handle(service: DlmService, session: int, rid: int, verb: str, args: Args) -> None:
    """Carry out one request; whatever is wrong with it becomes a refusal."""
    function = VERBS.get(verb)
    if function is None:
        service.host.refuse(session, rid, "unknown_verb", f"the dlm service has no verb {verb!r}")
        return
    caller = service.home.sessions.get(session)
    if caller is not None and caller.handles.many:
        caller.handles.fold()
    try:
        function(service, session, rid, args)
    except arguments.BadArgument as bad:
        refuse(service, session, rid, bad.code, str(bad), bad.rule)


def refuse(service: DlmService, session: int, rid: int, code: str, text: str, rule: str) -> None:
    """A refusal that names the rule it comes from, if there is one."""
    service.host.refuse(session, rid, code, text, **({"rule": rule} if rule else {}))


def _lock(service: DlmService, session: int, rid: int, args: Args) -> None:
    h, space = arguments.number(args, "h", 1), _entered(service, session, args)
    name = arguments.name(args)
    if args.get("cache") == "private":
        args = arguments.cached(args, service.home.own_now(space.prefix + name) is not None)
    mode, flags, fails = arguments.mode(args), arguments.flags(args), arguments.fails(args)
    arguments.check_lock(args, mode, flags)
    flags |= arguments.fences(args, flags)
    arguments.value(args, space.value_limit)  # accepted for symmetry: a new lock reads the block
    owner = arguments.number(args, "xid", 0, 0), arguments.number(args, "owner", 0, 0)
    request = Request(Kind.LOCK, rid, mode, flags, None, fails, arguments.deadline(args, service.home.now))
    if h in _session(service, session).handles:
        service.host.refuse(session, rid, "exists", f"handle {h} is in use")
    elif not _closed(service, session, rid):
        service.home.lock(Handle(session, h, space.prefix + name, request, *owner))


def _lock_all(service: DlmService, session: int, rid: int, args: Args) -> None:
    """All of these names or none; the handles are h, h+1, .. in the order of the names, as bytes."""
    h, flags, space = arguments.number(args, "h", 1), arguments.flags(args), _entered(service, session, args)
    asked = arguments.locks(args, group.MAX_BATCH)
    for _, mode in asked:
        arguments.check_lock(args, mode, flags)
    arguments.check_together(flags)
    owner = arguments.number(args, "xid", 0, 0), arguments.number(args, "owner", 0, 0)
    fails, deadline = arguments.fails(args), arguments.deadline(args, service.home.now)
    in_use = _session(service, session).handles
    if any(h + index in in_use for index in range(len(asked))):
        service.host.refuse(session, rid, "exists", f"a handle from {h} on is in use")
    elif not _closed(service, session, rid):
        handles: list[Handle] = []
        weight = group.weight(space.prefix + name for name, _ in asked)
        for index, (name, mode) in enumerate(asked):
            request = Request(Kind.LOCK, 0 if index else rid, mode, flags, None, fails, 0 if index else deadline)
            handles.append(Handle(session, h + index, space.prefix + name, request, *owner))
            handles[-1].weight = weight
        group.lock_all(service.home, handles)


def _closed(service: DlmService, session: int, rid: int) -> bool:
    """Whether there are no new locks here, and that has been said."""
    if service.leaving_now:
        service.host.refuse(session, rid, "lost", "this node is leaving")
    elif not service.config.quorum.excludes and (nodes := service.home.stonith.uncovered()):
        text = UNSAFE.format(policy=service.config.quorum.policy, nodes=", ".join(nodes))
        service.host.refuse(session, rid, "unsafe", text)
    else:
        return False
    return True


def _convert(service: DlmService, session: int, rid: int, args: Args) -> None:
    mode, flags = arguments.mode(args), arguments.flags(args)
    found = _handle(service, session, args)
    value = _value(service, found, args)
    if found is None or (found.mode == NONE and found.request is None):
        refuse(service, session, rid, "unknown", "no such lock", "E8")
    elif found.request is not None:
        refuse(service, session, rid, "busy", "an operation on this lock is in progress", "E10")
    else:
        arguments.check_convert(args, found.mode, mode, flags)
        value = value if found.mode >= PW else None
        deadline = arguments.deadline(args, service.home.now)
        service.home.convert(found, Request(Kind.CONVERT, rid, mode, flags, value, deadline=deadline))


def _unlock(service: DlmService, session: int, rid: int, args: Args) -> None:
    flags = arguments.flags(args)
    arguments.check_unlock(flags)
    found = _handle(service, session, args)
    value = _value(service, found, args)
    if found is None:
        refuse(service, session, rid, "unknown", "no such lock", "E21")
    elif flags & CANCEL:
        _cancel(service, session, rid, args)
    else:
        service.home.unlock(found, rid, flags & (VALBLK | IVVALBLK), value)


def _unlock_all(service: DlmService, session: int, rid: int, args: Args) -> None:
    """Several handles end, those that there are; answered when all have ended."""
    rows = args.get("locks")
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        raise arguments.BadArgument("locks must be a list of the arguments of unlock")
    if len(rows) > group.MAX_BATCH:
        raise arguments.BadArgument(f"at most {group.MAX_BATCH} locks end together")
    asked: dict[int, tuple[Handle, int, bytes | None]] = {}
    for row in rows:
        flags = arguments.flags(row)
        arguments.check_unlock(flags)
        found = _handle(service, session, row)
        if found is not None:
            asked[found.h] = found, flags & (VALBLK | IVVALBLK), _value(service, found, row)
    group.unlock_all(service.home, session, rid, asked.values())


def _in_use(service: DlmService, session: int, rid: int, args: Args) -> None:
    """A lock with ``cache`` that is in somebody's way is not idle (``dlm.tries``). Once, and for good."""
    found = _handle(service, session, args)
    if found is not None:
        words.given(service.home, found)
    service.host.reply(session, rid, {})


def _cancel(service: DlmService, session: int, rid: int, args: Args) -> None:
    found = _handle(service, session, args)
    if found is None:
        service.host.reply(session, rid, {"canceled": False})
    elif (found if found.group is None else found.group.lead).cancel_rid:
        refuse(service, session, rid, "invalid", "a cancel of this lock is in progress", "E23")
    else:
        service.home.cancel(found, rid)


def _purge(service: DlmService, session: int, rid: int, args: Args) -> None:
    """P4: the orphans of a process of a node (0: of all), or all locks of the caller itself.

    For another node the answer says only that the purge has its place in the order.
    """
    me, home = service.host.me.node, service.home
    node, pid = arguments.number(args, "node", 1, me), arguments.number(args, "pid", 0, 0)
    caller = _session(service, session)
    if node != me:
        home.send(Kind.PURGE, (node, pid))
        service.host.reply(session, rid, {"purged": None})
    elif pid and pid == caller.who.pid:
        handles = [handle for handle in caller.handles.values() if not handle.ending]
        home.drop(handles, "purged")
        service.host.reply(session, rid, {"purged": len(handles) + home.purge(pid)})
    elif pid and any(other.who.pid == pid for other in home.sessions.values()):
        refuse(service, session, rid, "invalid", f"process {pid} is connected: its locks are its own", "P4")
    else:
        service.host.reply(session, rid, {"purged": home.purge(pid)})


def _entered(service: DlmService, session: int, args: Args) -> Space:
    return service.home.gate.entered(_session(service, session), args)


def _value(service: DlmService, handle: Handle | None, args: Args) -> bytes | None:
    """The value block that comes with an operation on a lock."""
    if args.get("value") is None:
        return None
    limit = arguments.MAX_VALUE_LIMIT if handle is None else service.home.gate.limit(handle.key)
    return arguments.value(args, limit)


def _session(service: DlmService, session: int) -> Session:
    found = service.home.sessions.get(session)
    if found is None:
        raise arguments.BadArgument("no such session", "E11")
    return found


def _handle(service: DlmService, session: int, args: Args) -> Handle | None:
    found = _session(service, session).handles.get(arguments.number(args, "h", 1))
    return None if found is None or found.ending else found


VERBS: dict[str, Verb] = {
    "lock": _lock,
    "lock_all": _lock_all,
    "unlock_all": _unlock_all,
    "convert": _convert,
    "unlock": _unlock,
    "cancel": _cancel,
    "in_use": _in_use,
    "purge": _purge,
    **space_verbs.VERBS,
    **failure_verbs.VERBS,
    **fence_verbs.VERBS,
    **looking.VERBS,
}
