"""Private names that should not stay so: contended ones are yielded, idle ones are given back (pitfalls K13, A2).
And clients that keep locks without use, and do not say whether they are in use when others want them.

Waiting and idleness are the owner's own observations; what it does about them are ordered messages, so the table
changes at one position everywhere.
"""

from __future__ import annotations

from dlm import words
from dlm.home import Home
from dlm.messages import Kind
from dlm.names import Form
from dlm.resource import Resource

__all__ = ["GIVE_BACK_AFTER_US", "WORD_AFTER_US", "YIELD_AFTER_US", "Upkeep"]

YIELD_AFTER_US = 200_000  #: a private name with a waiter older than this becomes shared (K13)
GIVE_BACK_AFTER_US = 10_000_000  #: a private name without locks for so long is given back (A2)
GIVE_BACK_BATCH = 500  #: names in one GiveBack
WORD_AFTER_US = 1_000_000  #: a client that does not say so by then has its cached lock in use (``dlm.tries``)


class Upkeep:
    """Watches the private names of one node. ``run`` only while messages may leave."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.yield_after = YIELD_AFTER_US  #: µs; the simulator draws others
        self.give_back_after = GIVE_BACK_AFTER_US
        self.word_after = WORD_AFTER_US

    def run(self, now: int) -> None:
        """Send what is due."""
        self._speak_for_the_silent(now)
        self._yield_contended(now)
        self._give_back_idle(now)

    def next_deadline(self) -> int | None:
        """When ``run`` has something to do."""
        give_back, unanswered = self._next_give_back(), self.home.teller.advice.unanswered
        if not self.home.queued_private and not unanswered:
            return give_back
        word = next(iter(unanswered.values()))[0] + self.word_after if unanswered else None
        times = (self._next_yield(), give_back, word)
        return min((time for time in times if time is not None), default=None)

    def _speak_for_the_silent(self, now: int) -> None:
        """Others do not wait for the word of a client for ever: it may be stopped."""
        for since, handle in list(self.home.teller.advice.unanswered.values()):
            if now - since < self.word_after:
                break  # oldest first
            self.home.teller.advice.answered(handle)
            words.given(self.home, handle)

    def _yield_contended(self, now: int) -> None:
        """The 200 ms rule: a private name somebody has waited for so long becomes shared (K13)."""
        for key in list(self.home.queued_private):
            oldest = self._waiting_since(key)
            if oldest is None:
                del self.home.queued_private[key]
            elif now - oldest >= self.yield_after:
                del self.home.queued_private[key]
                self.home.send(Kind.YIELD, (key, self.home.table.names[key].epoch), (key,))

    def _next_yield(self) -> int | None:
        times = [self._waiting_since(key) for key in self.home.queued_private]
        return min((time + self.yield_after for time in times if time is not None), default=None)

    def _waiting_since(self, key: bytes) -> int | None:
        resource = self._open(key)
        return resource.oldest_wait() if resource is not None else None

    def _open(self, key: bytes) -> Resource | None:
        """What is in a private name of this node, unless that is folded: then it has locks, and nobody waits."""
        name = self.home.table.names.get(key)
        return name.resource if name is not None and name.form is Form.PRIVATE else None

    def _give_back_idle(self, now: int) -> None:
        """Names nobody has locked for 10 s are given back, many in one message (A2)."""
        batch: list[tuple[bytes, int]] = []
        for key in list(self.home.idle_private):
            resource = self._open(key)
            if resource is None or resource.locks:
                del self.home.idle_private[key]
            elif self.home.idle_private[key] + self.give_back_after > now:
                break  # oldest first
            elif key in self.home.outbox.under_way:
                del self.home.idle_private[key]
                self.home.idle_private[key] = now  # not idle: look again later
            else:
                del self.home.idle_private[key]
                batch.append((key, self.home.table.names[key].epoch))
                if len(batch) == GIVE_BACK_BATCH:
                    break
        if batch:
            self.home.send(Kind.GIVE_BACK, (tuple(batch),), [key for key, _ in batch])

    def _next_give_back(self) -> int | None:
        first = next(iter(self.home.idle_private.items()), None)
        if first is None:
            return None
        key, since = first
        return since + self.give_back_after if key in self.home.table.names else self.home.now
