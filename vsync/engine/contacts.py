"""Whom a node talks to, and by which roster it counts: two things that must not be confused (pitfalls C8).

The roster that *counts* is stored with the mark. It changes by a message in the agreed order (``enroll``) and with
the primary view that a node comes to (``Engine.mark``), and goes round in the commit token (``vsync.counting``).

Whom a node *talks to* are those, and the nodes of the newest roster that it has heard of, by whatever way: an error
there costs time, never safety. Who introduces itself with an older one is sent the newer, so that a node finds the
others again that was off while they moved, and one that was removed knows why nobody wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from vsync.engine.outputs import Rewire, Send, Tell
from vsync.errors import FrameError
from vsync.quorum import known_lineage, newest_mark
from vsync.roster import Roster
from vsync.types import Entry, Member, Peer, RingId
from vsync.wire import FrameType
from vsync.wire_forming import Hello, News, encode_news

if TYPE_CHECKING:
    from vsync.engine.engine import Engine

__all__ = [
    "begin", "counts_by", "enroll", "inform", "introduce", "learn", "met", "named_by", "on_news", "part", "remind",
    "removed", "silent", "stranger", "tell",
]  # fmt: skip

REMIND = 8  #: probes of absent nodes between two with the roster


def begin(e: Engine, own: Peer) -> None:
    """At the start: the stored roster goes before the file. Where this node is itself, its file knows best."""
    e.file = Roster.of_file(e.config.peers)
    e.own = own
    e.heard = News(e.record.lineage, e.record.mark, counts_by(e).packed)
    e.outcast = False
    e.gone = ()
    e.contacts = e.config.peers
    e.told = {}
    _talk(e)
    introduce(e)


def counts_by(e: Engine) -> Roster:
    """The roster by which this node counts now."""
    return e.record.roster or e.file


def named_by(e: Engine, rosters: Iterable[Roster | None]) -> list[bytes]:
    """What a commit token needs so that everybody can read this node's entry."""
    named = [counts_by(e), *(attempt.roster for attempt in e.record.attempts), *rosters]
    return sorted({roster.packed for roster in named if roster is not None})


def introduce(e: Engine) -> None:
    """JOIN and PROBE say which roster this node has."""
    roster = counts_by(e)
    e.hello = replace(e.hello, mark=e.record.mark, roster=roster.version, digest=roster.digest)


def enroll(e: Engine, roster: Roster) -> None:
    """A change was delivered in a primary view: from now on count by ``roster``, and form the next ring by it."""
    e.record = replace(e.record, roster=roster, pending=True)
    learn(e, roster, e.record.mark, e.record.lineage)
    introduce(e)
    part(e, roster)


def part(e: Engine, roster: Roster) -> bool:
    """Whether somebody in my ring does not belong to the cluster any more: not in the next one."""
    parted = _parted(e, roster)
    e.leavers |= parted
    e.gathering.failed |= parted
    return bool(parted)


def _parted(e: Engine, roster: Roster) -> set[Member]:
    """Who will not be in my next ring: those that were removed, or, if that is me, the others."""
    gone = {member for member in e.ring.members if roster.peer(member.node) is None}
    return set(e.ring.member_set - {e.me}) if e.me in gone else gone


def learn(e: Engine, roster: Roster, mark: RingId, lineage: int) -> None:
    """There is this roster, which goes with this mark: talk to its nodes, if nothing newer is known."""
    if (mark, roster.version) > (e.heard.mark, _newest(e).version):
        e.heard = News(lineage, mark, roster.packed)
        _talk(e)


def met(e: Engine, roster: Roster | None, entries: Mapping[int, Entry]) -> None:
    """A ring is being formed, with this roster."""
    mark, lineage = newest_mark(entries.values()), known_lineage(entries.values())
    if roster is not None and lineage:
        learn(e, roster, mark, lineage)
    elif len(entries) > 1 and not mark.seq and e.heard.mark.seq:
        # Nobody here has been in a primary view. What I heard in this life may be known to nobody any more, and to
        # talk to nodes that the others refuse would keep all from ever coming together.
        e.heard = News(e.record.lineage, e.record.mark, counts_by(e).packed)
        _talk(e)


