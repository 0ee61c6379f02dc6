"""Whose lock state goes on at a view, and what happens to it there (design §5.2, pitfalls K1–K6, A7).

Both are functions of the view event alone: every member wrote an *announcement* into its commit-token entry,
so all members come to the same answer with the view, before the first delivery in it, and without a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgpack

from dlm.messages import TAG, Message
from dlm.options import PLAIN, Options
from dlm.table import Effects, Life, Table
from vsync.quorum import judge, newest_mark
from vsync.types import NO_RING, Entry, Member, RingId, View

__all__ = [
    "Announcement",
    "Chosen",
    "Held",
    "Recovered",
    "announcements",
    "as_if_installed",
    "choose",
    "empty_view",
    "primary_view",
    "survivors",
]

NOTHING = 1 << 62  #: a position that no state reaches: who says it has kept what follows has kept nothing

Held = tuple[Member, Message]  #: a message that was held back during an installation (K3)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one member says of its lock state when it fills its entry of the commit token (K2).

    ``ring`` and ``applied`` name the state; ``members`` are those of that primary ring that have not said
    goodbye; ``waiting`` is true while the member still waits for leases of an older ring to run out (K10). It has
    kept what was applied after position ``kept`` and can lend it to who is behind (K4).
    """

    ring: RingId = NO_RING
    applied: int = 0
    complete: bool = False
    life: RingId = NO_RING
    waiting: bool = False
    members: tuple[Member, ...] = ()
    kept: int = 0
    options: Options = PLAIN  #: what its configuration says of lockspace ``default``
    split: bool = False  #: its policy lets two parts of the cluster act at once
    nodes: tuple[int, ...] = ()  #: that it has configured
    agents: tuple[int, ...] = ()  #: the nodes that it can fence

    def encode(self) -> bytes:
        """Small bytes for the commit token."""
        row = (tuple(self.ring), self.applied, self.complete, tuple(self.life), self.waiting)
        members = tuple(tuple(member) for member in self.members)
        more = tuple(self.options), self.split, self.nodes, self.agents
        packed: bytes = msgpack.packb((*row, members, self.kept, *more))
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Announcement:
        """The inverse of ``encode``; no bytes (a node without the service) mean a node without state."""
        if not data:
            return cls()
        row = msgpack.unpackb(data, use_list=False)
        ring, applied, complete, life, waiting, members, kept, options, *more = row
        who = tuple(Member(*member) for member in members)
        return cls(RingId(*ring), applied, complete, RingId(*life), waiting, who, kept, Options(*options), *more)


