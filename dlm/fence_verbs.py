"""The verbs about fencing (``dlm.stonith``): what has still to be fenced, and an operator's word about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dlm import arguments

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["VERBS"]

Args = Mapping[str, Any]


def _fences(service: DlmService, session: int, rid: int, args: Args) -> None:
    service.host.reply(session, rid, service.home.stonith.rows())


def _refused(service: DlmService, session: int, rid: int) -> bool:
    """Whether the caller is no administrator, and that has been said."""
    if service.home.sessions[session].who.uid in (0, service.host.config.uid):
        return False
    text = "only root and the user that the daemon runs as may do this"
    service.host.refuse(session, rid, "permission", text)
    return True


def _fence_check(service: DlmService, session: int, rid: int, args: Args) -> None:
    """Whether the agent for a node works, from here."""
    node = arguments.number(args, "node", 1)
    if not _refused(service, session, rid) and not service.home.stonith.check(session, rid, node):
        text = f"this node has no agent for node {service.host.config.name(node)}"
        service.host.refuse(session, rid, "unknown", text)


def _fence_ack(service: DlmService, session: int, rid: int, args: Args) -> None:
    """Somebody who can know says that a node that failed is down: nobody checks it, so it is written down who."""
    target, home, config = arguments.number(args, "node", 1), service.home, service.host.config
    who, name = home.sessions[session].who, config.name(target)
    if _refused(service, session, rid):
        return
    if not home.open:
        text = "this node is not in a primary view, so it cannot tell the others: ask one that is"
        service.host.refuse(session, rid, "no_quorum", text)
    elif not home.stonith.acknowledge(session, rid, target, f"uid {who.uid}, {who.name}, process {who.pid}"):
        service.host.refuse(session, rid, "unknown", f"nothing waits for node {name} to be fenced")
    else:
        service.host.event("dlm.fence_ack", target=name, uid=who.uid, pid=who.pid, program=who.name)


VERBS: dict[str, Callable[[DlmService, int, int, Args], None]] = {
    "fences": _fences,
    "fence_ack": _fence_ack,
    "fence_check": _fence_check,
}
