"""The verbs about what waits after a failure: looking, and an application's word that it has recovered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlm import arguments

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["VERBS"]

Args = Mapping[str, Any]


def _failures(service: DlmService, session: int, rid: int, args: Args) -> None:
    """All failures that somebody may wait for, of all lockspaces."""
    service.host.reply(session, rid, service.table.failures.rows(service.home.now))


def _recoveries(service: DlmService, session: int, rid: int, args: Args) -> None:
    """What an application has to recover from in a lockspace."""
    clearing = service.home.clearing
    found = clearing.recoveries(_seen(service, session, args))
    service.host.reply(session, rid, [clearing.row(failure) for failure in found])


def _watch(service: DlmService, session: int, rid: int, args: Args) -> None:
    """From now on the session hears of them ("recover"), once of each, when they are ready."""
    service.home.clearing.watch(session, _seen(service, session, args))
    service.host.reply(session, rid, {})


def _recovered(service: DlmService, session: int, rid: int, args: Args) -> None:
    """Of a node's failures in a lockspace; with ``position`` those up to it. Answered when all members know."""
    home, space = service.home, _seen(service, session, args)
    node = arguments.number(args, "node", 1)
    upto = arguments.number(args, "position", 0, (1 << 63) - 1)
    found = [each for each in home.clearing.recoveries(space) if each.node == node and each.position <= upto]
    if not home.open:
        text = "this node is not in a primary view, so it cannot tell the others: ask one that is"
        service.host.refuse(session, rid, "no_quorum", text)
    elif not found:
        text = f"nothing in lockspace {space!r} waits for recovery from a failure of node {node}"
        service.host.refuse(session, rid, "no_failure", text)
    elif not all(map(home.clearing.ready, found)):
        text = f"node {node} may still hold locks in lockspace {space!r}: it is not fenced yet, or its leases run"
        service.host.refuse(session, rid, "early", text)
    else:
        who = home.sessions[session].who
        home.clearing.recovered(session, rid, found, f"uid {who.uid}, {who.name}, process {who.pid}")


def _seen(service: DlmService, session: int, args: Args) -> str:
    return service.home.gate.seen(service.home.sessions[session], args)


VERBS: dict[str, Callable[[DlmService, int, int, Args], None]] = {
    "failures": _failures,
    "recoveries": _recoveries,
    "recover_watch": _watch,
    "recovered": _recovered,
}
