"""Who belongs to the cluster: the nodes, their addresses and votes, and how that may change.

A node's configuration file is its first word only. With the first primary view the nodes' files, if they are alike,
become version 1 of the *roster*; from then on it is part of what is stored with the mark of each primary view, and
changes one node at a time, by a message in the agreed order of a primary view (``vsync.nodes``).

Why that is safe (pitfalls C8). Primary views form a chain in which neighbours share a member that knows the former
one. A change is made in a primary view, at most one in each; the next view is counted with it if somebody who is
present knows of it, else without. ``overlap`` sees to it that any quorum before and any after the change share a
node: so of the next views with and without it only one can be primary, and once one is, all its members have the
roster that it was counted with on their disks. A node that is new, or replaced, has no vote before it has been in a
primary view (K8); a replaced id is *born* again, and what its former disk says does not count any more.

``RULES`` is the table of what may be done. Pure.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import product
from typing import Any

import msgpack

from vsync.types import Peer

__all__ = ["KINDS", "RULES", "Change", "Refused", "Roster", "Situation", "changed", "differences", "overlap"]

MAX_BYTES = 8 * 1024  #: of a roster: several of them must fit into a record (``vsync.slots``)
MAX_VOTES = 1000
MAX_NODE = 2**32 - 1
MAX_LINKS = 8
REMEMBERED = 64  #: removed ids, so that their nodes can be told
KINDS = ("add", "remove", "replace", "set")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ADDRESS = re.compile(r"(?:\[[^\]\s]+\]|[^\s:\[\]]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Roster:
    """One version of the set of nodes. Version 0 is what a file says; the cluster's own begin with 1."""

    version: int
    peers: tuple[Peer, ...]  #: ascending by id
    born: tuple[int, ...]  #: the version in which each of them got its id, in the same order
    gone: tuple[int, ...] = ()  #: ids that were removed, the last one at the end

    @classmethod
    def of_file(cls, peers: Iterable[Peer]) -> Roster:
        """What a configuration says."""
        ordered = tuple(sorted(peers, key=lambda peer: peer.node))
        return cls(0, ordered, (0,) * len(ordered))

    @property
    def packed(self) -> bytes:
        """The bytes that are sent and stored; equal rosters give equal bytes."""
        return _pack(self)

    @property
    def digest(self) -> bytes:
        """Eight bytes that tell it from every other."""
        return hashlib.blake2b(_pack(self), digest_size=8).digest()

    @property
    def nodes(self) -> tuple[int, ...]:
        """The ids, ascending."""
        return tuple(peer.node for peer in self.peers)

    @property
    def votes(self) -> dict[int, int]:
        """Votes by id."""
        return {peer.node: peer.votes for peer in self.peers}

    def peer(self, node: int) -> Peer | None:
        """The node with this id, or ``None``."""
        return next((peer for peer in self.peers if peer.node == node), None)

    def birth(self, node: int) -> int | None:
        """The version in which the node got its id: another one is another machine (or disk)."""
        return next((born for peer, born in zip(self.peers, self.born, strict=True) if peer.node == node), None)

    def agreed(self) -> Roster:
        """What the files said has become the cluster's."""
        return self if self.version else replace(self, version=1)

    @classmethod
    def unpack(cls, packed: bytes) -> Roster:
        """The inverse of ``packed``. Raises ``ValueError`` for anything else."""
        try:
            version, rows, gone = msgpack.unpackb(packed)
            peers = tuple(Peer(node, name, tuple(addresses), votes) for node, name, addresses, votes, _ in rows)
            roster = cls(version, peers, tuple(row[4] for row in rows), tuple(gone))
            numbers = (version, *gone, *roster.born, *(n for p in peers for n in (p.node, p.votes)))
            texts = [text for p in peers for text in (p.name, *p.addresses)]
            good = all(type(n) is int and n >= 0 for n in numbers) and all(type(t) is str for t in texts)
        except Exception as error:
            raise ValueError(f"a roster is unreadable: {error!r}") from error
        ids = [peer.node for peer in peers]
        if not good or not ids or ids != sorted(set(ids)) or len(packed) > MAX_BYTES or _pack(roster) != packed:
            raise ValueError("a roster has an unknown form")
        return roster


@lru_cache(maxsize=64)
def _pack(roster: Roster) -> bytes:
    rows = [(*_row(peer), born) for peer, born in zip(roster.peers, roster.born, strict=True)]
    packed: bytes = msgpack.packb((roster.version, rows, roster.gone))
    return packed


def _row(peer: Peer) -> tuple[Any, ...]:
    return peer.node, peer.name, peer.addresses, peer.votes


