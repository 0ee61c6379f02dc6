"""EVS-E3 and E5..E11: what must hold of configurations, judged from the traces alone.

An independent second opinion: nothing here asks an engine anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vsync.testing.trace import Crashed, Started, Trace, Viewed
from vsync.testing.violation import Violation
from vsync.types import NO_RING, Member, RingId, View

__all__ = ["ViewRules"]


@dataclass(slots=True)
class _Process:
    """What one process has been told so far."""

    regular: View | None = None
    transitional: View | None = None  #: set between a transitional view and its regular one


@dataclass(slots=True)
class _Configuration:
    """What is known of one regular configuration id, from whoever saw it first."""

    first: Member
    members: tuple[Member, ...]
    primary: bool
    entries: object = None
    #: who installed it, the ring it came from, and its transitional members
    came_from: dict[Member, tuple[RingId, tuple[Member, ...]]] = field(default_factory=dict)


class ViewRules:
    """Feed it with a trace (``watch``); it raises ``Violation`` at the first event that breaks a rule."""

    def __init__(self) -> None:
        self.processes: dict[Member, _Process] = {}
        self.configurations: dict[RingId, _Configuration] = {}
        self._transitional: dict[tuple[RingId, RingId], tuple[Member, tuple[Member, ...]]] = {}
        self._highest: dict[int, RingId] = {}  # node -> last regular id, over all its processes

    def watch(self, trace: Trace) -> None:
        """Subscribe to what this checker needs."""
        trace.subscribe(Started, self.on_started)
        trace.subscribe(Crashed, self.on_crashed)
        trace.subscribe(Viewed, self.on_viewed)

    def on_started(self, event: Started) -> None:
        """A process begins without any configuration; a lost disk also loses the order of ids."""
        self.processes[event.who] = _Process()
        if not event.kept:
            self._highest.pop(event.who.node, None)

    def on_crashed(self, event: Crashed) -> None:
        """A dead process has no configuration."""
        self.processes.pop(event.who, None)

    def on_viewed(self, event: Viewed) -> None:
        """Judge one configuration change of one process."""
        who, view = event.who, event.view
        process = self.processes.get(who)
        if process is None:
            raise Violation("EVS-E3", f"{_p(who)} is given {_v(view)} while it does not run")
        if who not in view.members:
            raise Violation("EVS-E5", f"{_p(who)} is given {_v(view)} without itself in it")
        self._check_identity(who, view)
        highest = self._highest.get(who.node, NO_RING)
        if view.id <= highest:
            raise Violation("EVS-E7", f"{_p(who)} is given {_v(view)} after configuration {highest}: ids must grow")
        previous = process.regular.id if process.regular else NO_RING
        if view.previous != previous:
            raise Violation(
                "EVS-E9",
                f"{_p(who)} is given {_v(view)} with previous {view.previous}, but comes from {previous}",
            )
        if view.transitional:
            self._transitional_view(who, process, view)
        else:
            self._regular_view(who, process, view)
            self._highest[who.node] = view.id

    def _check_identity(self, who: Member, view: View) -> None:
        """E6 and QUO-Q2: an id stands for one member list and one verdict, wherever it is seen."""
        known = self.configurations.get(view.id)
        if known is None:
            members = () if view.transitional else view.members
            self.configurations[view.id] = _Configuration(who, members, view.primary)
            return
        if known.primary != view.primary:
            raise Violation(
                "QUO-Q2",
                f"{_p(who)} sees {view.id} with primary={view.primary}, {_p(known.first)} saw "
                f"primary={known.primary}",
            )
        if view.transitional:
            return
        if not known.members:
            known.members, known.first = view.members, who
        elif known.members != view.members:
            raise Violation(
                "EVS-E6",
                f"id {view.id} means {_m(view.members)} to {_p(who)} and {_m(known.members)} to {_p(known.first)}",
            )

    def _transitional_view(self, who: Member, process: _Process, view: View) -> None:
        """E9: those that come from the same old ring into the same new one, told alike to all of them."""
        if process.transitional is not None:
            raise Violation("EVS-E8", f"{_p(who)} is given two transitional views in a row: {_v(view)}")
        if process.regular is None:
            if view.members != (who,):
                raise Violation("EVS-E9", f"{_p(who)} has just started, yet {_v(view)} has company")
        else:
            strangers = [m for m in view.members if m not in process.regular.members]
            if strangers:
                raise Violation(
                    "EVS-E9",
                    f"{_p(who)}: {_v(view)} holds {_m(strangers)} who were not in {_v(process.regular)}",
                )
            key = (process.regular.id, view.id)
            first, members = self._transitional.setdefault(key, (who, view.members))
            if members != view.members:
                raise Violation(
                    "EVS-E9",
                    f"from {key[0]} to {key[1]}: {_p(who)} has transitional {_m(view.members)}, "
                    f"{_p(first)} had {_m(members)}",
                )
        process.transitional = view

    def _regular_view(self, who: Member, process: _Process, view: View) -> None:
        """E8..E11 at the end of a change."""
        together = process.transitional
        if together is not None and together.id != view.id:
            raise Violation("EVS-E8", f"{_p(who)} is given {_v(view)} after a transitional view of {together.id}")
        if together is None and process.regular is not None:
            raise Violation(
                "EVS-E8", f"{_p(who)} goes from {process.regular.id} to {_v(view)} with no transitional view"
            )
        stayed = together.members if together is not None else (who,)
        missing = [m for m in stayed if m not in view.members]
        if missing:
            raise Violation("EVS-E9", f"{_p(who)}: {_m(missing)} of {_v(together or view)} not in {_v(view)}")
        self._check_deltas(who, process, view, stayed)
        self._check_entries(who, process, view)
        self._check_past(who, process, view, stayed)
        process.regular, process.transitional = view, None

    @staticmethod
    def _check_deltas(who: Member, process: _Process, view: View, stayed: tuple[Member, ...]) -> None:
        """E11: left = old - transitional, joined = new - transitional."""
        old = process.regular.members if process.regular else ()
        left = tuple(m for m in old if m not in stayed)
        joined = tuple(m for m in view.members if m not in stayed)
        if tuple(view.left) != left:
            raise Violation("EVS-E11", f"{_p(who)}: {_v(view)} says left={_m(view.left)}, not {_m(left)}")
        if tuple(view.joined) != joined:
            raise Violation("EVS-E11", f"{_p(who)}: {_v(view)} says joined={_m(view.joined)}, not {_m(joined)}")

    def _check_entries(self, who: Member, process: _Process, view: View) -> None:
        """E8 and pitfalls K1: what the members announced is part of the view and the same for all."""
        known = self.configurations[view.id]
        announced = {node: view.entries[node] for node in sorted(view.entries)}
        if tuple(announced) != view.nodes:
            raise Violation("EVS-E8", f"{_p(who)}: {_v(view)} has entries of {sorted(announced)}")
        if known.entries is None:
            known.entries = announced
        elif known.entries != announced:
            raise Violation("EVS-E8", f"{_p(who)} and {_p(known.first)} have different entries in {_v(view)}")
        mine = announced[who.node]
        previous = process.regular.id if process.regular else NO_RING
        if mine.member != who or mine.old_ring != previous:
            raise Violation(
                "EVS-E9",
                f"{_p(who)}: its entry in {_v(view)} says {_p(mine.member)} from {mine.old_ring}, "
                f"but it comes from {previous}",
            )

    def _check_past(self, who: Member, process: _Process, view: View, stayed: tuple[Member, ...]) -> None:
        """E9 and E10: same past, same transitional set; different past, disjoint ones."""
        known = self.configurations[view.id]
        previous = process.regular.id if process.regular else NO_RING
        for other, (its_past, its_stayed) in known.came_from.items():
            same = its_past == previous and previous != NO_RING
            if same != (other in stayed) or same != (who in its_stayed):
                raise Violation(
                    "EVS-E10",
                    f"into {view.id}: {_p(who)} from {previous} with transitional {_m(stayed)}, but "
                    f"{_p(other)} came from {its_past}",
                )
        known.came_from[who] = (previous, stayed)


def _p(who: Member) -> str:
    return f"node {who.node}#{who.incarnation}"


def _m(members: tuple[Member, ...] | list[Member]) -> str:
    return "{" + ",".join(f"{m.node}#{m.incarnation}" for m in members) + "}"


def _v(view: View) -> str:
    return f"{'transitional' if view.transitional else 'view'} {view.id} {_m(view.members)}"
