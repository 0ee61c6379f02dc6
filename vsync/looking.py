"""A node as people and programs see it: its status, and views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vsync.engine import State
from vsync.quorum import Terms, terms_of
from vsync.types import ClusterConfig, Member, View

if TYPE_CHECKING:
    from vsync.core import Core

__all__ = ["status", "view_dict"]


def status(core: Core) -> dict[str, Any]:
    """A snapshot for people and programs; msgpack-able."""
    view = core.view
    return {
        "node": _describe(core, core.me),
        "cluster": core.config.cluster,
        "view": view_dict(view, core.config) if view else None,
        "since_us": core.now - core.view_since if view else None,
        "votes": core.verdict.votes,
        "expected_votes": core.verdict.expected,
        "quorum": _quorum(core),
        "nodes": [_node_row(core, p.node) for p in core.config.peers],
        "ring": core.engine.status(),
        "services": {s.name: s.status() for s in core.services},
    }


def _quorum(core: Core) -> dict[str, Any]:
    record, config = core.engine.record, core.config.quorum
    return {
        "policy": config.policy,
        "wait_for_all": bool(terms_of(config) & Terms.WAIT_FOR_ALL),
        "auto_tie_breaker": config.auto_tie_breaker,
        "why": core.verdict.why,
        "mark": str(record.mark) if record.mark.seq else None,
        "lineage": f"{record.lineage:016x}" if record.lineage else None,
    }


def _node_row(core: Core, node: int) -> dict[str, Any]:
    peer = core.config.peer(node)
    assert peer is not None
    member = core.view is not None and node in core.view.nodes
    operational = core.engine.state is State.OPERATIONAL
    return {
        "id": node,
        "name": peer.name,
        "address": ", ".join(peer.addresses),
        "votes": peer.votes,
        "member": member,
        "state": ("member" if operational else "forming") if member else "absent",
        "local": node == core.me.node,
        "representative": member and operational and core.engine.ring.representative.node == node,
    }


def _describe(core: Core, member: Member) -> dict[str, Any]:
    return {"id": member.node, "name": core.config.name(member.node), "incarnation": member.incarnation}


def view_dict(view: View, config: ClusterConfig) -> dict[str, Any]:
    """A view as sessions see it."""

    def rows(members: Sequence[Member]) -> list[dict[str, Any]]:
        return [{"id": m.node, "name": config.name(m.node), "incarnation": m.incarnation} for m in members]

    return {
        "id": str(view.id),
        "seq": view.id.seq,
        "rep": view.id.rep,
        "members": rows(view.members),
        "joined": rows(view.joined),
        "left": rows(view.left),
        "primary": view.primary,
        "transitional": view.transitional,
        "reason": view.reason,
    }