def differences(mine: Roster, other: Roster) -> list[str]:
    """What ``mine`` says otherwise than ``other``, in words, a few for each node."""
    said = []
    for node in sorted({*mine.nodes, *other.nodes}):
        a, b = mine.peer(node), other.peer(node)
        if a is None or b is None:
            named = a or b
            assert named is not None
            said.append(f"{'lacks' if a is None else 'has'} node {node} ({named.name})")
            continue
        for what, one, two in (
            ("is named", a.name, b.name),
            ("is at", ", ".join(a.addresses), ", ".join(b.addresses)),
            ("has votes", str(a.votes), str(b.votes)),
        ):
            if one != two:
                said.append(f"node {node} {what} {one}, not {two}")
    return said


# ---------------------------------------------------------------- changes


class Refused(Exception):
    """A change that may not be made: why, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an operator wants. Empty fields stay as they are; a new node has a name, addresses, and one vote."""

    kind: str
    node: int
    name: str = ""
    addresses: tuple[str, ...] = ()
    votes: int | None = None

    @property
    def row(self) -> tuple[Any, ...]:
        """As it is sent."""
        return self.kind, self.node, self.name, self.addresses, self.votes

    @classmethod
    def of(cls, row: Any) -> Change | None:
        """The inverse of ``row``; ``None`` for what has another form."""
        match row:
            case [str(kind), int(node), str(name), list(addresses), None | int() as votes] if (
                kind in KINDS and all(type(text) is str for text in addresses) and type(votes) is not bool
            ):
                return cls(kind, node, name, tuple(addresses), votes)
        return None

    def text(self) -> str:
        """For people: ``add node 4 (n4) at 10.0.0.4:7410 with 1 votes``."""
        words = [self.kind, f"node {self.node}"]
        words += [f"({self.name})"] if self.name else []
        words += ["at", ", ".join(self.addresses)] if self.addresses else []
        words += [f"with {self.votes} votes"] if self.votes is not None else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Situation:
    """What a change is judged by besides the roster: the primary view in which it is delivered.

    ``stays``: whether the members of this view would be a primary view by that roster. ``excludes``: whether the
    policy keeps two parts of the cluster from acting at a time. ``lone``: whether exactly half of the votes may be
    enough (``auto_tie_breaker``).
    """

    present: tuple[int, ...] = ()
    stays: Callable[[Roster], bool] = field(default=lambda roster: True)
    excludes: bool = True
    lone: bool = False


@dataclass(frozen=True, slots=True)
class _Case:
    roster: Roster
    change: Change
    after: Roster
    situation: Situation

    @property
    def old(self) -> Peer | None:
        return self.roster.peer(self.change.node)

    @property
    def new(self) -> Peer:
        found = self.after.peer(self.change.node)
        assert found is not None
        return found

    @property
    def stays_put(self) -> bool:
        return self.old is not None and self.new.addresses == self.old.addresses

    def clash(self, of: Callable[[Peer], Sequence[str]]) -> list[str]:
        others = {text: p.name for p in self.after.peers if p.node != self.change.node for text in of(p)}
        return [f"{text} is {others[text]}'s" for text in of(self.new) if text in others]


def _is_address(text: str) -> bool:
    return bool(_ADDRESS.fullmatch(text)) and 1 <= int(text.rpartition(":")[2]) <= 65535


def _same_links(c: _Case) -> bool:
    return len({len(peer.addresses) for peer in c.after.peers}) == 1 and 0 < len(c.new.addresses) <= MAX_LINKS


def _overlaps(c: _Case) -> bool:
    return not c.situation.excludes or overlap(c.roster, c.after, c.situation.lone)


#: What must hold: for which kinds, what, and what is said if it does not. In this order.
RULES: tuple[tuple[tuple[str, ...], Callable[[_Case], object], str], ...] = (
    (("add",), lambda c: c.old is None,
     "node {node} belongs to the cluster already; for another machine in its place: vsync nodes replace {node}"),
    (("remove", "replace", "set"), lambda c: c.old is not None,
     "there is no node {node}: vsync nodes lists them"),
    (("add", "replace", "set"), lambda c: 0 < c.new.node <= MAX_NODE and _NAME.fullmatch(c.new.name),
     "node {node} needs an id up to 4294967295 and a name: up to 63 letters, digits and . _ -"),
    (("add", "replace", "set"), lambda c: all(map(_is_address, c.new.addresses)),
     "an address is host:port, as in 10.0.0.4:7410 or [fd00::4]:7410"),
    (("add", "replace", "set"), lambda c: not c.clash(lambda peer: [peer.name]),
     "the name {name} is another node's; each needs its own"),
    (("add", "replace", "set"), lambda c: not c.clash(lambda peer: peer.addresses),
     "an address is another node's: {clash}; each needs its own"),
    (("add", "replace", "set"), lambda c: len(set(c.new.addresses)) == len(c.new.addresses),
     "an address is given twice; each link needs its own"),
    (("add", "replace", "set"), _same_links,
     "every node needs the same number of addresses, in the same order of links: here {links}"),
    (("add", "replace", "set"), lambda c: 0 <= c.new.votes <= MAX_VOTES, "votes are 0 to 1000"),
    (("set",), lambda c: c.new != c.old, "node {node} is so already"),
    (("remove",), lambda c: len(c.roster.peers) > 1, "node {node} is the only one: stop it, and clear its state"),
    (KINDS, lambda c: any(c.after.votes.values()),
     "no node would have a vote, so no view could ever be primary: give another one a vote first"),
    (("replace",), lambda c: c.change.node not in c.situation.present,
     "node {node} is a member of the view: stop its vsyncd first; to change only its votes: vsync nodes set"),
    (("set",), lambda c: c.change.node not in c.situation.present or c.stays_put,
     "node {node} is a member of the view, and would be looked for where it is not: stop its vsyncd first"),
    (KINDS, lambda c: len(c.after.packed) <= MAX_BYTES, "there is no room for so many nodes and addresses"),
    (KINDS, _overlaps,
     "a majority before and a majority after it could have no node in common, and both act: change the votes of "
     "node {node} one by one (vsync nodes set {node} --votes N)"),
    (("add",), lambda c: c.situation.stays(c.after),
     "a new node has no vote before it has joined, and those that are present would have too few: add it with "
     "--votes 0, and when it is a member: vsync nodes set {node} --votes N"),
    (KINDS, lambda c: c.situation.stays(c.after),
     "the nodes that are present would have too few votes after it, and the cluster would stop: start others "
     "first, or take fewer votes"),
)  # fmt: skip


