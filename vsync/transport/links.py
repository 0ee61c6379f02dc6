"""Which of the links to a peer to use. Pure: time is an argument, in µs.

Whatever was sent over a redundant link is followed by a ping within a tenth of a second; a link over which nothing
is sent is pinged every other second. Each ping is answered over the same link, so that a link counts only if it
carries both ways::

    DOWN ──need answers in a row──▶ UP ◀──an answer── SUSPECT ──four pings in a row unanswered──▶ DOWN
                                     └──a ping not answered in time──▶ ▲

The first link by order that is up is used. While one before it is suspect, both are: a frame that comes twice
costs little, one that comes late is what redundant links are there to prevent. When none is up all are used:
there is nothing to lose. A link that fails to one peer may fail to others: it is held suspect for them, too, until
they answer – by this node and, as it tells them (``take_fallen``), by its peers, so that a message that goes from
node to node does not wait for each of them to find out.

Hysteresis: a link that went down needs two answers in a row to come up, and twice as many each time it fails
again within half a minute. Only answers in time count (a late one proves that the link is not fit for use).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["Link", "LinkState", "LinkTiming", "Links"]

HISTORY = 100  #: pings that the loss is computed over
_MASK = (1 << HISTORY) - 1
MISSES = 4  #: unanswered in a row: down
NEED = 2  #: answers in a row: up again
MAX_NEED = 32
STEADY_US = 30_000_000  #: up for so long: what was before is forgotten
BUSY_US = 250_000  #: a peer counts as busy for so long after something was sent to it
MAX_PATIENCE_US = 400_000
NEVER = 1 << 62


class LinkState(Enum):
    """See the picture above."""

    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class LinkTiming:
    """µs between two pings of a link, by its state and its peer's; and how long an answer may take."""

    busy: int = 100_000  #: the link is in use, and something was sent since the last ping
    idle: int = 2_000_000
    suspect: int = 50_000  #: of a busy peer; else ``idle``
    down: int = 250_000  #: the same
    answer: int = 60_000  #: and four times the usual round trip
    touch: int = 0  #: send something, unanswered, to a busy peer so often: a dead one's port refuses it; 0: do not


