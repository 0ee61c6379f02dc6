"""CHAIN-K7: of a primary view that broke while it was being installed, all its members think alike.

A member may have installed it and acted in it when the ring broke; then every other one goes through it before
any later view, in the same life. Or one of them never came to its end: then nobody can have acted in it, and where
that one is present nobody goes through it. So, of the members of a primary view (judged from the traces alone):

* if somebody stayed in it for a while, none has a later view without it;
* those who have one later view together have all come through it, or none of them has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vsync.testing.trace import Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import Member, RingId, View

__all__ = ["AttemptRules"]


@dataclass(slots=True)
class _Life:
    """What one process has installed."""

    views: dict[RingId, View] = field(default_factory=dict)  #: in their order
    since: int = 0  #: when it came to the last one
    through: list[View] = field(default_factory=list)  #: the primary ones of that moment, the last one included


class AttemptRules:
    """Judges which views each process goes through."""

    def __init__(self) -> None:
        self._lives: dict[Member, _Life] = {}
        self._in_force: dict[Member, dict[RingId, None]] = {}  # by member: primary views that somebody stayed in
        self._there: dict[RingId, dict[Member, list[View]]] = {}  # by view: who has it, and came through what

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Viewed, self.on_viewed)

    def on_viewed(self, event: Viewed) -> None:
        """Judge what a process leaves, and how it came to a view."""
        who, view = event.who, event.view
        life = self._lives.setdefault(who, _Life())
        if life.since < event.time:
            for last in life.through[-1:]:
                self._stayed(last)
            life.through = []
        if view.transitional:
            return
        life.views[view.id] = view
        life.since = event.time
        for attempt in self._in_force.get(who, ()):
            self._must_have(who, attempt)
        self._compare(who, view, list(life.through))
        if view.primary:
            life.through.append(view)
        else:
            life.through = []

    def _stayed(self, view: View) -> None:
        """It was in force: whoever of its members has something later must have it, now and from now on."""
        for member in view.members:
            self._in_force.setdefault(member, {})[view.id] = None
            if member in self._lives:
                self._must_have(member, view.id)

    def _must_have(self, member: Member, attempt: RingId) -> None:
        views = self._lives[member].views
        last = next(reversed(views), attempt)
        if last > attempt and attempt not in views:
            raise Violation(
                "CHAIN-K7", f"node {member.node} is in {last} and never was in {attempt}, in which others were"
            )

    def _compare(self, who: Member, view: View, through: list[View]) -> None:
        there = self._there.setdefault(view.id, {})
        there[who] = through
        for member, passed in there.items():
            for attempt in passed:
                for other in attempt.members:
                    if other in there and attempt.id not in self._lives[other].views:
                        raise Violation(
                            "CHAIN-K7",
                            f"node {member.node} comes to {view.id} through {attempt.id}, and node {other.node}, a "
                            "member of that, does not",
                        )