def changed(roster: Roster, change: Change, situation: Situation) -> Roster:
    """The next version. Raises ``Refused``."""
    case = _Case(roster, change, _next(roster, change), situation)
    for kinds, holds, text in RULES:
        if change.kind in kinds and not holds(case):
            raise Refused(_explain(case, text))
    return case.after


def _explain(c: _Case, text: str) -> str:
    links = ", ".join(f"{len(peer.addresses)} ({peer.name})" for peer in c.after.peers)
    new = c.after.peer(c.change.node)
    clash = "; ".join(c.clash(lambda peer: peer.addresses)) if new else ""
    return text.format(node=c.change.node, name=new.name if new else "", links=links, clash=clash)


def _next(roster: Roster, change: Change) -> Roster:
    version = max(roster.version, 1) + 1
    rows = {peer.node: (peer, born) for peer, born in zip(roster.peers, roster.born, strict=True)}
    gone = tuple(node for node in roster.gone if node != change.node)
    old, born = rows.pop(change.node, (Peer(change.node, "", ()), version))
    if change.kind == "remove":
        gone = (*gone, change.node)[-REMEMBERED:]
    else:
        votes = old.votes if change.votes is None else change.votes
        new = Peer(change.node, change.name or old.name, change.addresses or old.addresses, votes)
        rows[change.node] = new, born if change.kind == "set" else version
    ordered = [rows[node] for node in sorted(rows)]
    return Roster(version, tuple(peer for peer, _ in ordered), tuple(born for _, born in ordered), gone)


# ---------------------------------------------------------------- majorities that must meet


def overlap(before: Roster, after: Roster, lone: bool = False) -> bool:
    """Whether every set of nodes that is enough before the change meets every one that is enough after it.

    Who is born with the change cannot vote in the first view that is counted with it (K8). ``lone``: half of the
    votes are enough, with the voting node of the lowest id.

    Exact: two sets that do not meet split the nodes in two parts. The nodes whose votes change, or that break ties,
    are tried on both sides; of the others only the sum of votes on each side matters.
    """
    old, new = before.votes, {n: v for n, v in after.votes.items() if after.birth(n) == before.birth(n)}
    totals = sum(old.values()), sum(after.votes.values())
    breakers = [_breaker(before, lone), _breaker(after, lone)]
    if breakers[1] not in new:
        breakers[1] = 0
    special = sorted(n for n in {*old, *new} if old.get(n, 0) != new.get(n, 0) or n in breakers)
    plain = [old[n] for n in sorted(old) if n not in special]
    rest = sum(plain)
    sums = 1
    for votes in plain:
        sums |= sums << votes
    for sides in product((False, True), repeat=len(special)):
        mine = [n for n, side in zip(special, sides, strict=True) if side]
        yours = [n for n, side in zip(special, sides, strict=True) if not side]
        least = _needed(totals[0], breakers[0] in mine) - sum(old.get(n, 0) for n in mine)
        spare = rest + sum(new.get(n, 0) for n in yours) - _needed(totals[1], breakers[1] in yours)
        if least <= spare and sums >> max(least, 0) & ((1 << max(spare - max(least, 0) + 1, 0)) - 1):
            return False
    return True


def _needed(total: int, tie: bool) -> int:
    """The fewest votes that are enough; never none at all."""
    return max((total + 1) // 2 if tie else total // 2 + 1, 1)


def _breaker(roster: Roster, lone: bool) -> int:
    return min((node for node, votes in roster.votes.items() if votes), default=0) if lone else 0
