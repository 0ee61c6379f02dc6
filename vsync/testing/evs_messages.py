"""EVS-E1..E4 and E13..E24: what must hold of messages, judged from the traces alone.

The order of one ring is the sequence of positions; rings are ordered by id, which grows along every process
(E7). So one global order exists (E19, E21) if a message has one place (ring, position) everywhere and every
process delivers in growing order; the rest is about *which* messages of that order a process may leave out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from vsync.testing.trace import Crashed, Delivered, Sent, Started, Trace, Viewed, Withdrawn
from vsync.testing.violation import Violation
from vsync.types import Member, RingId

__all__ = ["MessageRules"]

_Key = tuple[Member, int]  # sender and its number


@dataclass(slots=True)
class _Walk:
    """One process's way through the messages of one ring."""

    who: Member
    members: tuple[Member, ...]  #: of the ring
    delivered: list[int] = field(default_factory=list)  #: positions
    before_transitional: int = 0  #: how many of them in the regular part
    together: tuple[Member, ...] | None = None  #: its transitional view, once given
    next_ring: RingId | None = None  #: where it went from here
    next_index: int = 0  #: in the regular part: index of the next position in the ring's order
    authors: dict[Member, tuple[int, int]] = field(default_factory=dict)  #: by author: how many, the last position


@dataclass(slots=True)
class _Ring:
    """All that anybody delivered in one ring."""

    positions: list[int] = field(default_factory=list)  #: ascending
    at: dict[int, _Key] = field(default_factory=dict)
    walks: dict[Member, _Walk] = field(default_factory=dict)
    left: bool = False  #: somebody has gone on to another ring
    authors: dict[Member, list[int]] = field(default_factory=dict)  #: positions by author, ascending
    owed: dict[int, set[Member]] = field(default_factory=dict)  #: SAFE ones: who has to deliver them, too


@dataclass(slots=True)
class _Process:
    ring: RingId | None = None
    walk: _Walk | None = None
    last_number: dict[Member, int] = field(default_factory=dict)  #: per sender
    own_unseen: dict[int, None] = field(default_factory=dict)  #: own numbers not yet delivered here, in order


