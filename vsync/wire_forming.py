"""Frames by which a ring is made: JOIN, PROBE, NEWS, and the commit token with what members claim of attempts.

They go between nodes that have no ring together, or are about to leave the one they have, so they introduce the
sender and may come from anybody; ``wire`` has the header and the frames of a ring that works. All are rare, and
each is one msgpack array.

``decode_*`` raise ``FrameError`` for anything that is not exactly right, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgpack

from vsync.types import NO_RING, Member, RingId
from vsync.wire import HEADER_SIZE, MAX_NODE, MAX_RING_SEQ, MAX_U64, bad, read_ring, unpack

__all__ = [
    "Claim",
    "Commit",
    "CommitEntry",
    "Hello",
    "Join",
    "News",
    "Probe",
    "Row",
    "decode_commit",
    "decode_join",
    "decode_news",
    "decode_probe",
    "encode_commit",
    "encode_join",
    "encode_news",
    "encode_probe",
]

MAX_MEMBERS = 1024
MAX_WHY = 200  #: characters


@dataclass(frozen=True, slots=True)
class Hello:
    """How a node introduces itself to strangers: enough to refuse it with a reason."""

    cluster: str
    address: str
    wire_min: int
    wire_max: int
    rules: tuple[tuple[str, int], ...]  #: service name, version of its rules
    lineage: int = 0  #: the chain of primary views that the node has been in (C7); 0 for none
    mark: RingId = NO_RING  #: the last primary view it was in ..
    roster: int = 0  #: .. and the version of its roster, ..
    digest: bytes = b""  #: .. and which one of that version


Row = tuple[int, frozenset[Member]]
"""Whom a node has heard of late, with a number that grows: one row of the reachability matrix."""


@dataclass(frozen=True, slots=True)
class Join:
    """JOIN: whom I see, whom I hold for failed, the seq of the last ring I committed to. ``leaving``: goodbye.

    ``reach`` passes on who hears whom, so that all can choose the same clique when not all hear all. ``why``: what
    made the sender give up its ring, for people.
    """

    hello: Hello
    ring_seq: int
    proc: frozenset[Member]
    failed: frozenset[Member]
    leaving: bool
    reach: Mapping[Member, Row] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """Merge detection: a representative tells configured nodes outside its ring that it exists."""

    hello: Hello
    ring: RingId


@dataclass(frozen=True, slots=True)
class News:
    """The roster that goes with a mark, packed: whom the receiver should talk to. It does not count by it."""

    lineage: int
    mark: RingId
    roster: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """An attempt whose end a member reached, and what its entry is if the attempt was real."""

    ring: RingId
    old_ring: RingId
    aru: int
    high: int
    stable: int
    upper: bytes
    obliged: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class CommitEntry:
    """What a member writes of itself into the commit token; ``upper`` belongs to the layers above (K1).

    ``obliged``: whose messages it has promised to deliver in attempts at leaving the old ring that it reached.
    ``stable``: up to here it knows that all members of the old ring have everything. ``claims``: attempts whose
    end it reached, the newest first; ``missed``: attempts it had committed to and whose end it did not reach (K7).
    """

    old_ring: RingId
    aru: int
    high: int
    upper: bytes
    obliged: tuple[Member, ...] = ()
    stable: int = 0
    claims: tuple[Claim, ...] = ()
    missed: tuple[RingId, ...] = ()
    real: RingId = NO_RING  #: not sent: the claim that has turned out to be real (``engine.claims``)


@dataclass(slots=True)
class Commit:
    """The commit token: goes round twice, first collecting entries, then telling all that all have committed."""

    ring: RingId
    hop: int
    members: tuple[Member, ...]
    entries: list[CommitEntry | None]
    rosters: list[bytes] = field(default_factory=list)  #: packed, each once, that the entries name (``counting``)


# ---------------------------------------------------------------- JOIN, PROBE, NEWS


def encode_join(header: bytes, join: Join) -> bytes:
    """A JOIN frame."""
    reach = [(*member, tick, _pack_set(heard)) for member, (tick, heard) in sorted(join.reach.items())]
    sets = (_pack_set(join.proc), _pack_set(join.failed))
    body = (_hello_fields(join.hello), join.ring_seq, *sets, join.leaving, reach, join.why[:MAX_WHY])
    packed: bytes = msgpack.packb(body)
    return header + packed


def decode_join(frame: bytes) -> Join:
    """The JOIN in a frame."""
    match unpack(frame[HEADER_SIZE:]):
        case [list(hello), int(ring_seq), bytes(proc), bytes(failed), bool(leaving), list(reach), str(why)]:
            if not 0 <= ring_seq < MAX_RING_SEQ:
                bad(f"ring sequence {ring_seq} does not fit 31 bits")
            sets = _unpack_set(proc), _unpack_set(failed)
            return Join(_hello(hello), ring_seq, *sets, leaving, _reach(reach), why[:MAX_WHY])
        case _:
            bad("malformed JOIN")


def encode_probe(header: bytes, probe: Probe) -> bytes:
    """A PROBE frame."""
    packed: bytes = msgpack.packb((_hello_fields(probe.hello), probe.ring))
    return header + packed


def decode_probe(frame: bytes) -> Probe:
    """The PROBE in a frame."""
    match unpack(frame[HEADER_SIZE:]):
        case [list(hello), list(ring)]:
            return Probe(_hello(hello), read_ring(ring))
        case _:
            bad("malformed PROBE")


def encode_news(header: bytes, news: News) -> bytes:
    """A NEWS frame."""
    packed: bytes = msgpack.packb((news.lineage, news.mark, news.roster))
    return header + packed


def decode_news(frame: bytes) -> News:
    """The NEWS in a frame."""
    match unpack(frame[HEADER_SIZE:]):
        case [int(lineage), list(mark), bytes(roster)] if 0 < lineage <= MAX_U64:
            return News(lineage, read_ring(mark), roster)
        case _:
            bad("malformed NEWS")


# ---------------------------------------------------------------- the commit token


def encode_commit(header: bytes, commit: Commit) -> bytes:
    """A COMMIT frame."""
    entries = [e and _entry_fields(e) for e in commit.entries]
    packed: bytes = msgpack.packb((commit.ring, commit.hop, commit.members, entries, commit.rosters))
    return header + packed


def decode_commit(frame: bytes) -> Commit:
    """The commit token in a frame."""
    match unpack(frame[HEADER_SIZE:]):
        case [list(ring), int(hop), list(members), list(entries), list(rosters)] if (
            len(rosters) <= MAX_MEMBERS and all(type(packed) is bytes for packed in rosters)
        ):
            nodes = _members(members)
        case _:
            bad("malformed commit token")
    ids = [m.node for m in nodes]
    if ids != sorted(set(ids)) or len(entries) != len(nodes) or not 1 <= hop <= 2 * len(nodes):
        bad("commit token fields do not fit together")
    return Commit(read_ring(ring), hop, nodes, [_commit_entry(e) for e in entries], rosters)


# ---------------------------------------------------------------- parts


def _entry_fields(e: CommitEntry) -> tuple[Any, ...]:
    claims = [(c.ring, c.old_ring, c.aru, c.high, c.stable, c.upper, c.obliged) for c in e.claims]
    return e.old_ring, e.aru, e.high, e.upper, e.obliged, e.stable, claims, e.missed


def _claim(raw: Any) -> Claim:
    match raw:
        case [list(ring), list(old), int(aru), int(high), int(stable), bytes(upper), list(obliged)] if (
            0 <= stable <= aru <= high
        ):
            return Claim(read_ring(ring), read_ring(old), aru, high, stable, upper, _members(obliged))
        case _:
            bad("malformed claim of an attempt")


def _commit_entry(raw: Any) -> CommitEntry | None:
    match raw:
        case None:
            return None
        case [list(old), int(aru), int(high), bytes(upper), list(obliged), int(stable), list(made), list(miss)] if (
            0 <= stable <= aru <= high and len(made) + len(miss) <= MAX_MEMBERS
        ):
            attempts = tuple(_claim(claim) for claim in made), tuple(read_ring(ring) for ring in miss)
            return CommitEntry(read_ring(old), aru, high, upper, _members(obliged), stable, *attempts)
        case _:
            bad("malformed commit token entry")


def _reach(raw: list[Any]) -> dict[Member, Row]:
    rows: dict[Member, Row] = {}
    for row in raw[:MAX_MEMBERS]:
        match row:
            case [int(node), int(incarnation), int(tick), bytes(heard)] if _is_member(node, incarnation, tick):
                rows[Member(node, incarnation)] = (tick, _unpack_set(heard))
            case _:
                bad("malformed reachability row")
    return rows


def _is_member(node: int, incarnation: int, tick: int) -> bool:
    return 0 < node <= MAX_NODE and 0 < incarnation <= MAX_U64 and tick >= 0


@lru_cache(maxsize=256)
def _pack_set(members: frozenset[Member]) -> bytes:
    """A JOIN of n nodes holds n + 2 sets of up to n members, most of them equal: packed and unpacked once."""
    packed: bytes = msgpack.packb(sorted(members))
    return packed


@lru_cache(maxsize=256)
def _unpack_set(packed: bytes) -> frozenset[Member]:
    raw = unpack(packed)
    if type(raw) is not list:
        bad("malformed set of members")
    return frozenset(_members(raw))


def _hello_fields(hello: Hello) -> tuple[Any, ...]:
    known = hello.lineage, hello.mark, hello.roster, hello.digest
    return (hello.cluster, hello.address, hello.wire_min, hello.wire_max, hello.rules, *known)


def _hello(raw: list[Any]) -> Hello:
    match raw:
        case [
            str(cluster),
            str(address),
            int(low),
            int(high),
            list(rules),
            int(lineage),
            list(mark),
            int(roster),
            bytes(digest),
        ] if 0 <= lineage <= MAX_U64 and roster >= 0:
            pairs = tuple((r[0], r[1]) for r in rules if isinstance(r, list) and len(r) == 2)
            if len(pairs) == len(rules) and all(type(n) is str and type(v) is int for n, v in pairs):
                return Hello(cluster, address, low, high, pairs, lineage, read_ring(mark), roster, digest)
    bad("malformed introduction")


def _members(raw: list[Any]) -> tuple[Member, ...]:
    if not len(raw) <= MAX_MEMBERS:
        bad("too many members")
    for pair in raw:
        match pair:
            case [int(node), int(incarnation)] if 0 < node <= MAX_NODE and 0 < incarnation <= MAX_U64:
                pass
            case _:
                bad("malformed member")
    return tuple(Member(*pair) for pair in raw)
