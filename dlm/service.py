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

from dlm import looking, verbs, work
from dlm.agents import agents_of
from dlm.catchup import Catcher, Kept, Lender, Loan
from dlm.checks import Checker
from dlm.clearing import Clearing
from dlm.handle import Session
from dlm.home import Home
from dlm.lease import Lease
from dlm.messages import TAG, Kind, Message, decode, keys_of
from dlm.names import Form
from dlm.options import Configured
from dlm.prompter import Prompter
from dlm.recording import Taps
from dlm.recovery import (
    NOTHING,
    Announcement,
    Chosen,
    Held,
    Recovered,
    announcements,
    as_if_installed,
    choose,
    empty_view,
    primary_view,
)  # fmt: skip
from dlm.snapshot import Damage
from dlm.stonith import Stonith
from dlm.table import Table
from dlm.timers import Timers
from dlm.transfer import Donor, Joiner
from dlm.upkeep import Upkeep
from vsync.errors import Backpressure
from vsync.service import Credentials, Host
from vsync.types import NO_RING, ClusterConfig, Member, View

__all__ = ["DlmService"]

MAX_PROGRAM = 40  #: characters of a client's name that are kept with its locks
TRANSFERS = 3  #: that may come damaged in a row; then the next view must bring a better one
NUMBERS_LIMIT = 1 << 31  #: the ring re-forms long before the 32 bits of a view's fence numbers run out (B4)

_Timed = Timers | Upkeep | Clearing | Stonith | Donor
HeldBack = list[tuple[bool, Member, Message]]  #: (after the transitional view?, origin, message)