class MessageRules:
    """Feed it with a trace (``watch``); it raises ``Violation`` at the first event that breaks a rule."""

    def __init__(self) -> None:
        self.processes: dict[Member, _Process] = {}
        self._sent: dict[_Key, tuple[int, RingId | None, int]] = {}  # digest; sender's ring and last position
        self._safe: set[_Key] = set()
        self._place: dict[_Key, tuple[RingId, int]] = {}
        self._rings: dict[RingId, _Ring] = {}
        self._together: dict[tuple[RingId, RingId], _Walk] = {}

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Started, self.on_started)
        trace.subscribe(Crashed, self.on_crashed)
        trace.subscribe(Sent, self.on_sent)
        trace.subscribe(Withdrawn, self.on_withdrawn)
        trace.subscribe(Delivered, self.on_delivered)
        trace.subscribe(Viewed, self.on_viewed)

    def undelivered(self, who: Member) -> list[int]:
        """Numbers of its own messages that a living process has not delivered itself yet (E14)."""
        process = self.processes.get(who)
        return list(process.own_unseen) if process else []

    def on_started(self, event: Started) -> None:
        """A process begins."""
        self.processes[event.who] = _Process()

    def on_crashed(self, event: Crashed) -> None:
        """A process ended; what it delivered still counts."""
        self.processes.pop(event.who, None)

    def on_sent(self, event: Sent) -> None:
        """Remember the message and how much of its ring the sender had delivered (for E18)."""
        process = self.processes[event.who]
        last = process.walk.delivered[-1] if process.walk and process.walk.delivered else -1
        self._sent[(event.who, event.number)] = (event.digest, process.ring, last)
        process.own_unseen[event.number] = None
        if event.safe:
            self._safe.add((event.who, event.number))

    def on_withdrawn(self, event: Withdrawn) -> None:
        """Refused for want of space: never to be seen."""
        del self._sent[(event.who, event.number)]
        self.processes[event.who].own_unseen.pop(event.number, None)

    # -- a delivery -------------------------------------------------------------------------

    def on_delivered(self, event: Delivered) -> None:
        """Judge one delivery of one process."""
        process = self.processes.get(event.who)
        if process is None or process.walk is None or process.ring is None:
            raise Violation("EVS-E3", f"{_p(event.who)} {event.text()} outside any configuration")
        key = (event.author, event.number)
        self._check_integrity(event, key)
        self._check_sender_order(event, process)
        self._check_place(event, key, process.ring)
        walk, ring = process.walk, self._rings[process.ring]
        if walk.delivered and event.position <= walk.delivered[-1]:
            raise Violation("EVS-E19", f"{_p(event.who)} {event.text()} after {_at(walk.delivered[-1])}")
        _, sender_ring, sender_last = self._sent[key]
        if sender_ring == process.ring and event.position <= sender_last:
            raise Violation(
                "EVS-E18",
                f"{event.text()}: before sending, its sender had delivered {_at(sender_last)} of this ring",
            )
        index = bisect_left(ring.positions, event.position)
        if event.position not in ring.at:
            ring.at[event.position] = key
            ring.positions.insert(index, event.position)
            insort(ring.authors.setdefault(event.author, []), event.position)
            if ring.left or index < len(ring.positions) - 1:
                self._check_latecomer(event, key, process.ring, ring)
        if walk.together is None:
            self._check_gapless(event, walk, ring, index)
        count, _ = walk.authors.get(event.author, (0, -1))
        if walk.together is not None and bisect_left(ring.authors[event.author], event.position) != count:
            self._orphan(event.who, event.author, event.position)
        walk.authors[event.author] = (count + 1, event.position)
        walk.delivered.append(event.position)
        if key in self._safe:
            self._check_safe(event, walk, ring)

    def _check_integrity(self, event: Delivered, key: _Key) -> None:
        """E1: sent before, by the claimed sender, the same bytes."""
        known = self._sent.get(key)
        if known is None:
            raise Violation("EVS-E1", f"{_p(event.who)} {event.text()}, which {_p(event.author)} never sent")
        if event.author != event.origin:
            raise Violation(
                "EVS-E1",
                f"{_p(event.who)} {event.text()} as from {_p(event.origin)}, sent by {_p(event.author)}",
            )
        if known[0] != event.digest:
            raise Violation("EVS-E1", f"{_p(event.who)} {event.text()} with other bytes than were sent")

    @staticmethod
    def _check_sender_order(event: Delivered, process: _Process) -> None:
        """E2 and E17: at most once, and in the order in which the sender sent; E14 for the sender itself."""
        last = process.last_number.get(event.author, 0)
        if event.number == last:
            raise Violation("EVS-E2", f"{_p(event.who)} {event.text()} twice")
        if event.number < last:
            raise Violation("EVS-E17", f"{_p(event.who)} {event.text()} after message {last} of that sender")
        process.last_number[event.author] = event.number
        if event.author == event.who:
            first = next(iter(process.own_unseen))
            if first != event.number:
                raise Violation(
                    "EVS-E14", f"{_p(event.who)} {event.text()}, but never its own earlier message {first}"
                )
            del process.own_unseen[event.number]

    def _check_place(self, event: Delivered, key: _Key, ring_id: RingId) -> None:
        """E4 and E19: a message has one place in one ring, and a place holds one message."""
        place = (ring_id, event.position)
        known = self._place.setdefault(key, place)
        if known[0] != ring_id:
            raise Violation(
                "EVS-E4",
                f"{_p(event.who)} {event.text()} in ring {ring_id}, others delivered it in {known[0]}",
            )
        if known != place:
            raise Violation(
                "EVS-E19", f"{_p(event.who)} {event.text()}, others have it at {_at(known[1])} of {ring_id}"
            )
        there = self._rings[ring_id].at.get(event.position, key)
        if there != key:
            raise Violation(
                "EVS-E19",
                f"{_p(event.who)} {event.text()} of {ring_id}, where others have {_p(there[0])}:{there[1]}",
            )

    def _check_gapless(self, event: Delivered, walk: _Walk, ring: _Ring, index: int) -> None:
        """E16, E20, E24: before the transitional view nobody leaves out what anybody has delivered.

        If what is left out is SAFE, it ought to have kept back all behind it.
        """
        if index != walk.next_index:
            hole = ring.positions[walk.next_index]
            sender, number = ring.at[hole]
            raise Violation(
                "EVS-E24" if ring.at[hole] in self._safe else "EVS-E16",
                f"{_p(event.who)} {event.text()} without {_p(sender)}:{number} at {_at(hole)}",
            )
        walk.next_index += 1

    def _check_latecomer(self, event: Delivered, key: _Key, ring_id: RingId, ring: _Ring) -> None:
        """A message appears below what is known, or late: those who went past it must have been allowed to."""
        for walk in ring.walks.values():
            if walk.who == event.who:
                continue
            last = walk.authors.get(key[0], (0, -1))[1]
            if walk.together and last > event.position:
                self._orphan(walk.who, key[0], last)
            regular = walk.delivered[: walk.before_transitional] if walk.together else walk.delivered
            if regular and regular[-1] > event.position:
                raise Violation(
                    "EVS-E24" if key in self._safe else "EVS-E20",
                    f"{_p(event.who)} {event.text()}; {_p(walk.who)} went past it to "
                    f"{_at(regular[-1])} in regular {ring_id}",
                )
            if walk.next_ring and walk.together and key[0] in walk.together:
                raise Violation(
                    "EVS-E14",
                    f"{_p(event.who)} {event.text()}; {_p(walk.who)} left {ring_id} without it, though "
                    f"together with its sender",
                )

    @staticmethod
    def _orphan(who: Member, author: Member, position: int) -> None:
        """E15: behind a gap either all of a sender's messages are delivered or none."""
        raise Violation(
            "EVS-E15",
            f"{_p(who)} delivered {_at(position)} of {_p(author)} in the transitional part, but not all before it",
        )

    @staticmethod
    def _check_safe(event: Delivered, walk: _Walk, ring: _Ring) -> None:
        """E22, E23: who delivers a SAFE message knows that all of its configuration will, unless they crash."""
        owing = set(walk.together or walk.members)
        ring.owed.setdefault(event.position, set()).update(owing)
        for other in ring.walks.values():
            if other.who in owing and other.next_ring and event.position not in other.delivered:
                raise Violation(
                    "EVS-E23" if walk.together else "EVS-E22",
                    f"{_p(event.who)} {event.text()}, which is SAFE; {_p(other.who)} left the ring without it",
                )

    @staticmethod
    def _check_owed(walk: _Walk, ring: _Ring) -> None:
        """E22, E23: nobody leaves a ring without the SAFE messages that others have delivered on that condition."""
        if not ring.owed:
            return
        mine = set(walk.delivered)
        for position in sorted(ring.owed):
            if walk.who in ring.owed[position] and position not in mine:
                sender, number = ring.at[position]
                raise Violation(
                    "EVS-E22",
                    f"{_p(walk.who)} goes on without {_p(sender)}:{number} at {_at(position)}, which is SAFE "
                    f"and was delivered by others",
                )

    # -- a configuration --------------------------------------------------------------------

    def on_viewed(self, event: Viewed) -> None:
        """The end of a ring's messages at this process, and the beginning of the next ring's."""
        process = self.processes.get(event.who)
        if process is None:
            raise Violation("EVS-E3", f"{_p(event.who)} is given a view while it does not run")
        walk, view = process.walk, event.view
        if view.transitional:
            if walk is not None:
                walk.together = view.members
                walk.before_transitional = len(walk.delivered)
            return
        if walk is not None and process.ring is not None and walk.together is not None:
            walk.next_ring = view.id
            self._rings[process.ring].left = True
            self._check_same_set(process.ring, walk, view.id)
            self._check_companions(process.ring, walk)
            self._check_owed(walk, self._rings[process.ring])
        process.ring = view.id
        process.walk = _Walk(event.who, view.members)
        self._rings.setdefault(view.id, _Ring()).walks[event.who] = process.walk

    def _check_same_set(self, ring_id: RingId, walk: _Walk, next_ring: RingId) -> None:
        """E13: who goes together from one ring to the next has delivered the same in between."""
        first = self._together.setdefault((ring_id, next_ring), walk)
        if first is walk:
            return
        if first.delivered != walk.delivered:
            differing = sorted(set(first.delivered) ^ set(walk.delivered))[0]
            has, lacks = (first, walk) if differing in first.delivered else (walk, first)
            sender, number = self._rings[ring_id].at[differing]
            raise Violation(
                "EVS-E13",
                f"from {ring_id} to {next_ring}: {_p(has.who)} delivered {_p(sender)}:{number} at "
                f"{_at(differing)}, {_p(lacks.who)} did not",
            )
        if first.before_transitional != walk.before_transitional:
            raise Violation(
                "EVS-E13",
                f"from {ring_id} to {next_ring}: the transitional view comes after "
                f"{first.before_transitional} messages at {_p(first.who)}, after "
                f"{walk.before_transitional} at {_p(walk.who)}",
            )

    def _check_companions(self, ring_id: RingId, walk: _Walk) -> None:
        """E14 and E18: nothing of a transitional member is left out, if anybody has delivered it."""
        ring = self._rings[ring_id]
        if len(walk.delivered) == len(ring.positions):
            return
        mine = set(walk.delivered)
        for position in ring.positions:
            sender, number = ring.at[position]
            if position not in mine and walk.together is not None and sender in walk.together:
                raise Violation(
                    "EVS-E14",
                    f"{_p(walk.who)} leaves {ring_id} together with {_p(sender)} but without its message "
                    f"{number} at {_at(position)}",
                )


def _p(who: Member) -> str:
    return f"node {who.node}#{who.incarnation}"


def _at(position: int) -> str:
    return f"{position >> 16}.{position & 0xFFFF}"
