"""The lock manager as a service of the ring: messages and views in, answers out (design §5, pitfalls §0).

What arrives here is one ordered sequence; this module decides only *which part of it counts*:

* regular deliveries in a primary view are applied at once;
* deliveries during an installation are held back until the regular view's verdict (K3, K9);
* a view that is primary carries the chosen state on, everybody else begins a new life and joins (K4, K15);
* a view that is not primary freezes everything but the recovered rest of the old ring's prefix.

The rules themselves are in ``dlm.table`` (what a message does), ``dlm.recovery`` (what a view does),
``dlm.verbs`` (what a client may ask), ``dlm.home`` (its handles), ``dlm.telling`` (what it is told) and
``dlm.lease`` (when).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgpack

from dlm import verbs
from dlm.checks import Checker
from dlm.handle import Session
from dlm.home import Home
from dlm.lease import Lease
from dlm.messages import TAG, Kind, Message, decode, keys_of
from dlm.names import Form
from dlm.recording import Taps
from dlm.recovery import Announcement, announcements, as_if_installed, empty_view, primary_view, survivors
from dlm.table import Table
from dlm.transfer import DamagedState, Donor, Joiner
from dlm.upkeep import Upkeep
from vsync.errors import Backpressure
from vsync.service import Credentials, Host
from vsync.types import NO_RING, ClusterConfig, Member, View

__all__ = ["DlmService"]

MAX_PROGRAM = 40  #: characters of a client's name that are kept with its locks
TRANSFERS = 3  #: that may come damaged in a row; then the next view must bring a better one
NUMBERS_LIMIT = 1 << 31  #: the ring re-forms long before the 32 bits of a view's fence numbers run out (B4)

HeldBack = list[tuple[bool, Member, Message]]  #: (after the transitional view?, origin, message)


class DlmService:
    """The ``dlm`` service of one node. Pure; see ``vsync.service.Service`` for who calls what when."""

    name = "dlm"
    tag = TAG

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self._view: View | None = None
        self._primary: View | None = None  #: the last primary view this node was in
        self._held: HeldBack = []  #: delivered during an installation (K3)
        self._joiner: Joiner | None = None
        self._donor: Donor | None = None
        self._complete = False
        self._damaged = 0  #: transfers in a row
        self.leaving_now = False  #: no new locks, and soon a goodbye
        self._goodbye_due = False  #: the handles have ended, the goodbye is still to be said
        self._reforming = False
        self._swept = 0  #: when the deferred answers were last looked at ..
        self._had_lease = False  #: .. and whether there was a lease then

    # -- the service interface -------------------------------------------------------------------------------

    def attach(self, host: Host, now: int) -> None:
        """Called once, before anything else."""
        self.host = host
        self._me = host.me
        self.lease_clock = Lease(self.config.timing.lease)
        self.home = Home(host, self.lease_clock)
        self.upkeep = Upkeep(self.home)
        self.checker = Checker(host)
        self.taps = Taps(self)
        self.table.history.resize(self.config.history)
        self.home.now = now

    def announce(self, attempts: Sequence[View] = ()) -> bytes:
        """This node's lock state for its commit-token entry: as of now (K1, K2), or after these attempts (K7)."""
        self.lease_clock.announced()
        table = self.table
        members: tuple[Member, ...] = ()
        if self._complete and self._primary is not None:
            gone = {node for node, life in table.lives.items() if life.gone}
            members = tuple(member for member in self._primary.members if member.node not in gone)
        said = Announcement(
            ring=table.ring if self._complete else NO_RING,
            applied=table.applied,
            complete=self._complete,
            life=self.home.outbox.ring,
            waiting=self.home.now < self.lease_clock.horizon,
            members=members,
        )
        for view in attempts:
            said = as_if_installed(said, view, self._me.node)
        return said.encode()

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        """An ordered message: now, or held back, or of no account."""
        self._at(now)
        try:
            message = decode(payload)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            self.host.event("dlm.garbage", origin=origin.node)
            return
        if installing:
            self._held.append((self.home.holding, origin, message))
        elif self._view is not None and self._view.primary:
            self._ordered(origin, message)

    def view(self, view: View, now: int) -> None:
        """A transitional or regular view, in its place in the sequence."""
        self._at(now)
        if view.transitional:
            self.home.holding = True
            return
        held, self._held = self._held, []
        self.home.holding = True  # what the view decides is told after the horizon is known
        old, self._view = self._view, view
        self._donor = None
        self._joiner = None
        if view.primary:
            self._enter_primary(old, view, held, now)
        else:
            self._enter_frozen(old, view, held, now)

    def open(self, session: int, who: Credentials, now: int) -> None:
        """A local client connected."""
        self._at(now)
        self.home.sessions[session] = Session(replace(who, name=who.name[:MAX_PROGRAM]))

    def close(self, session: int, now: int) -> None:
        """A local client has gone."""
        self._at(now)
        self.taps.end(session)
        self.home.close(session)

    def request(self, session: int, rid: int, verb: str, args: Mapping[str, Any], now: int) -> None:
        """A local client's request; see ``dlm.verbs``."""
        self._at(now)
        verbs.handle(self, session, rid, verb, args)

    def token(self, now: int) -> None:
        """The node has accepted a token: the lease may have moved, the send queue may have room."""
        self._at(now)
        self._say_goodbye()
        self.lease_clock.on_token(self.host, now)
        self.home.flush()
        self.checker.flush()
        self._feed_joiners()
        self._sweep(now)

    def fire(self, now: int) -> None:
        """Time has passed: answers at the horizon, time-outs, yields, give-backs."""
        self._at(now)
        self._say_goodbye()
        self.lease_clock.renew(self.host, now)
        self._sweep(now)
        if not self.home.holding:
            self.home.run_timers()
        if self.home.open and not self.home.holding:
            self.upkeep.run(now)

    def next_deadline(self) -> int | None:
        """When ``fire`` wants to be called."""
        home = self.home
        if self._goodbye_due and home.open:
            return home.now
        acting = home.open and not home.holding
        waiting = acting and bool(home.teller.deferred) and self._swept < self.lease_clock.horizon
        times = [self.lease_clock.next_deadline(waiting)]
        if not home.holding:
            times.append(home.timers.next_deadline())
        if acting:
            times.append(self.upkeep.next_deadline())
        return min((time for time in times if time is not None), default=None)

    def leaving(self, now: int) -> None:
        """End all handles, then say goodbye in the ordered stream (D10).

        The goodbye is not submitted here but at the next event: the shell writes the sessions' pages after this
        one, and a handle has ended only when its page says so.
        """
        self._at(now)
        self.leaving_now = self._goodbye_due = True
        self.home.lose_all("leaving")
        self.lease_clock.running = False

    def may_leave(self) -> bool:
        """Whether the goodbye is delivered, or there is nobody to say it to."""
        life = self.table.lives.get(self._me.node)
        if not self.home.open or life is None or life.gone:
            return True
        return not self._goodbye_due and not len(self.home.outbox)

    def lease(self, session: int) -> tuple[int, int]:
        """(generation, deadline µs) for the session's page: its handles are valid before it."""
        return self.lease_clock.generation, self.lease_clock.deadline

    def status(self) -> dict[str, Any]:
        """A snapshot for people and programs."""
        table, home = self.table, self.home
        forms = [name.form for name in table.names.values()]
        return {
            "state": self._state(),
            "ring": str(table.ring),
            "applied": table.applied,
            "names": len(forms),
            "private": forms.count(Form.PRIVATE),
            "shared": forms.count(Form.SHARED),
            "handover": forms.count(Form.HANDOVER),
            "spaces": len(table.spaces.by_name),
            "handles": sum(len(session.handles) for session in home.sessions.values()),
            "outbox": len(home.outbox),
            "sent": home.outbox.sent,
            "fast": home.fast,
            "ignored": table.ignored,
            "checksum": f"{table.history.rolling.value:08x}",
            "checked": self.checker.checked,
            "diverged": self.checker.found,
            "deadlock_searches": table.waits.searches,
            "deadlocks": table.waits.found,
            "lost": home.teller.lost,
            "deferred": len(home.teller.deferred),
            "generation": self.lease_clock.generation,
            "lease_left_ms": max(0, self.lease_clock.deadline - home.now) // 1000,
            "grants_wait_ms": max(0, self.lease_clock.horizon - home.now) // 1000,
        }

    # -- for tests and the simulator -------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """The lock table as of the last event."""
        return self.home.table

    @property
    def complete(self) -> bool:
        """Whether the table is a full copy (not a joiner's, not a fresh node's)."""
        return self._complete

    def _say_goodbye(self) -> None:
        if self._goodbye_due and self.home.open:
            self._goodbye_due = False
            self.home.send(Kind.GOODBYE, ())

    def _sweep(self, now: int) -> None:
        """Give the answers that time, or a new lease, has made possible; otherwise this costs nothing."""
        had_lease, self._had_lease = self._had_lease, self.lease_clock.valid(now)
        self._swept = now
        if not self.home.teller.deferred or not self.home.open or self.home.holding:
            return
        if now >= self.lease_clock.horizon or (self._had_lease and not had_lease):
            self.home.teller.tell_deferred()

    # -- the ordered stream ----------------------------------------------------------------------------------

    def _at(self, now: int) -> None:
        self.home.now = self.home.table.now = now

    def _ordered(self, origin: Member, message: Message) -> None:
        """A message that counts now."""
        if message.kind == Kind.CHUNK:
            self._on_chunk(message)
        elif message.kind in (Kind.CHECK, Kind.VOTE):
            if self.checker.deliver(origin, message, self.table if self._complete else None):
                self._diverged()
        elif self._joiner is not None:
            self._joiner.log(origin, message)
        elif self._complete:
            if self.taps:
                self.taps.message(origin, message)
            effects = self.table.apply(origin, message)
            if effects is None:
                return
            if self.taps:
                self.taps.mark(self.table)
            self.checker.applied(self.table)
            own = origin == self._me
            if own:
                self.home.outbox.applied(message.serial)
            if effects:
                self.home.outcomes(effects)
            if own:
                self._look_after(message)
            if self.table.numbers > NUMBERS_LIMIT and not self._reforming:
                self._reforming = True
                self.host.reform("fence numbers of this view run out")

    def _diverged(self) -> None:
        """This node's table is not the others': nothing of it is worth anything. A new life, with their table."""
        self._drop_state("diverged")
        self.host.reform("this node's lock table has diverged from the others'")

    def _drop_state(self, reason: str) -> None:
        """No lock state and no life from now on: a view will bring both."""
        self.lease_clock.running = False
        self.taps.over(reason)
        self._donor = self._joiner = None
        self._complete = False
        self.checker.left()
        self.home.new_life(NO_RING, Table(self._me.node), reason)

    def _look_after(self, message: Message) -> None:
        """An own message was applied: a name private to this node may have got waiters, or become idle."""
        for key in keys_of(message):
            name = self.table.names.get(key)
            if name is not None and name.form is Form.PRIVATE and name.resource is not None:
                self.home.look_after(key, name)

    # -- views -----------------------------------------------------------------------------------------------

    def _enter_primary(self, old: View | None, view: View, held: HeldBack, now: int) -> None:
        """The chosen state goes on, here or elsewhere; ``dlm.recovery`` says what that does to the table."""
        self._reforming = False
        going_on = survivors(view)
        said = announcements(view)
        mine = self._primary.id if self._primary is not None else NO_RING
        applied = self.table.applied
        if self._me.node in going_on:
            clean = self._go_on(old, view, going_on, held)
        else:
            clean = self._clean()
            self._begin_anew(view, going_on)
            applied = 0  # this life owned nothing before this view
        if old is not None and old.primary:
            self.lease_clock.left_primary(old, view, clean, applied, now)
        self.lease_clock.entered_primary(mine, said, now)
        self.lease_clock.installed(self.host, view, not self.leaving_now, now)
        self._primary = view
        self.checker.entered(view.id, said, self._me.node == min(going_on or said))
        joining = [node for node in said if node not in going_on]
        if going_on and joining and self._me.node in going_on:
            self._donor = Donor(view.id, self.table.encode(), sending=self._me.node == min(going_on))
        if self._complete and not self.home.linked:
            self.home.link()
        self.home.holding = self._had_lease = False
        self.home.teller.tell_deferred()
        self.home.gate.tell_deferred()
        self._feed_joiners()
        self.host.event("dlm.view", ring=str(view.id), going_on=sorted(going_on), state=self._state())

    def _go_on(self, old: View | None, view: View, going_on: frozenset[int], held: HeldBack) -> frozenset[Member]:
        """This node's state is the chosen one. Returns who said goodbye before this view."""
        straight = old is not None and old.primary
        kept = [each for each in held if straight and each[2].serial]  # the others were for the old view
        prefix = [(origin, message) for after, origin, message in kept if not after]
        rest = [(origin, message) for after, origin, message in kept if after]
        self.taps.view(view, going_on, prefix, rest)
        done = primary_view(self.table, view, going_on, prefix, rest)
        for origin, message in done.applied:
            if origin == self._me:
                self.home.outbox.applied(message.serial)
        self.home.resume()
        self.home.outcomes(done.effects)
        for origin, message in done.applied:
            if origin == self._me:
                self._look_after(message)
        return done.clean

    def _begin_anew(self, view: View, going_on: frozenset[int]) -> None:
        """Another state goes on, or none: a new life, with a table from the others or an empty one."""
        self.taps.over("the node has begun a new life")
        table = Table(self._me.node) if going_on else empty_view(self._me.node, view)
        table.now = self.home.now
        table.history.resize(self.config.history)
        self.home.new_life(view.id, table, "evicted")
        self.home.frozen = False
        self._complete = not going_on
        self._joiner = Joiner(view.id) if going_on else None

    def _enter_frozen(self, old: View | None, view: View, held: HeldBack, now: int) -> None:
        """Not primary: the recovered rest of the prefix counts, nothing else; nobody is answered (K3, K9)."""
        self.home.freeze()
        self.checker.left()
        applied = self.table.applied
        if self._complete and old is not None and old.primary:
            for after, origin, message in held:
                if not after and message.serial:
                    self._ordered(origin, message)
        if old is not None and old.primary:
            self.lease_clock.left_primary(old, view, self._clean(), applied, now)
        self.lease_clock.installed(self.host, view, False, now)
        self.home.holding = False

    def _clean(self) -> frozenset[Member]:
        lives = self.table.lives.values()
        return frozenset(Member(life.node, life.incarnation) for life in lives if life.gone)

    # -- state for joiners (K15) -----------------------------------------------------------------------------

    def _feed_joiners(self) -> None:
        """Send the chunks that are due."""
        donor = self._donor
        if donor is None or self.home.frozen:
            return
        try:
            for chunk in donor.due():
                self.host.submit(chunk)
                donor.was_sent()
        except Backpressure:
            pass  # the next token brings room

    def _on_chunk(self, message: Message) -> None:
        if self._donor is not None:
            self._donor.on_chunk(message)
            if self._donor.done:
                self._donor = None
            else:
                self._feed_joiners()
        elif self._joiner is not None and self._joiner.on_chunk(message):
            try:
                table = self._joiner.finish(self._me.node, self.home.now)
            except DamagedState as damage:
                self._again(str(damage))
                return
            self.home.table, self._joiner, self._complete, self._damaged = table, None, True, 0
            table.history.resize(self.config.history)
            self.home.link()
            self.host.event("dlm.caught_up", applied=self.table.applied, names=len(self.table.names))

    def _again(self, damage: str) -> None:
        """The table has come damaged: another view brings another transfer."""
        self._damaged += 1
        self._drop_state("evicted")
        self.host.event("dlm.transfer_damaged", damage=damage, times=self._damaged)
        if self._damaged <= TRANSFERS:
            self.host.reform("the lock table has come damaged")

    def _state(self) -> str:
        if self._view is None or not self._view.primary:
            return "no quorum"
        return "running" if self._complete else "joining"
