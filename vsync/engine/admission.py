"""Admission: with whom this node talks about membership at all. A refusal says what is wrong, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsync.engine import contacts
from vsync.errors import FrameError
from vsync.types import Member
from vsync.wire import MAX_RING_SEQ, WIRE_VERSION
from vsync.wire_forming import Hello, Join

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = ["acceptable", "refuse_younger_self"]


def acceptable(e: Engine, sender: Member, hello: Hello, ring_seq: int) -> bool:
    """Whether to listen to this node; not to an older life of one. Raises ``FrameError`` for people."""
    peer = e.config.peer(sender.node)
    if peer is None:
        raise FrameError(contacts.stranger(e, sender, hello))
    if sender.node == e.me.node and sender != e.me:
        raise FrameError(
            f"node id {sender.node} is used twice: by this node and at {hello.address}; give each its own id"
        )
    if hello.cluster != e.config.cluster:
        raise FrameError(
            f"node {sender.node} at {hello.address} is of cluster {hello.cluster!r}, "
            f"not {e.config.cluster!r}: compare [cluster] name on both sides"
        )
    if hello.lineage and e.hello.lineage and hello.lineage != e.hello.lineage:
        raise FrameError(
            f"node {sender.node} at {hello.address} comes from another cluster of this name (lineage "
            f"{hello.lineage:x}, here {e.hello.lineage:x}): a foreign disk, or bootstrapped apart; clear "
            "the state directory of the one whose locks are not wanted"
        )
    if hello.address not in peer.addresses:
        raise FrameError(
            f"node id {sender.node} is used twice: {hello.address} claims it, "
            f"but it is configured at {peer.addresses[0]}; stop the wrong one, or correct id or address"
        )
    if not hello.wire_min <= WIRE_VERSION <= hello.wire_max:
        raise FrameError(
            f"node {sender.node} at {hello.address} speaks wire versions {hello.wire_min}..{hello.wire_max}, "
            f"not {WIRE_VERSION}: run releases that fit together"
        )
    if e.hello.rules and hello.rules != e.hello.rules:
        raise FrameError(
            f"node {sender.node} at {hello.address} has services {hello.rules}, this node {e.hello.rules}: "
            "install the same ones everywhere"
        )
    if ring_seq >= MAX_RING_SEQ:
        raise FrameError(f"node {sender.node} is at ring sequence {ring_seq}: too high to go on from")
    contacts.tell(e, sender, hello)
    if sender.incarnation < e.youngest.get(sender.node, 0):
        e.count("rx_old_incarnation")
        return False
    e.youngest[sender.node] = sender.incarnation
    e.highest_ring_seq = max(e.highest_ring_seq, ring_seq)
    return True


def refuse_younger_self(e: Engine, sender: Member, join: Join) -> None:
    """Somebody who knows a younger life of this node cannot be agreed with: it holds this one for dead."""
    if any(m.node == e.me.node and m.incarnation > e.me.incarnation for m in join.proc | join.failed):
        raise FrameError(
            f"node {sender.node} at {join.hello.address} knows a younger life of node id {e.me.node}: "
            "the id is used twice, or this node's clock was set back and its state directory lost"
        )
