"""What a node does about failures (``dlm.failures``), but for fencing, which is ``dlm.stonith``'s.

The lowest full member lets ``lock_delay`` pass by its own clock, counted from when it learnt of the failure and
stretched for drift, and says CLEARED. It says so at once of a failure that concerns no name. If it is gone, the
next one counts from when *it* learnt of the failure: at most the same time again.

Every node tells its applications what they have to recover from: when the failed node is fenced, if that is
wanted, and cannot hold leases any more, so that nobody replays what is still being written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from dlm.failures import Begun, Failure, Fate
from dlm.lease import stretched
from dlm.messages import Kind
from dlm.options import DELAY, FENCING, RECOVERY, words

if TYPE_CHECKING:
    from dlm.home import Home

__all__ = ["Clearing"]


class Asked(NamedTuple):
    """A client waits until all know that an application has recovered from these failures."""

    session: int
    rid: int
    failures: tuple[tuple[str, int, int, int], ...]


class Clearing:
    """A part of ``Home``."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._leads = False  #: the lowest full member of the primary view
        self._said: dict[tuple[str, int, int, int], int] = {}  #: in this view: of which failure, what
        self._asked: list[Asked] = []
        #: Who wants to hear of recoveries: by session and lockspace, what it has heard of.
        self._watches: dict[int, dict[str, set[tuple[str, int, int, int]]]] = {}

    # -- what the service tells

    def entered(self, leads: bool) -> None:
        """A primary view; ``leads``: this node is its lowest full member."""
        self._leads = leads
        self._said.clear()

    def left(self) -> None:
        """No primary view."""
        self.entered(False)

    def new_life(self) -> None:
        """What was asked for may not have been heard of."""
        for asked in self._asked:
            text = "this node's part in the cluster has ended meanwhile: look what has still to be recovered"
            self._home.host.refuse(asked.session, asked.rid, "lost", text)
        self._asked.clear()
        self.left()

    def close(self, session: int) -> None:
        """A client has gone."""
        self._watches.pop(session, None)
        self._asked = [asked for asked in self._asked if asked.session != session]

    def outcome(self, effect: Fate) -> None:
        """A failure, or the end of what one needs."""
        host = self._home.host
        if isinstance(effect, Begun):
            for each in effect.failures:
                host.event("dlm.failed", target=each.node, space=each.space, needs=words(each.needs))
            return
        host.event(
            "dlm.cleared", target=effect.node, space=effect.space, what=words(effect.bits), by=effect.who
        )
        self._answer()
        self._home.teller.tell_freed()

    def run(self, now: int) -> None:
        """A token, or time has passed: say what can be said."""
        home = self._home
        if not home.table.failures or not home.open or home.holding:
            return
        for failure in list(home.table.failures.every) if self._leads else ():
            if not failure.matters and not home.table.purging:
                self._clear(failure, failure.needs, "no name is concerned")
            elif failure.needs & DELAY and now >= self.due(failure):
                self._clear(failure, DELAY, "lock_delay")
        self._tell_watchers()

    def next_deadline(self) -> int | None:
        """When ``run`` has something to do."""
        failures = self._home.table.failures
        if not failures or not self._leads:
            return None
        waiting = [each for each in failures.every if each.needs & DELAY & ~self._said.get(each.name, 0)]
        return min(map(self.due, waiting), default=None)

    # -- lock_delay

    def due(self, failure: Failure) -> int:
        """When its ``lock_delay`` is over, by this node's clock."""
        return failure.since + stretched(self.delay(failure))

    def delay(self, failure: Failure) -> int:
        """How long, in µs, others wait for what it held."""
        space = self._home.table.spaces.get(failure.space)
        return 0 if space is None else space.options.lock_delay_ms * 1000

    def _clear(self, failure: Failure, bits: int, who: str) -> None:
        said = self._said.get(failure.name, 0)
        if bits & ~said:
            self._said[failure.name] = said | bits
            space, node, incarnation, position = failure.name
            self._home.send(Kind.CLEARED, (node, incarnation, space, bits & ~said, who, position))

    # -- recovery by an application

    def recoveries(self, space: str) -> list[Failure]:
        """What applications have to recover from, in one lockspace."""
        every = self._home.table.failures.every
        return [each for each in every if each.space == space and each.needs & RECOVERY and each.keys]

    def ready(self, failure: Failure) -> bool:
        """Whether nothing of the failed life can still go on."""
        home = self._home
        return home.open and not failure.needs & FENCING and home.now >= home.lease.horizon

    def row(self, failure: Failure) -> dict[str, Any]:
        """A recovery, for clients."""
        space, node, incarnation, position = failure.name
        row = {"space": space, "node": node, "incarnation": incarnation, "position": position}
        return {**row, "names": len(failure.keys), "ready": self.ready(failure)}

    def watch(self, session: int, space: str) -> None:
        """The session is told of recoveries in this lockspace from now on, and of those that are due now."""
        self._watches.setdefault(session, {}).setdefault(space, set())
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        for session, spaces in sorted(self._watches.items()):
            for space, heard in sorted(spaces.items()):
                for failure in self.recoveries(space):
                    if failure.name not in heard and self.ready(failure):
                        heard.add(failure.name)
                        self._home.host.push(session, "dlm", "recover", self.row(failure))

    def recovered(self, session: int, rid: int, failures: list[Failure], who: str) -> None:
        """An application has recovered from these; the client hears so when all members know."""
        for space, node, incarnation, position in (failure.name for failure in failures):
            self._home.send(Kind.CLEARED, (node, incarnation, space, RECOVERY, who, position))
        self._asked.append(Asked(session, rid, tuple(failure.name for failure in failures)))

    def _answer(self) -> None:
        left = {each.name for each in self._home.table.failures.every if each.needs & RECOVERY}
        asked, self._asked = self._asked, []
        for each in asked:
            if left.isdisjoint(each.failures):
                self._home.host.reply(each.session, each.rid, {})
            else:
                self._asked.append(each)


