"""Mutation check for locks: would the simulator notice? One deliberate bug for each rule K1–K15, and some more.

    python -m dlm.testing.mutants                   all of them, until each is caught; 1 if one survives
    python -m dlm.testing.mutants horizon K12       those whose name or rule contains a word

See ``vsync.testing.mutants`` for what a mutant is and when it is caught. ``origin``: the rule that is taken away,
and the scenario of ``docs/pitfalls-tests.md`` that tells what happens then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from dlm import entering, lease, recovery, table
from dlm.cache import Cache, Entry
from dlm.catchup import Kept
from dlm.handle import Handle
from dlm.home import Home
from dlm.lease import Lease
from dlm.messages import Kind, Message, Op
from dlm.names import Fences, Form, Name
from dlm.outbox import Outbox
from dlm.recovery import Announcement, Chosen, Held, announcements
from dlm.resource import Effect, Resource
from dlm.service import DlmService
from dlm.table import Composed, Effects, Life, Table
from dlm.telling import Teller
from dlm.testing import stresses
from vsync.testing import mutants
from vsync.testing.hunt import Plugins
from vsync.testing.mutants import Mutant, Replaced, Stress
from vsync.types import NO_RING, Member, View

__all__ = ["MUTANTS", "main"]

# ------------------------------------------------------------ whose state goes on


def _own_word(s: DlmService, old: View | None, view: View, held: Any, now: int) -> None:
    """C6: "I come from a primary view and am in the majority, so I go on"."""
    me, chosen = s.me.node, recovery.choose(view)
    if old is not None and old.primary and s.complete:
        chosen = replace(chosen, full=chosen.full | {me}, behind=chosen.behind - {me})
    with patch.object(entering, "choose", lambda view: chosen):
        _ENTER_PRIMARY(s, old, view, held, now)


def _no_position(said: Announcement) -> bytes:
    return _ENCODE(replace(said, applied=1))


def _shortest(view: View) -> Chosen:
    chosen, said = _CHOOSE(view), announcements(view)
    least = min((said[node][1].applied for node in chosen.behind), default=0)
    shortest = frozenset(node for node in chosen.behind if said[node][1].applied == least)
    return Chosen(shortest) if shortest else chosen


def _nobody_catches_up(view: View) -> Chosen:
    return Chosen(_CHOOSE(view).full)


def _less_is_kept(kept: Kept, applied: int) -> list[Held]:
    return _SINCE(kept, applied)[:-1]


def _purge_who_left(lives: Iterable[Life], view: View, going_on: frozenset[int]) -> list[int]:
    left = {member.node for member in view.left}
    return sorted(life.node for life in lives if life.gone or life.node in left)


def _attempts_unsaid(s: DlmService, attempts: Sequence[View] = ()) -> bytes:
    return _ANNOUNCE(s)


# ------------------------------------------------------------ what is delivered during an installation


def _rest_counts(s: DlmService, old: View | None, view: View, held: Any, now: int) -> None:
    _ENTER_FROZEN(s, old, view, [(False, origin, message) for _, origin, message in held], now)


def _rest_in_old_epoch(t: Table, view: View, going_on: Any, prefix: Any, rest: Any) -> Any:
    return _PRIMARY_VIEW(t, view, going_on, [*prefix, *rest], [])


def _before_the_verdict(teller: Teller, handle: Handle, effect: Effect) -> bool:
    holding, teller._home.holding = teller._home.holding, False
    try:
        return _MAY_TELL(teller, handle, effect)
    finally:
        teller._home.holding = holding


# ------------------------------------------------------------ messages of lives


def _any_serial(t: Table, origin: Member, message: Message) -> Effects | None:
    life = t.lives.get(origin.node)
    if life is not None:
        life.serial = message.serial - 1
    return _APPLY(t, origin, message)


def _former_lives(t: Table, origin: Member, message: Message) -> Effects | None:
    life = t.lives.get(origin.node)
    if life is not None and life.incarnation == origin.incarnation and message.ring < life.ring:
        message = message._replace(ring=life.ring, serial=life.serial + 1)
        life.serial -= 1  # its present messages are counted as before
    return _APPLY(t, origin, message)


# ------------------------------------------------------------ time


def _lease_from_reception(clock: Lease, host: Any, now: int) -> None:
    if clock.running and (clock._alone or host.lease_basis is not None):
        clock.deadline = max(clock.deadline, now + clock._lease)


def _horizon_forgotten(s: DlmService, view: View, now: int) -> None:
    if not view.transitional:
        s.lease_clock.horizon = 0
    _VIEW(s, view, now)


def _all_settled(clock: Lease, old: View, view: View, clean: Any, applied: int, now: int) -> None:
    _LEFT_PRIMARY(clock, old, view, clean, 1 << 60, now)


def _lease_in_any_ring(clock: Lease, host: Any, view: View, current: bool, now: int) -> None:
    _INSTALLED(clock, host, replace(view, primary=True), True, now)


def _no_horizon(clock: Lease, *args: Any) -> None:
    pass


def _same_generation(clock: Lease) -> None:
    clock.deadline = clock.settled = 0


# ------------------------------------------------------------ who may take a mode away


def _goodbye_first(s: DlmService, now: int) -> None:
    s._at(now)
    s.leaving_now = s._goodbye_due = True


def _purged_by_others(t: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    """D7: what the purge is about goes at its delivery, everywhere; its home has not ended it before."""
    for key in sorted(t.names):
        resource = t.names[key].resource
        if t.names[key].form is Form.SHARED and resource is not None and body[0] in resource.homes:
            effects: list[Effect] = []
            resource.purge([body[0]], effects)
            out.extend(effects)
            t.touched[key] = None


def _losses_untold(teller: Teller, handle: Handle, reason: str) -> None:
    with patch.object(teller._host, "push", lambda *said: None):
        _LOSE(teller, handle, reason)


# ------------------------------------------------------------ private names


def _overtaking(home: Home, key: bytes) -> Name | None:
    under_way, home.outbox.under_way = home.outbox.under_way, {}
    try:
        return _OWN_NOW(home, key)
    finally:
        home.outbox.under_way = under_way


def _composed_early(home: Home, kind: Kind, body: tuple[Any, ...], keys: Iterable[bytes] = ()) -> None:
    if kind is Kind.YIELD:
        resource = home.table.local(body[0])
        if resource is not None:
            _EARLY.setdefault(home, {})[body[0], body[1]] = resource.encode()
    _SEND(home, kind, body, keys)


def _published_as_composed(home: Home, effects: Effects) -> None:
    early = _EARLY.get(home, {})
    for index, effect in enumerate(effects):
        if isinstance(effect, Composed):
            effects[index] = effect._replace(contents=early.get((effect.key, effect.epoch), effect.contents))
    _OUTCOMES(home, effects)


def _gone_in_handover(t: Table, key: bytes, op: Op, out: Effects) -> None:
    name = t.names.get(key)
    if op.kind != Kind.END or name is None or name.form is not Form.HANDOVER:
        _OPERATE(t, key, op, out)


def _given_back_anyway(t: Table, life: Life, body: tuple[Any, ...], out: Effects) -> None:
    for key, _ in body[0]:
        if key in t.names:
            t.free(key)


# ------------------------------------------------------------ fences


def _counter_of_the_name(t: Table, name: Name) -> None:
    t.numbers = 0
    _RESERVE(t, name)


def _range_of_the_node(t: Table, key: bytes, node: int, resource: Resource | None = None) -> Name:
    name = _OWN(t, key, node, resource)
    if name.fences is not None and name.resource is not None:
        ranges = _RANGES.setdefault(t, {})
        name.fences = ranges.setdefault(key, name.fences)
        name.resource.mint = name.fences.take
    return name


def _block_uncounted(self: Any, count: int) -> int:
    return count


# ------------------------------------------------------------ kept locks


def _taken_in_any_lease(cache: Cache, entry: Entry, user: int, lease: tuple[int, int], now: int) -> bool:
    return _TAKE(cache, entry, user, (entry.generation, now + 1), now)


def _released_and_kept(cache: Cache, serial: int) -> str:
    entry = cache.entries.get(serial)
    return "idle" if entry is not None and not entry.user else _CALL(cache, serial)


# ------------------------------------------------------------ joining


def _half_a_table(s: DlmService, view: View, full: frozenset[int]) -> None:
    _BEGIN_ANEW(s, view, frozenset())


_EARLY: WeakKeyDictionary[Home, dict[tuple[bytes, int], tuple[Any, ...]]] = WeakKeyDictionary()
_RANGES: WeakKeyDictionary[Table, dict[bytes, Fences]] = WeakKeyDictionary()

_ENTER_PRIMARY, _ENTER_FROZEN, _BEGIN_ANEW = entering.enter_primary, entering.enter_frozen, entering._begin_anew
_ANNOUNCE, _VIEW = DlmService.announce, DlmService.view
_CHOOSE, _ENCODE, _PRIMARY_VIEW, _SINCE = recovery.choose, Announcement.encode, recovery.primary_view, Kept.since
_APPLY, _OPERATE, _RESERVE, _OWN = Table.apply, Table.operate, Table.reserve, Table.own
_TAKE, _CALL = Cache.take, Cache.call
_MAY_TELL, _LOSE = Teller.may_tell, Teller.lose
_LEFT_PRIMARY, _INSTALLED = Lease.left_primary, Lease.installed
_OWN_NOW, _SEND, _OUTCOMES = Home.own_now, Home.send, Home.outcomes


def _mutant(
    name: str, origin: str, *replacements: Replaced, seed: int, stress: Stress, clients: Plugins = stresses.busy
) -> Mutant:
    return Mutant(name, origin, replacements, seed, stress, clients)


MUTANTS = (
    _mutant("a node that comes from a primary view goes on with its own state", "K1, C6",
        (entering, "enter_primary", _own_word), seed=1, stress=stresses.AWAY),
    _mutant("a state is named by its view alone", "K2, C1",
        (Announcement, "encode", _no_position), seed=1, stress=stresses.PARTS_5),
    _mutant("what follows a hole counts in a minority, too", "K3, C2",
        (entering, "enter_frozen", _rest_counts), seed=2, stress=stresses.CALM_5, clients=stresses.unheard),
    _mutant("what was held back counts in the epoch of the old view", "K3, B3",
        (entering, "primary_view", _rest_in_old_epoch),
        seed=243, stress=stresses.CALM, clients=stresses.unheard_at_rest),
    _mutant("the shortest prefix goes on", "K4, C1",
        (entering, "choose", _shortest), (recovery, "choose", _shortest), seed=1, stress=stresses.PARTS_5),
    _mutant("who is behind begins anew", "K4, C12",
        (entering, "choose", _nobody_catches_up), (recovery, "choose", _nobody_catches_up),
        seed=1, stress=stresses.PARTS_5),
    _mutant("the last of what others miss is not kept", "K4",
        (Kept, "since", _less_is_kept), seed=1, stress=stresses.PARTS_5),
    _mutant("purged is who has left the view", "K5, C4",
        (recovery, "_ended", _purge_who_left), seed=9, stress=stresses.RESTARTS),
    _mutant("any serial counts", "K6", (Table, "apply", _any_serial), seed=1, stress=stresses.AWAY),
    _mutant("messages of former lives count", "K6, C10",
        (Table, "apply", _former_lives), seed=1, stress=stresses.AWAY),
    _mutant("what a view has dropped is not sent again", "K6",
        (Outbox, "rewind", lambda outbox: None), seed=1, stress=stresses.AWAY),
    _mutant("the state after an attempt is not announced", "K7",
        (DlmService, "announce", _attempts_unsaid), seed=1, stress=stresses.RESTARTS),
    _mutant("a state that has been overtaken goes on", "K8, C5",
        (recovery, "newest_mark", lambda entries: NO_RING),
        seed=4, stress=stresses.RESTARTS, clients=stresses.holding),
    _mutant("answers are given before the verdict", "K9",
        (Teller, "may_tell", _before_the_verdict), seed=1, stress=stresses.CALM_5, clients=stresses.unheard),
    _mutant("a lease counts from the reception of the token", "K10, D2",
        (Lease, "renew", _lease_from_reception), seed=17, stress=stresses.SLOW_TOKEN, clients=stresses.holding),
    _mutant("nobody waits for leases of those who have vanished", "K10, D1",
        (Lease, "_wait", _no_horizon), seed=1, stress=stresses.DEATHS, clients=stresses.holding),
    _mutant("the horizon is forgotten at the next view", "K10, D3",
        (DlmService, "view", _horizon_forgotten), seed=1, stress=stresses.DEATHS, clients=stresses.holding),
    _mutant("who begins anew waits for nobody's leases", "K10, D3",
        (Lease, "entered_primary", _no_horizon), seed=1, stress=stresses.DEATHS, clients=stresses.holding),
    _mutant("private names of any age need not wait", "K10, D1",
        (Lease, "left_primary", _all_settled), seed=7, stress=stresses.CALM, clients=stresses.claiming),
    _mutant("the horizon does not mind drifting clocks", "K10, D3",
        (lease, "stretched", lambda duration: duration), seed=11, stress=stresses.DRIFT, clients=stresses.holding),
    _mutant("a lease in a minority's ring", "K10, D5",
        (Lease, "installed", _lease_in_any_ring), seed=1, stress=stresses.CUT_OFF, clients=stresses.holding),
    _mutant("a new life has the old generation", "D9",
        (Lease, "new_generation", _same_generation),
        seed=1, stress=stresses.AWAY, clients=stresses.reading_late),
    _mutant("the goodbye comes before the handles end", "K11, D10",
        (DlmService, "leaving", _goodbye_first), seed=1, stress=stresses.LEAVES),
    _mutant("a purge takes what is held, at its delivery", "K11, D7",
        (table, "_HANDLERS", {**table._HANDLERS, Kind.PURGE: _purged_by_others}),
        seed=1, stress=stresses.LEAVES, clients=stresses.flagged),
    _mutant("an owner overtakes its own messages", "K12, A1",
        (Home, "own_now", _overtaking), seed=6, stress=stresses.PAUSES, clients=stresses.sharing),
    _mutant("a publication is composed when the name is yielded", "K13, A3",
        (Home, "send", _composed_early), (Home, "outcomes", _published_as_composed),
        seed=35, stress=stresses.BLIPS_FAR, clients=stresses.queueing),
    _mutant("who goes while a name changes hands stays in its queue", "K13, A4",
        (Table, "operate", _gone_in_handover), seed=2, stress=stresses.PAUSES, clients=stresses.ending),
    _mutant("a name is given back whoever owns it by then", "A2",
        (table, "_HANDLERS", {**table._HANDLERS, Kind.GIVE_BACK: _given_back_anyway}),
        seed=4, stress=stresses.PAUSES, clients=stresses.claiming),
    _mutant("a name has its own fence counter", "K14, B1",
        (Table, "reserve", _counter_of_the_name), seed=1, stress=stresses.CALM, clients=stresses.visiting),
    _mutant("a node has its own range of fences", "K14, B2",
        (Table, "own", _range_of_the_node), seed=1, stress=stresses.PAUSES, clients=stresses.ending),
    _mutant("a block of fences is taken from nobody's counter", "K14",
        (Table, "_more", _block_uncounted), (Fences, "more", _block_uncounted),
        seed=1, stress=stresses.CALM, clients=stresses.keeping),
    _mutant("a kept lock is taken again whatever its lease says", "D9, K10",
        (Cache, "take", _taken_in_any_lease), seed=7, stress=stresses.AWAY, clients=stresses.keeping_late),
    _mutant("a kept lock that is called back may still be taken", "K11",
        (Cache, "call", _released_and_kept), seed=1, stress=stresses.CALM, clients=stresses.keeping),
    _mutant("a joiner works with a table that is not whole", "K15, C13",
        (entering, "_begin_anew", _half_a_table), seed=1, stress=stresses.DEATHS),
    _mutant("losses are not told", "C12",
        (Teller, "lose", _losses_untold), seed=1, stress=stresses.AWAY, clients=stresses.holding),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 if every mutant was caught."""
    return mutants.main(argv, MUTANTS, "python -m dlm.testing.mutants")


if __name__ == "__main__":
    sys.exit(main())
