"""What a view does to this node: its state goes on, is behind, or is worth nothing; or all is frozen (K3, K4, K9).

``dlm.recovery`` says whose state goes on and what becomes of the table; here is what else changes with it: the
messages that were held back, the node's life and handles, its lease and the horizon, and who sends what to whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlm.catchup import Catcher, Lender, Loan
from dlm.messages import Message
from dlm.recovery import Chosen, Held, Recovered, announcements, choose, empty_view, primary_view
from dlm.table import Table
from dlm.transfer import Donor, Joiner
from vsync.types import NO_RING, Member, View

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["HeldBack", "catch_up", "enter_frozen", "enter_primary"]

HeldBack = list[tuple[bool, Member, Message]]  #: (after the transitional view?, origin, message)


def enter_primary(service: DlmService, old: View | None, view: View, held: HeldBack, now: int) -> None:
    """The chosen state goes on, here or elsewhere; ``dlm.recovery`` says what that does to the table."""
    service.reforming = False
    chosen, said = choose(view), announcements(view)
    mine = service.primary.id if service.primary is not None else NO_RING
    applied = service.table.applied if old is not None and service.table.ring == old.id else 0
    clean = _clean(service)
    if service.me.node in chosen.full:
        clean = _go_on(service, old, view, chosen, held)
    elif service.me.node in chosen.behind:
        _fall_behind(service, view)
    else:
        _begin_anew(service, view, chosen.full)
        applied = 0  # this life owned nothing before this view
    if old is not None and old.primary:
        service.lease_clock.left_primary(old, view, clean, applied, now)
    service.lease_clock.entered_primary(mine, said, now)
    service.lease_clock.installed(service.host, view, service.catcher is None and not service.leaving_now, now)
    if service.catcher is None:
        service.primary = view
    leads = service.me.node == min(chosen.full or said)
    service.checker.entered(view.id, said, chosen.full or said)
    service.home.clearing.entered(leads)
    service.home.stonith.entered(chosen, {node: word.agents for node, (_, word) in said.items()})
    if said.keys() - chosen.going_on and leads and chosen.full:
        service.donor = Donor(view.id, service.table, now)
    if service.complete and not service.home.linked:
        service.home.link()
    service.prompter.view()
    service.feed()
    going_on, behind = sorted(chosen.going_on), sorted(chosen.behind)
    service.host.event("dlm.view", ring=str(view.id), going_on=going_on, behind=behind, state=service.state)


def _go_on(service: DlmService, old: View | None, view: View, chosen: Chosen, held: HeldBack) -> frozenset[Member]:
    """This node's state is the chosen one. Returns who said goodbye before this view."""
    straight = old is not None and service.table.ring == old.id
    kept = [each for each in held if straight and each[2].serial]  # the others were for the old view
    prefix = [(origin, message) for after, origin, message in kept if not after]
    rest = [(origin, message) for after, origin, message in kept if after]
    if service.me.node != chosen.lender:
        return _carry(service, view, chosen, prefix, rest).clean
    said = announcements(view)
    furthest = max(service.kept.base, min(said[node][1].applied for node in chosen.behind))
    missed = service.kept.since(furthest)
    done = _carry(service, view, chosen, prefix, rest)
    missed += done.applied[: done.before]
    service.lender = Lender(view.id, furthest, missed, done.applied[done.before :])
    return done.clean


def _carry(service: DlmService, view: View, chosen: Chosen, prefix: list[Held], rest: list[Held]) -> Recovered:
    """The table goes into the view."""
    service.taps.view(view, chosen.going_on, prefix, rest)
    done = primary_view(service.table, view, chosen.going_on, prefix, rest)
    service.kept.begin(service.table.applied)
    service.home.settled.whole(service.table.applied)
    for origin, message in done.applied:
        if origin == service.me:
            service.home.outbox.applied(message.serial)
    service.tidy()
    service.home.resume()
    service.home.outcomes(done.effects)
    for origin, message in done.applied:
        if origin == service.me:
            service.look_after(message)
    return done


def _fall_behind(service: DlmService, view: View) -> None:
    """This node has a prefix of what goes on: as if it were still away, until it has the rest (K4)."""
    service.home.freeze()
    service.kept.stop()
    service.catcher = Catcher(view.id, service.table.applied)


def catch_up(service: DlmService, view: View, catcher: Catcher, loan: Loan) -> None:
    """All that was missed, then the view, then what was ordered since."""
    now = service.home.now
    service.catcher, service.primary, service.home.holding = None, view, True
    before, after = loan
    _carry(service, view, choose(view), before, after)
    for position, origin, message in catcher.log:
        service.ordered(origin, message, position)
    service.lease_clock.admitted(service.host, not service.leaving_now, now)
    service.prompter.view()
    service.feed()
    service.host.event("dlm.caught_up", applied=service.table.applied, names=len(service.table.names))


def _begin_anew(service: DlmService, view: View, full: frozenset[int]) -> None:
    """Another state goes on, or none: a new life, with a table from the others or an empty one."""
    service.taps.over("the node has begun a new life")
    table = Table(service.me.node) if full else empty_view(service.me.node, view)
    table.now = service.home.now
    table.history.resize(service.config.history)
    service.home.new_life(view.id, table, "evicted")
    service.home.frozen = False
    service.complete = not full
    service.joiner = Joiner(view.id, service.me.node, service.home.now) if full else None
    service.kept.begin(table.applied)
    service.home.settled.whole(table.applied)


def enter_frozen(service: DlmService, old: View | None, view: View, held: HeldBack, now: int) -> None:
    """Not primary: the recovered rest of the prefix counts, nothing else; nobody is answered (K3, K9)."""
    service.home.freeze()
    service.checker.left()
    service.home.clearing.left()
    service.kept.stop()
    current = old is not None and service.table.ring == old.id
    applied = service.table.applied if current else 0
    if service.complete and current:
        for after, origin, message in held:
            if not after and message.serial:
                service.ordered(origin, message, 0)
    if old is not None and old.primary:
        service.lease_clock.left_primary(old, view, _clean(service), applied, now)
    service.lease_clock.installed(service.host, view, False, now)
    service.home.holding = False


def _clean(service: DlmService) -> frozenset[Member]:
    lives = service.table.lives.values()
    return frozenset(Member(life.node, life.incarnation) for life in lives if life.gone)