class Link:
    """One link to one peer."""

    __slots__ = (
        "_asked",
        "_history",
        "_known",
        "answered",
        "asked_at",
        "downs",
        "fell",
        "good_since",
        "index",
        "last",
        "misses",
        "need",
        "pings",
        "rtt_us",
        "sent",
        "state",
        "streak",
        "timing",
        "up_since",
    )  # fmt: skip

    def __init__(self, index: int, now: int, timing: LinkTiming) -> None:
        self.index = index
        self.timing = timing
        self.state = LinkState.DOWN
        self.rtt_us = 0  #: smoothed
        self.sent = self.answered = self.downs = 0
        self.asked_at = NEVER  #: of the oldest ping that is not answered
        self.last = now - timing.idle  #: when the last ping was sent
        self.good_since = now  #: what was sent before that has arrived
        self.up_since = now
        self.misses = self.streak = 0
        self.fell = False  # it was up until now
        self.need = 1  # the first answer of all is enough
        self.pings: dict[int, int] = {}  #: not answered: number -> sent at
        self._asked = 0
        self._history = self._known = 0

    @property
    def loss(self) -> float:
        """Share of the last hundred pings that were not answered in time."""
        return self._history.bit_count() / self._known if self._known else 0.0

    @property
    def patience(self) -> int:
        """How long an answer may take."""
        return min(self.timing.answer + 4 * self.rtt_us, MAX_PATIENCE_US)

    def ping(self, now: int) -> int:
        """One is sent now; returns its number."""
        self._asked = (self._asked + 1) & 0xFFFFFFFF
        self.pings[self._asked] = now
        self.asked_at = min(self.asked_at, now)
        self.last = now
        self.sent += 1
        return self._asked

    def unsent(self, number: int) -> None:
        """That one was not even sent. Of a link that is down it says nothing; one that is up has a full queue, and
        the answer will be missed in time.
        """
        if self.state is LinkState.DOWN and self.pings.pop(number, None) is not None:
            self.sent -= 1
            self._oldest()

    def pong(self, number: int, now: int) -> bool:
        """The answer came; false if nothing was asked, or too long ago."""
        asked = self.pings.pop(number, None)
        if asked is None:
            return False
        self._oldest()
        rtt = max(0, now - asked)
        if rtt > self.patience:
            self._miss(now)
            return False
        self.rtt_us = rtt if not self.answered else (7 * self.rtt_us + rtt) // 8
        self.answered += 1
        self._record(0)
        self.misses = 0
        self.good_since = max(self.good_since, asked)
        self.streak += 1
        if self.state is LinkState.SUSPECT or (self.state is LinkState.DOWN and self.streak >= self.need):
            if self.state is LinkState.DOWN:
                self.up_since = now
            self.state = LinkState.UP
        return True

    def expire(self, now: int) -> None:
        """Count as lost what was not answered in time."""
        patience = self.patience
        while now - self.asked_at > patience:
            del self.pings[next(iter(self.pings))]
            self._oldest()
            self._miss(now)

    def down(self, now: int) -> None:
        """It does not carry, for certain."""
        self.pings.clear()
        self.asked_at = NEVER
        self.misses = self.streak = 0
        if self.state is not LinkState.DOWN:
            steady = now - self.up_since >= STEADY_US
            self.fell = self.state is LinkState.UP
            self.need = NEED if steady or self.need < NEED else min(2 * self.need, MAX_NEED)
            self.state = LinkState.DOWN
            self.downs += 1

    def excuse(self, now: int) -> None:
        """This process stood still: the answers may wait in its own buffers, so their time begins now."""
        self.pings = dict.fromkeys(self.pings, now)
        self._oldest()

    def _miss(self, now: int) -> None:
        if self.answered:  # before the first answer there was nobody there
            self._record(1)
        self.streak = 0
        self.misses += 1
        if self.state is LinkState.UP:
            self.state = LinkState.SUSPECT
            self.fell = True
        elif self.state is LinkState.SUSPECT and self.misses >= MISSES:
            self.down(now)

    def _record(self, lost: int) -> None:
        self._history = (self._history << 1 | lost) & _MASK
        self._known = min(self._known + 1, HISTORY)

    def _oldest(self) -> None:
        self.asked_at = next(iter(self.pings.values()), NEVER)