def announcements(view: View) -> dict[int, tuple[Entry, Announcement]]:
    """Entry and announcement of every member that runs the service."""
    return {
        node: (entry, Announcement.decode(entry.announcements[TAG]))
        for node, entry in sorted(view.entries.items())
        if TAG in entry.announcements
    }


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whose state goes on, by node id. ``full`` hold it at the view; who is ``behind`` has a prefix of it and gets
    the rest from the ``lender``, which is one of the full ones (0 if nobody is behind).
    """

    full: frozenset[int] = frozenset()
    behind: frozenset[int] = frozenset()
    lender: int = 0

    @property
    def going_on(self) -> frozenset[int]:
        """All whose lives go on."""
        return self.full | self.behind


def survivors(view: View) -> frozenset[int]:
    """The nodes whose lives go on in this primary view. Empty: all begin with an empty table."""
    return choose(view).going_on


def choose(view: View) -> Chosen:
    """Whose state and lives go on in this primary view (K4). Nobody's: all begin with an empty table.

    Highest primary id wins, then the highest position. Members that come straight from that primary ring are
    one unit: recovery brings all of them to the highest position among them and further, so they count with
    it and all of them go on. Members that froze with the same id in a non-primary ring go on at once only if they
    are *exactly* at the best position and no unit is there, since those equal each other and nobody adds to them
    here. All others with that id have a prefix, and catch up if somebody has kept what they miss.

    A state older than a mark that a member stored has been overtaken by a primary view whose state nobody
    here has any more: it must not come back (K8, C5).
    """
    states = {node: pair for node, pair in announcements(view).items() if pair[1].complete}
    if not states or (view.primary and not judge(view.entries).chained):
        return Chosen()
    best_ring = max(said.ring for _, said in states.values())
    if best_ring < newest_mark(view.entries.values()):
        return Chosen()
    candidates = {node: pair for node, pair in states.items() if pair[1].ring == best_ring}
    best = max(said.applied for _, said in candidates.values())
    full = frozenset(node for node, (entry, _) in candidates.items() if entry.old_ring == best_ring)
    if not any(candidates[node][1].applied == best for node in full):
        full = frozenset(node for node, (_, said) in candidates.items() if said.applied == best)
    lender = min(full, key=lambda node: (candidates[node][1].kept, node))
    kept = candidates[lender][1].kept
    behind = frozenset(n for n, (_, said) in candidates.items() if n not in full and said.applied >= kept)
    return Chosen(full, behind, lender if behind else 0)


def as_if_installed(said: Announcement, view: View, me: int) -> Announcement:
    """What a member would announce if it had installed this view, an attempt whose end it reached (K7).

    How many messages it would have applied is not known before: zero puts it behind companions that did install the
    view, from whom it gets by recovery what they have applied.
    """
    if not view.primary:
        return said
    chosen = choose(view)
    if me in chosen.behind:
        return replace(said, waiting=True)  # what it misses comes by messages, and it has got none yet
    complete = me in chosen.full or not chosen.full
    life = said.life if me in chosen.full else view.id
    ring = view.id if complete else NO_RING
    members = view.members if complete else ()
    return replace(
        said, ring=ring, applied=0, complete=complete, life=life, waiting=True, members=members, kept=NOTHING
    )


@dataclass(slots=True)
class Recovered:
    """What ``primary_view`` did: effects for clients, messages that counted (the first ``before`` of them in the
    epoch of the old view), lives that had said goodbye.
    """

    effects: Effects = field(default_factory=list)
    applied: list[Held] = field(default_factory=list)
    before: int = 0
    clean: frozenset[Member] = frozenset()


def primary_view(
    table: Table, view: View, going_on: frozenset[int], prefix: Sequence[Held], rest: Sequence[Held]
) -> Recovered:
    """Carry ``table``, which goes on, into a primary view. The order is the whole point:

    1. the recovered rest of the old ring's prefix, in its order and still in the epoch of the *old* view: other
       members of the unit may have applied these messages there, in regular deliveries (K3);
    2. the view gives the state its new name and position, and the fence numbers start anew (K2, K14);
    3. what followed the transitional view, which nobody has applied yet, in the epoch of the *new* view (K3, B3);
    4. purge by membership: every life in the table that does not go on in this view (K5, C4);
    5. private names of ended lives become unknown, their handovers Shared and empty, then what waited there (A7);
    6. grants, in queue order, name by name;
    7. the lives of all other members begin here, with serial 0 (K6).

    Answers are not given here: the service gives them afterwards, those of grants not before the horizon (K10).
    """
    done = Recovered()
    # 1
    _replay(table, prefix, done)
    done.before = len(done.applied)
    # 2
    table.begin_epoch(view.id)
    # 3
    _replay(table, rest, done)
    done.clean = frozenset(Member(life.node, life.incarnation) for life in table.lives.values() if life.gone)
    # 4
    ended = _ended(table.lives.values(), view, going_on)
    failed = [life for node in ended if not (life := table.lives.pop(node)).gone]
    split = any(said.split for _, said in announcements(view).values())
    done.effects += table.failures.begin(table.spaces, failed, table.applied, table.now, split)
    # 5, 6: both are done name by name; what was of those who have said goodbye went then
    table.end_lives(failed, done.effects)
    # 7
    begin_lives(table, view, done.effects)
    return done


def _replay(table: Table, held: Sequence[Held], done: Recovered) -> None:
    """Apply held-back messages and note which of them counted."""
    for origin, message in held:
        effects = table.apply(origin, message)
        if effects is not None:
            done.effects.extend(effects)
            done.applied.append((origin, message))


def empty_view(me: int, view: View) -> Table:
    """Nobody has a usable state: a new table in which every member begins a life."""
    table = Table(me)
    every = [said for _, said in announcements(view).values()]
    for lowest in every[:1]:
        table.spaces.set_options(table.spaces.by_name["default"], lowest.options)
    table.begin_epoch(view.id)
    begin_lives(table, view, [])
    absent = {node for said in every for node in said.nodes} - set(table.lives)
    split = any(said.split for said in every)
    table.failures.absent(table.spaces, absent, table.applied, table.now, split)
    return table


def begin_lives(table: Table, view: View, out: Effects) -> None:
    """Admit every member that has no life in the table. It need not be fenced: it has ended what it had."""
    for member in view.members:
        if member.node not in table.lives:
            table.lives[member.node] = Life(member.node, member.incarnation, view.id)
            freed = table.failures.returned(member.node, member.incarnation)
            out.extend([freed] if freed is not None else [])


def _ended(lives: Iterable[Life], view: View, going_on: frozenset[int]) -> list[int]:
    """Nodes whose life in the table is not one of those that go on: absent, restarted, stale, or gone."""
    present = {member.node: member.incarnation for member in view.members}
    said = announcements(view)
    return sorted(
        life.node
        for life in lives
        if life.gone
        or life.node not in going_on
        or present.get(life.node) != life.incarnation
        or said[life.node][1].life != life.ring
    )
