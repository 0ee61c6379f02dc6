"""What a local client may ask of the node itself, apart from its services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vsync.looking import view_dict
from vsync.quorum import bootstrapped, judge

if TYPE_CHECKING:
    from vsync.core import Core

__all__ = ["handle"]


def handle(core: Core, session: int, rid: int, verb: str, args: Mapping[str, Any]) -> None:
    """Carry out one request, or refuse it."""
    if verb == "status":
        core.reply(session, rid, core.status())
    elif verb == "members":
        core.reply(session, rid, core.status()["nodes"])
    elif verb == "bootstrap":
        _say_so(core, session, rid, bool(args.get("override")))
    elif verb == "groups":
        core.reply(session, rid, core.groups.status())
    elif verb == "watch":
        core.watchers.add(session)
        core.reply(session, rid, {})
        if core.view is not None:
            core.push(session, "node", "view", view_dict(core.view, core.config))
    else:
        core.refuse(
            session,
            rid,
            "unknown_verb",
            f"the node knows status, members, groups, watch, bootstrap, not {verb!r}",
        )


def _say_so(core: Core, session: int, rid: int, override: bool) -> None:
    """An operator decides what the nodes cannot know (K8): that no other part of the cluster is alive."""
    who = core.sessions[session]
    if who.uid not in (0, core.owner):
        core.refuse(session, rid, "denied", "only root and the user that the daemon runs as may do this")
    elif core.view is not None and core.view.primary:
        core.reply(session, rid, {"needed": False})
    elif not override and core.engine.record.mark.seq:
        why = f"this node has been in a primary view, so others may go on without it: {core.verdict.why}"
        core.refuse(session, rid, "invalid", why)
    elif not override and core.view is not None and not judge(bootstrapped(core.view.entries)).primary:
        why = judge(bootstrapped(core.view.entries)).why
        core.refuse(session, rid, "invalid", f"that would not make this view primary: {why}")
    else:
        core.bootstrap, core.override = core.bootstrap or not override, core.override or override
        core.event("quorum_override" if override else "bootstrap", uid=who.uid, pid=who.pid, program=who.name)
        core.reply(session, rid, {"needed": True})
        core.engine.reform(f"an operator: {'override' if override else 'bootstrap'}", core.now)