class Links:
    """The links to one peer. ``use`` says which to send on; ask again after every call."""

    __slots__ = ("_busy_until", "_deadline", "_doubt", "_touch_at", "_unproven", "links", "timing", "use")

    def __init__(self, count: int, now: int, timing: LinkTiming | None = None) -> None:
        self.timing = timing or LinkTiming()
        self.links = [Link(index, now, self.timing) for index in range(count)]
        self.use: tuple[int, ...] = tuple(range(count))
        self._busy_until = 0
        self._unproven = False  # something was sent, and no ping after it
        self._touch_at = NEVER
        self._deadline = now
        self._doubt: tuple[tuple[int, ...], int] | None = None

    @property
    def deadline(self) -> int:
        """When ``tick`` should be called."""
        return self._deadline

    @property
    def alive(self) -> bool:
        """Whether any link carries."""
        return any(link.state is not LinkState.DOWN for link in self.links)

    def busy(self, now: int) -> None:
        """Something is being sent to the peer. Enough to be called once after each ``tick``."""
        self._busy_until = now + BUSY_US
        self._unproven = True
        if self.timing.touch:
            self._touch_at = now + self.timing.touch
        self._schedule(now)

    def touch(self, now: int) -> bool:
        """Whether something should be sent over the links in use, be it only to see whether it is refused."""
        if now < self._touch_at:
            return False
        self._touch_at = now + self.timing.touch
        if self._touch_at > self._busy_until:
            self._touch_at = NEVER
        self._schedule(now)
        return True

    def tick(self, now: int) -> list[tuple[int, int]]:
        """Judge what is due; returns the pings to send: (link, number)."""
        self._excuse(now)
        for link in self.links:
            link.expire(now)
        self._choose()
        pings = []
        for link in self.links:
            if now - link.last >= self._interval(link, now):
                pings.append((link.index, link.ping(now)))
        if all(self.links[index].last == now for index in self.use):
            self._unproven = False
        self._schedule(now)
        return pings

    def unsent(self, link: int, number: int) -> None:
        """That ping found no connection, or a full queue."""
        self.links[link].unsent(number)

    def pong(self, link: int, number: int, now: int) -> None:
        """An answer came over ``link``. Anything odd is ignored."""
        if link < len(self.links):
            self._excuse(now)
            if self.links[link].pong(number, now):
                self._choose()
                self._schedule(now)

    def made(self, link: int, now: int) -> None:
        """The link has a connection again: ask at once."""
        self.links[link].last = now - self.timing.idle
        self._deadline = now

    def broke(self, link: int, now: int) -> None:
        """The link has no connection any more."""
        self.links[link].down(now)
        self._choose()
        self._schedule(now)

    def suspect(self, link: int, now: int) -> None:
        """Somebody has trouble with the same link: ask at once, and do not rely on it until the answer is there."""
        if link < len(self.links) and self.links[link].state is LinkState.UP and link in self.use:
            self.links[link].state = LinkState.SUSPECT
            self.made(link, now)
            self._choose()

    def take_fallen(self) -> list[int]:
        """Links that were up, while others to the peer still are: it is them, not the peer. Each is told once."""
        fallen = [link.index for link in self.links if link.fell]
        for index in fallen:
            self.links[index].fell = False
        return fallen if any(link.state is LinkState.UP for link in self.links) else []

    def take_doubt(self) -> tuple[tuple[int, ...], int] | None:
        """After a change of links: (links newly in use, since when the former ones may have lost frames)."""
        doubt, self._doubt = self._doubt, None
        return doubt

    def rows(self) -> list[dict[str, Any]]:
        """For the status: times in µs, loss in percent."""
        return [
            {
                "link": link.index,
                "state": link.state.value,
                "used": link.index in self.use,
                "rtt_us": link.rtt_us if link.answered else None,
                "loss": round(100 * link.loss, 1),
                "pings": link.sent,
                "downs": link.downs,
            }
            for link in self.links
        ]

    def _excuse(self, now: int) -> None:
        """``tick`` comes late: this process stood still, and so did its clockwork for the answers."""
        if now - self._deadline > self.timing.answer // 2:
            for link in self.links:
                link.excuse(now)
            self._deadline = now

    def _choose(self) -> None:
        before, links = self.use, self.links
        first = next((link.index for link in links if link.state is LinkState.UP), None)
        if first is None:
            use = tuple(range(len(links)))
        else:
            suspects = [link.index for link in links[:first] if link.state is LinkState.SUSPECT]
            use = (*suspects, first)
        if use != before:
            self.use = use
            if new := tuple(i for i in use if i not in before):
                self._doubt = (new, min(links[i].good_since for i in before))

    def _interval(self, link: Link, now: int) -> int:
        timing = self.timing
        if link.state is LinkState.UP:
            return timing.busy if self._unproven and link.index in self.use else timing.idle
        if now >= self._busy_until:
            return timing.idle
        return timing.suspect if link.state is LinkState.SUSPECT else timing.down

    def _schedule(self, now: int) -> None:
        due = (min(k.last + self._interval(k, now), k.asked_at + k.patience + 1) for k in self.links)
        self._deadline = min(self._touch_at, *due)