class DlmService:
    """The ``dlm`` service of one node. Pure; see ``vsync.service.Service`` for who calls what when."""

    name = "dlm"
    tag = TAG

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.configured = Configured(config)
        self._agents = agents_of(config)
        self._view: View | None = None
        self._primary: View | None = None  #: the last primary view this node was in
        self._held: HeldBack = []  #: delivered during an installation (K3)
        self._joiner: Joiner | None = None
        self._donor: Donor | None = None
        self._lender: Lender | None = None
        self._catcher: Catcher | None = None  #: this node's state is a prefix of the one that goes on (K4)
        self._kept = Kept()
        self._complete = False
        self._damaged = 0  #: transfers in a row
        self.leaving_now = False  #: no new locks, and soon a goodbye
        self._goodbye_due = False  #: the handles have ended, the goodbye is still to be said
        self._reforming = False
        self._left = work.TURN  #: of what may be done in this turn

    # -- the service interface -------------------------------------------------------------------------------

    def attach(self, host: Host, now: int) -> None:
        """Called once, before anything else."""
        self.host = host
        self._me = host.me
        self.lease_clock = Lease(self.config.timing.lease)
        self.home = Home(host, self.lease_clock, self._agents)
        self.prompter = Prompter(self.home)
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
            kept=self._kept.offer if self._complete else NOTHING,
            options=self.configured.options("default"),
            split=not self.config.quorum.excludes,
            nodes=tuple(peer.node for peer in self.host.config.peers),
            agents=tuple(sorted(self._agents)),
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
            self._ordered(origin, message, position)

    def view(self, view: View, now: int) -> None:
        """A transitional or regular view, in its place in the sequence."""
        self._at(now)
        if view.transitional:
            self.home.holding = True
            return
        held, self._held = self._held, []
        self.home.holding = True  # what the view decides is told after the horizon is known
        old, self._view = self._view, view
        self._end_transfers()
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
        self.taps.close(session)
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
        self._kept.trim(self.host.stable)
        self._feed(made=True)  # the token waits
        self.prompter.token(self.host.stable, now)

    def fire(self, now: int) -> None:
        """Time has passed: answers at the horizon, time-outs, yields, give-backs."""
        self._at(now)
        self._left = work.TURN
        if self.home.closings:
            self._left = self.home.closings.run(self._left)
        self._tidy()
        self._replay()
        if self.taps.chores and self._left > 0:
            self._left = self.taps.chores.run(self._left)
        self._say_goodbye()
        self.lease_clock.renew(self.host, now)
        self.prompter.sweep(now)
        if self._donor is not None:
            self._donor.refill(now)
        self._feed()
        if not self.home.holding:
            self.home.run_timers()
        if self.home.open and not self.home.holding:
            self.upkeep.run(now)

    def next_deadline(self) -> int | None:
        """When ``fire`` wants to be called."""
        home = self.home
        joining = self._joiner is not None and self._joiner.busy
        working = self.table.overdue or home.closings or self.taps.chores or joining
        if working or (self._goodbye_due and home.open):
            return home.now
        timed: tuple[_Timed, ...] = ()
        if not home.holding:
            timed = (home.timers, self.upkeep, home.clearing, home.stonith) if home.open else (home.timers,)
        if self._donor is not None and self._lender is None and not home.frozen:  # what is lent goes first
            timed = (*timed, self._donor)
        first = self.lease_clock.next_deadline(self.prompter.waiting)
        for each in timed:  # asked after every input, and mostly there is nothing: no list, no min()
            time = each.next_deadline()
            if time is not None and (first is None or time < first):
                first = time
        return first

    def spawned(self, ticket: int, exit_code: int | None, output: bytes, now: int) -> None:
        """A fence agent has ended."""
        self._at(now)
        self.home.stonith.spawned(ticket, exit_code, output)

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
        return looking.status(self)

    @property
    def state(self) -> str:
        """What this node is to the others, in a word or two."""
        if self._view is None or not self._view.primary:
            return "no quorum"
        if self._catcher is not None:
            return "catching up"
        return "running" if self._complete else "joining"

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

    # -- the ordered stream ----------------------------------------------------------------------------------

    def _at(self, now: int) -> None:
        if now != self.home.now:
            self._left = work.TURN
        self.home.now = self.home.table.now = now

    def _tidy(self) -> None:
        """Some of what an event has left to be done."""
        if self.table.overdue and self._left > 0:
            self._left = self.table.tidy(self._left)

    def _ordered(self, origin: Member, message: Message, position: int) -> None:
        """A message that counts now; ``position`` is its place in the ring."""
        if message.kind == Kind.CHUNK:
            self._on_chunk(message, position)
        elif message.kind == Kind.CATCH_UP:
            self._on_loan(message)
        elif message.kind in (Kind.CHECK, Kind.VOTE):
            full = self._complete and self._catcher is None
            if self.checker.deliver(origin, message, self.table if full else None):
                self._diverged()
        elif self._catcher is not None:
            self._catcher.log.append((position, origin, message))
        elif self._joiner is not None:
            self._joiner.log(position, origin, message)
        elif self._complete:
            if self.taps:
                self.taps.message(origin, message)
            effects = self.table.apply(origin, message)
            if effects is None:
                return
            self._tidy()
            self._kept.add(position, origin, message)
            self.home.settled.delivered(position, self.table.applied)
            if self.taps:
                self.taps.mark(self.table)
            looked = self.checker.applied(self.table)
            if looked:
                self.home.send(Kind.LOOK, (looked,))
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
        self._end_transfers()
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
        chosen, said = choose(view), announcements(view)
        mine = self._primary.id if self._primary is not None else NO_RING
        applied = self.table.applied if old is not None and self.table.ring == old.id else 0
        clean = self._clean()
        if self._me.node in chosen.full:
            clean = self._go_on(old, view, chosen, held)
        elif self._me.node in chosen.behind:
            self._fall_behind(view)
        else:
            self._begin_anew(view, chosen.full)
            applied = 0  # this life owned nothing before this view
        if old is not None and old.primary:
            self.lease_clock.left_primary(old, view, clean, applied, now)
        self.lease_clock.entered_primary(mine, said, now)
        self.lease_clock.installed(self.host, view, self._catcher is None and not self.leaving_now, now)
        if self._catcher is None:
            self._primary = view
        leads = self._me.node == min(chosen.full or said)
        self.checker.entered(view.id, said, chosen.full or said)
        self.home.clearing.entered(leads)
        self.home.stonith.entered(chosen, {node: word.agents for node, (_, word) in said.items()})
        if said.keys() - chosen.going_on and leads and chosen.full:
            self._donor = Donor(view.id, self.table, now)
        if self._complete and not self.home.linked:
            self.home.link()
        self.prompter.view()
        self._feed()
        going_on, behind = sorted(chosen.going_on), sorted(chosen.behind)
        self.host.event("dlm.view", ring=str(view.id), going_on=going_on, behind=behind, state=self.state)

    def _go_on(self, old: View | None, view: View, chosen: Chosen, held: HeldBack) -> frozenset[Member]:
        """This node's state is the chosen one. Returns who said goodbye before this view."""
        straight = old is not None and self.table.ring == old.id
        kept = [each for each in held if straight and each[2].serial]  # the others were for the old view
        prefix = [(origin, message) for after, origin, message in kept if not after]
        rest = [(origin, message) for after, origin, message in kept if after]
        if self._me.node != chosen.lender:
            return self._carry(view, chosen, prefix, rest).clean
        said = announcements(view)
        furthest = max(self._kept.base, min(said[node][1].applied for node in chosen.behind))
        missed = self._kept.since(furthest)
        done = self._carry(view, chosen, prefix, rest)
        missed += done.applied[: done.before]
        self._lender = Lender(view.id, furthest, missed, done.applied[done.before :])
        return done.clean

    def _carry(self, view: View, chosen: Chosen, prefix: list[Held], rest: list[Held]) -> Recovered:
        """The table goes into the view."""
        self.taps.view(view, chosen.going_on, prefix, rest)
        done = primary_view(self.table, view, chosen.going_on, prefix, rest)
        self._kept.begin(self.table.applied)
        self.home.settled.whole(self.table.applied)
        for origin, message in done.applied:
            if origin == self._me:
                self.home.outbox.applied(message.serial)
        self._tidy()
        self.home.resume()
        self.home.outcomes(done.effects)
        for origin, message in done.applied:
            if origin == self._me:
                self._look_after(message)
        return done

    def _fall_behind(self, view: View) -> None:
        """This node has a prefix of what goes on: as if it were still away, until it has the rest (K4)."""
        self.home.freeze()
        self._kept.stop()
        self._catcher = Catcher(view.id, self.table.applied)

    def _on_loan(self, message: Message) -> None:
        """A piece of what those who are behind have missed."""
        if self._lender is not None:
            self._lender.on_piece(message)
            if self._lender.done:
                self._lender = None
            else:
                self._feed()
        elif self._catcher is not None:
            try:
                loan = self._catcher.on_piece(message)
            except ValueError as damage:
                self._again(str(damage))
                return
            if loan is not None:
                self._catch_up(self._catcher, loan)

    def _catch_up(self, catcher: Catcher, loan: Loan) -> None:
        """All that was missed, then the view, then what was ordered since."""
        view, now = self._view, self.home.now
        assert view is not None
        self._catcher, self._primary, self.home.holding = None, view, True
        before, after = loan
        self._carry(view, choose(view), before, after)
        for position, origin, message in catcher.log:
            self._ordered(origin, message, position)
        self.lease_clock.admitted(self.host, not self.leaving_now, now)
        self.prompter.view()
        self._feed()
        self.host.event("dlm.caught_up", applied=self.table.applied, names=len(self.table.names))

    def _begin_anew(self, view: View, full: frozenset[int]) -> None:
        """Another state goes on, or none: a new life, with a table from the others or an empty one."""
        self.taps.over("the node has begun a new life")
        table = Table(self._me.node) if full else empty_view(self._me.node, view)
        table.now = self.home.now
        table.history.resize(self.config.history)
        self.home.new_life(view.id, table, "evicted")
        self.home.frozen = False
        self._complete = not full
        self._joiner = Joiner(view.id, self._me.node, self.home.now) if full else None
        self._kept.begin(table.applied)
        self.home.settled.whole(table.applied)

    def _enter_frozen(self, old: View | None, view: View, held: HeldBack, now: int) -> None:
        """Not primary: the recovered rest of the prefix counts, nothing else; nobody is answered (K3, K9)."""
        self.home.freeze()
        self.checker.left()
        self.home.clearing.left()
        self._kept.stop()
        current = old is not None and self.table.ring == old.id
        applied = self.table.applied if current else 0
        if self._complete and current:
            for after, origin, message in held:
                if not after and message.serial:
                    self._ordered(origin, message, 0)
        if old is not None and old.primary:
            self.lease_clock.left_primary(old, view, self._clean(), applied, now)
        self.lease_clock.installed(self.host, view, False, now)
        self.home.holding = False

    def _clean(self) -> frozenset[Member]:
        lives = self.table.lives.values()
        return frozenset(Member(life.node, life.incarnation) for life in lives if life.gone)

    # -- state for joiners (K15) -----------------------------------------------------------------------------

    def _feed(self, made: bool = False) -> None:
        """Send what is due for those who lack something."""
        if self.home.frozen:
            return
        try:
            if self._lender is not None:
                for piece in self._lender.due():
                    self.host.submit(piece)
                    self._lender.was_sent()
            if self._donor is not None:
                for chunk in self._donor.due(made):
                    self.host.submit(chunk)
                    self._donor.was_sent()
        except Backpressure:
            pass  # the next token brings room

    def _on_chunk(self, message: Message, position: int) -> None:
        if self._donor is not None:
            self._donor.on_chunk(message)
            if self._donor.done:
                self._donor = None
        elif self._joiner is not None:
            self._joiner.on_chunk(message, position)

    def _replay(self) -> None:
        """Some of the state that has come, then of what was ordered since, until nothing is left of it (E3)."""
        joiner = self._joiner
        if joiner is None or not joiner.busy or self._left <= 0:
            return
        try:
            self._left, done = joiner.catch_up(self._left, self.home.now, self._kept)
        except Damage as damage:
            self._again(str(damage))
            return
        if not done:
            return
        table = self.home.table = joiner.table
        self._joiner, self._complete, self._damaged = None, True, 0
        self.home.settled.delivered(joiner.position, table.applied)
        table.history.resize(self.config.history)
        self.home.link()
        self.host.event("dlm.caught_up", applied=table.applied, names=len(table.names))

    def _end_transfers(self) -> None:
        """Another view, or no state: nothing of what was on its way is of use."""
        if self._donor is not None:
            self._donor.drop()
        self._donor = self._joiner = self._lender = self._catcher = None

    def _again(self, damage: str) -> None:
        """The table has come damaged: another view brings another transfer."""
        self._damaged += 1
        self._drop_state("evicted")
        self.host.event("dlm.transfer_damaged", damage=damage, times=self._damaged)
        if self._damaged <= TRANSFERS:
            self.host.reform("the lock table has come damaged")
