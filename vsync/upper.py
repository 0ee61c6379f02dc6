"""What the layers above the ring put into a member's entry of the commit token: votes, marks, announcements (K1).

All members read the same bytes, so all come to the same verdict. ``Engine`` carries them and looks at none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgpack

from vsync.counting import roster_of
from vsync.engine import Configuration
from vsync.engine.record import Attempt
from vsync.quorum import Says, base_of, judge, lineage_of, terms_of
from vsync.types import RingId, View

if TYPE_CHECKING:
    from vsync.core import Core

__all__ = ["compose", "decode_upper", "judged"]


def compose(core: Core, attempts: Sequence[Configuration] = (), reached: Sequence[Attempt] = ()) -> bytes:
    """This node's part of a commit entry: as of now, or with the marks of attempts that a former life may have
    ``reached``, and as if those of this life had been installed (K7).
    """
    own = core.config.peer(core.config.node)
    assert own is not None
    record = core.engine.record
    views = [judged(configuration) for configuration in attempts]
    mark, lineage, bases = record.mark, record.lineage, record.bases
    names: tuple[tuple[RingId, bytes], ...] = ((mark, core.roster.digest),)
    pending = record.pending
    for attempt in reached:
        mark, lineage, bases = attempt.ring, attempt.lineage, ((attempt.ring, attempt.base), *bases)
        names = ((mark, (attempt.roster or core.roster).digest), *names)
    for view in views:
        if view.primary:
            mark, lineage = view.id, lineage_of(view.id, view.entries)
            bases = ((view.id, base_of(view.entries)), *bases)
            names, pending = ((mark, (roster_of(view.entries) or core.roster).digest),), False
    announcements = {s.tag: s.announce(views) for s in core.services}
    voting = [p for p in core.config.peers if p.votes]
    configured = len(core.config.peers), min(p.node for p in voting), int(terms_of(core.config.quorum))
    expected = sum(p.votes for p in voting)
    says = _says(core, views)
    if reached and not record.lineage and not reached[-1].sure:
        says |= Says.UNSURE
    row = own.votes, announcements, expected, mark, lineage, bases, *configured, int(says), names, int(pending)
    packed: bytes = msgpack.packb(row)
    return packed


def _says(core: Core, attempts: Sequence[View]) -> Says:
    waits = core.waiting and not any(view.primary for view in attempts)
    said = Says.WAITING if waits else Says(0)
    if core.bootstrap:
        said |= Says.BOOTSTRAP
    return said | Says.OVERRIDE if core.override else said


def decode_upper(raw: bytes) -> tuple[Any, ...]:
    """Read a member's entry; nonsense counts as nothing at all, the same at every member."""
    try:
        row = msgpack.unpackb(raw, strict_map_key=False)
        votes, announcements, expected, (seq, rep), lineage, bases, *rest, names, pending = row
        read = tuple((RingId(*ring), tuple((node, vote) for node, vote in base)) for ring, base in bases)
        pairs = (number for ring, base in read for pair in (ring, *base) for number in pair)
        named = tuple((RingId(*ring), bytes(digest)) for ring, digest in names)
        marks = (number for ring, _ in named for number in ring)
        numbers = (votes, expected, seq, rep, lineage, *rest, *pairs, *marks, pending)
        if len(rest) == 4 and named and all(type(n) is int and n >= 0 for n in numbers):
            said = {int(k): bytes(v) for k, v in announcements.items()}
            return votes, said, expected, RingId(seq, rep), lineage, read, *rest, named, pending
    except Exception:  # noqa: BLE001 - whatever a peer's bytes do to the decoder
        pass
    return (0, {})


def judged(c: Configuration) -> View:
    """A configuration with its verdict."""
    primary = judge(c.entries).primary
    return View(c.id, c.members, c.joined, c.left, primary, c.transitional, c.reason, c.entries, c.previous)
