"""Time: how long handles are valid here, and when grants may be answered (pitfalls K10, D1–D9).

*Lease*: handles of this node's clients are valid for ``timing.lease`` after an instant at which everybody in
the primary ring had heard of us. *Horizon*: after somebody vanished without a goodbye, it may hold leases for
grants that nobody else has seen; until they must have run out, grants are decided but not answered. Time
never changes the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlm.recovery import Announcement
from vsync.quorum import newest_mark
from vsync.service import Host
from vsync.types import Entry, Member, RingId, View

__all__ = ["DRIFT", "Lease", "stretched"]

DRIFT = (101, 99)  #: clocks may drift 1 % in either direction: L·(1+ρ)/(1−ρ)
COLD = "the cluster has just started, and locks from before may still be held"
GRANULARITY_US = 1_000  #: timers may fire early by so much


def stretched(lease: int) -> int:
    """µs on our clock after which ``lease`` µs have passed on any other."""
    return -(-lease * DRIFT[0] // DRIFT[1]) + GRANULARITY_US


class Lease:
    """Deadline, generation and horizon of one node. All times are µs of its boot-time clock."""

    def __init__(self, lease: int) -> None:
        self._lease = lease
        self.generation = 1  #: a handle is valid only while this is what it was at its grant (D9)
        self.deadline = 0
        self.horizon = 0
        self.blind = 0  #: until then nothing is known of what the vanished nodes held
        self.waits_since = 0  #: when the horizon came up
        self.entered = 0  #: the last regular view, or the end of catching up
        self.vanished: tuple[int, ...] = ()  #: the nodes that the horizon is there for, if they are known
        self.why = ""  #: what people are told if they are not
        self.settled = 0  #: before the horizon: private names owned since this position need not wait (K10)
        self.running = False  #: primary view, life current: deadlines may grow
        self._alone = False
        self._last_token = 0  #: when the ring of the current view was last known to be whole
        self._forming = False

    def announced(self) -> None:
        """The node fills its commit-token entry: it has left its ring."""
        self._forming = True

    def on_token(self, host: Host, now: int) -> None:
        """The node accepted a token. Tokens of a ring being formed do not count for the ring left behind."""
        if host.lease_basis is not None or not self._forming:
            self._last_token = max(self._last_token, host.last_token)
        self.renew(host, now)

    def renew(self, host: Host, now: int) -> None:
        """Move the deadline, if it may move. A ring of one needs nobody's confirmation (D5)."""
        if not self.running:
            return
        if self._alone and self._forming:
            return  # committed to a ring with others: what they may count on is what was promised before
        basis = now if self._alone else host.lease_basis
        if basis is not None:
            self.deadline = max(self.deadline, basis + self._lease)

    def left_primary(self, old: View, view: View, clean: frozenset[Member], applied: int, now: int) -> None:
        """A primary ring was left: if somebody stayed away without a goodbye, wait for its leases.

        ``applied`` is the position of the last regular delivery there. Who vanished has at least ordered the same
        up to it, so it agrees about whoever owned a name by then.
        """
        came = {entry.member for entry in view.entries.values() if entry.old_ring == old.id}
        gone = tuple(member.node for member in old.members if member not in came and member not in clean)
        if gone:
            self._wait(self._last_token + stretched(self._lease), applied, now, gone)

    def entered_primary(self, mine: RingId, said: Mapping[int, tuple[Entry, Announcement]], now: int) -> None:
        """A node that was not in the ring whose state goes on waits from its installation on (D3).

        Not if everybody of that ring is here or said goodbye, and nobody waits any more for an older one.
        """
        states = [(entry, word) for entry, word in said.values() if word.complete]
        best = max((word.ring for _, word in states), default=None)
        if best is not None and best < newest_mark(entry for entry, _ in said.values()):
            best = None  # overtaken (K8): whoever held locks in the newer state may be out of sight
        if best is not None and mine == best:
            return
        straight = {entry.member for entry, word in states if entry.old_ring == best}
        missing = any(m not in straight for _, word in states if word.ring == best for m in word.members)
        if best is None or missing or any(word.waiting for _, word in said.values()):
            why = "members of the state that this node joined are away" if best is not None else COLD
            self._wait(now + stretched(self._lease), 0, now, (), why)

    def _wait(self, until: int, applied: int, now: int, gone: tuple[int, ...], why: str = "") -> None:
        if now >= self.horizon:
            self.vanished, self.waits_since = (), now
        self.vanished, self.why = tuple(sorted({*self.vanished, *gone})), why
        self.settled = min(self.settled, applied) if now < self.horizon else applied
        if not applied:
            self.blind = max(self.blind, until)
        self.horizon = max(self.horizon, until)

    def installed(self, host: Host, view: View, current: bool, now: int) -> None:
        """A regular view is in force; ``current``: it is primary and this node's life is admitted."""
        self._forming = False
        self._last_token = self.entered = now
        self._alone = len(view.members) == 1
        self.running = view.primary and current
        if not self.running:
            self.deadline = 0  # at once, not when it would have run out (D5)
        self.renew(host, now)

    def admitted(self, host: Host, current: bool, now: int) -> None:
        """The node has caught up in a primary view (K4); ``current``: its handles may be valid again."""
        self.running, self.entered = current, now
        self.renew(host, now)

    def new_generation(self) -> None:
        """All handles end: the life has ended, or the node is leaving. Comes before any new deadline (D9)."""
        self.generation += 1
        self.deadline = 0
        self.blind = self.horizon  # the table of the next life has been purged by others
        self.settled = 0  # positions of the next life may belong to another lineage

    def valid(self, now: int) -> bool:
        """Whether this node may act on its own: it has a lease now."""
        return self.running and now < self.deadline

    def next_deadline(self, pending: bool) -> int | None:
        """When a ring of one must renew, or withheld grants may be answered."""
        first = self.horizon if pending else None
        if self.running and self._alone and not self._forming:  # else ``renew`` would do nothing, for ever
            renewal = self.deadline - self._lease + self._lease // 4
            first = renewal if first is None else min(first, renewal)
        return first