def _talk(e: Engine) -> None:
    """Find out whom to talk to. Who counts is among them whatever I have heard: perhaps a change that one of them
    alone knows of has to be brought to the others, and be it that it was removed.
    """
    newest, me = _newest(e), e.me.node
    e.outcast = newest.version > 0 and newest.peer(me) is None
    e.gone = newest.gone
    known = {peer.node: peer for peer in (*counts_by(e).peers, *newest.peers)}
    known[me] = replace(known.get(me) or replace(e.own, votes=0), addresses=e.own.addresses)
    peers = tuple(known[node] for node in sorted(known))
    if peers != e.contacts:
        e.contacts = peers
        e.config = replace(e.config, peers=peers)
        e.output(Rewire(peers))
        e.note("nodes_known", version=newest.version, nodes=list(newest.nodes), removed=e.outcast)


def silent(e: Engine) -> bool:
    """Whether nobody wants to hear from this node: the others have gone on without it."""
    return e.outcast and e.ring.alone and e.heard.mark > e.record.mark


def removed(e: Engine, members: Iterable[Member]) -> set[Member]:
    """Of these, whom the newest roster names no more: others refuse them. All others, if it does not name me."""
    if e.outcast:
        return set(members) - {e.me}
    return {member for member in members if _newest(e).peer(member.node) is None}


# ---------------------------------------------------------------- telling others


def tell(e: Engine, sender: Member, hello: Hello) -> None:
    """A node that I talk to introduced itself: if its roster is older than mine, it gets mine."""
    if _behind(e, sender, hello):
        e.output(Send((sender.node,), _news(e)))


def stranger(e: Engine, sender: Member, hello: Hello) -> str:
    """A node that is not in my roster introduced itself: it is told, and the reason for the log is returned."""
    if hello.cluster == e.config.cluster and _behind(e, sender, hello):
        e.output(Tell(sender.node, hello.address, _news(e)))
    if sender.node in e.gone:
        return (
            f"node {sender.node} at {hello.address} was removed from the cluster: stop it, or bring it back with "
            "vsync nodes add"
        )
    return (
        f"node {sender.node} at {hello.address} is not in this node's configuration: "
        + ("run vsync nodes add" if e.record.roster else "list it under [[nodes]] everywhere")
        + ", or stop it"
    )


def remind(e: Engine, absent: tuple[int, ...]) -> None:
    """Nodes that are away may have been away for long: all that they know may have moved."""
    if e.counters["memb_merge_detect_tx"] % REMIND == 1:
        inform(e, absent)


def inform(e: Engine, nodes: tuple[int, ...]) -> None:
    """These may not know whom to talk to."""
    if nodes and e.heard.lineage and _newest(e).version > 1:
        e.output(Send(nodes, _news(e)))


def _behind(e: Engine, sender: Member, hello: Hello) -> bool:
    """Whether to send it the roster: not more often than a ring would probe for it."""
    same = hello.digest == e.hello.digest or hello.lineage not in (0, e.hello.lineage)
    older = (hello.mark, hello.roster) < (e.record.mark, e.hello.roster)
    soon = e.now - e.told.get(sender.node, -e.timing.merge) < e.timing.merge
    if same or not older or not e.record.lineage or soon:
        return False
    if len(e.told) > 1000:
        e.told.clear()
    e.told[sender.node] = e.now
    return True


def _newest(e: Engine) -> Roster:
    return Roster.unpack(e.heard.roster)


def _news(e: Engine) -> bytes:
    return encode_news(e.header(FrameType.NEWS), e.heard)


def on_news(e: Engine, sender: Member, news: News) -> None:
    """Somebody says that there is a newer roster. Raises ``FrameError``."""
    if e.hello.lineage not in (0, news.lineage):
        raise FrameError(f"node {sender.node} tells the roster of another cluster of this name")
    try:
        roster = Roster.unpack(news.roster)
    except ValueError as error:
        raise FrameError(str(error)) from None
    learn(e, roster, news.mark, news.lineage)
