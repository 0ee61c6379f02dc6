"""The lock manager as a service of the ring: messages and views in, answers out (design §5, pitfalls §0).

What arrives here is one ordered sequence; this module decides only *which part of it counts*:

* regular deliveries in a primary view are applied at once;
* deliveries during an installation are held back until the regular view's verdict (K3, K9);
* a view that is primary carries the chosen state on, everybody else begins a new life and joins (K4, K15);
* a view that is not primary freezes everything but the recovered rest of the old ring's prefix.

The rules themselves are in ``dlm.table`` (what a message does), ``dlm.recovery`` (what a view does to a table) and
``dlm.entering`` (to this node), ``dlm.verbs`` (what a client may ask), ``dlm.home`` (its handles), ``dlm.telling``
(what it is told) and ``dlm.lease`` (when).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgpack

from dlm import entering, looking, verbs, work
from dlm.agents import agents_of
from dlm.catchup import Catcher, Kept, Lender
from dlm.checks import Checker
from dlm.clearing import Clearing
from dlm.entering import HeldBack
from dlm.handles import Session
from dlm.home import Home
from dlm.lease import Lease
from dlm.messages import TAG, Kind, Message, decode, keys_of
from dlm.names import Form
from dlm.options import Configured
from dlm.prompter import Prompter
from dlm.recording import Taps
from dlm.recovery import NOTHING, Announcement, as_if_installed
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


class DlmService:
    """The ``dlm`` service of one node. Pure; see ``vsync.service.Service`` for who calls what when."""

    name = "dlm"
    tag = TAG

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.configured = Configured(config)
        self._agents = agents_of(config)
        self._view: View | None = None
        self.primary: View | None = None  #: the last primary view this node was in
        self._held: HeldBack = []  #: delivered during an installation (K3)
        self.joiner: Joiner | None = None
        self.donor: Donor | None = None
        self.lender: Lender | None = None
        self.catcher: Catcher | None = None  #: this node's state is a prefix of the one that goes on (K4)
        self.kept = Kept()
        self.complete = False  #: the table is a full copy: not a joiner's, not a fresh node's
        self._damaged = 0  #: transfers in a row
        self.leaving_now = False  #: no new locks, and soon a goodbye
        self._goodbye_due = False  #: the handles have ended, the goodbye is still to be said
        self.reforming = False
        self._left = work.TURN  #: of what may be done in this turn

    # -- the service interface -------------------------------------------------------------------------------

    def attach(self, host: Host, now: int) -> None:
        """Called once, before anything else."""
        self.host = host
        self.me = host.me
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
        if self.complete and self.primary is not None:
            gone = {node for node, life in table.lives.items() if life.gone}
            members = tuple(member for member in self.primary.members if member.node not in gone)
        said = Announcement(
            ring=table.ring if self.complete else NO_RING,
            applied=table.applied,
            complete=self.complete,
            life=self.home.outbox.ring,
            waiting=self.home.now < self.lease_clock.horizon,
            members=members,
            kept=self.kept.offer if self.complete else NOTHING,
            options=self.configured.options("default"),
            split=not self.config.quorum.excludes,
            nodes=tuple(peer.node for peer in self.host.config.peers),
            agents=tuple(sorted(self._agents)),
        )
        for view in attempts:
            said = as_if_installed(said, view, self.me.node)
        return said.encode()

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        """An ordered message: now, or held back, or of no account."""
        self._at(now)
        try:
            message = (origin == self.me and self.home.outbox.as_sent(payload)) or decode(payload)
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            self.host.event("dlm.garbage", origin=origin.node)
            return
        if installing:
            self._held.append((self.home.holding, origin, message))
        elif self._view is not None and self._view.primary:
            self.ordered(origin, message, position)

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
            entering.enter_primary(self, old, view, held, now)
        else:
            entering.enter_frozen(self, old, view, held, now)

    def open(self, session: int, who: Credentials, now: int) -> None:
        """A local client connected."""
        self._at(now)
        self.home.sessions[session] = Session(session, replace(who, name=who.name[:MAX_PROGRAM]))

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
        self.kept.trim(self.host.stable)
        self.feed(made=True)  # the token waits
        self.prompter.token(self.host.stable, now)

    def fire(self, now: int) -> None:
        """Time has passed: answers at the horizon, time-outs, yields, give-backs."""
        self._at(now)
        self._left = work.TURN
        if self.home.closings:
            self._left = self.home.closings.run(self._left)
        self.tidy()
        self._replay()
        if self.taps.chores and self._left > 0:
            self._left = self.taps.chores.run(self._left)
        self._say_goodbye()
        self.lease_clock.renew(self.host, now)
        self.prompter.sweep(now)
        if self.donor is not None:
            self.donor.refill(now)
        self.feed()
        if not self.home.holding:
            self.home.run_timers()
        if self.home.open and not self.home.holding:
            self.upkeep.run(now)

    def next_deadline(self) -> int | None:
        """When ``fire`` wants to be called."""
        home = self.home
        joining = self.joiner is not None and self.joiner.busy
        working = self.table.overdue or home.closings or self.taps.chores or joining
        if working or (self._goodbye_due and home.open):
            return home.now
        timed: tuple[_Timed, ...] = ()
        if not home.holding:
            timed = (home.timers, self.upkeep, home.clearing, home.stonith) if home.open else (home.timers,)
        if self.donor is not None and self.lender is None and not home.frozen:  # what is lent goes first
            timed = (*timed, self.donor)
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
        life = self.table.lives.get(self.me.node)
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
        if self.catcher is not None:
            return "catching up"
        return "running" if self.complete else "joining"

    @property
    def table(self) -> Table:
        """The lock table as of the last event."""
        return self.home.table

    def _say_goodbye(self) -> None:
        if self._goodbye_due and self.home.open:
            self._goodbye_due = False
            self.home.send(Kind.GOODBYE, ())

    # -- the ordered stream ----------------------------------------------------------------------------------

    def _at(self, now: int) -> None:
        if now != self.home.now:
            self._left = work.TURN
        self.home.now = self.home.table.now = now

    def tidy(self) -> None:
        """Some of what an event has left to be done."""
        if self.table.overdue and self._left > 0:
            self._left = self.table.tidy(self._left)

    def ordered(self, origin: Member, message: Message, position: int) -> None:
        """A message that counts now; ``position`` is its place in the ring."""
        if message.kind == Kind.CHUNK:
            self._on_chunk(message, position)
        elif message.kind == Kind.CATCH_UP:
            self._on_loan(message)
        elif message.kind in (Kind.CHECK, Kind.VOTE):
            full = self.complete and self.catcher is None
            if self.checker.deliver(origin, message, self.table if full else None):
                self._diverged()
        elif self.catcher is not None:
            self.catcher.log.append((position, origin, message))
        elif self.joiner is not None:
            self.joiner.log(position, origin, message)
        elif self.complete:
            if self.taps:
                self.taps.message(origin, message)
            effects = self.table.apply(origin, message)
            if effects is None:
                return
            self.tidy()
            self.kept.add(position, origin, message)
            self.home.settled.delivered(position, self.table.applied)
            if self.taps:
                self.taps.mark(self.table)
            looked = self.checker.applied(self.table)
            if looked:
                self.home.send(Kind.LOOK, (looked,))
            own = origin == self.me
            if own:
                self.home.outbox.applied(message.serial)
            if effects:
                self.home.outcomes(effects)
            if own:
                self.look_after(message)
            if self.table.numbers > NUMBERS_LIMIT and not self.reforming:
                self.reforming = True
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
        self.complete = False
        self.checker.left()
        self.home.new_life(NO_RING, Table(self.me.node), reason)

    def look_after(self, message: Message) -> None:
        """An own message was applied: a name private to this node may have got waiters, or become idle."""
        for key in keys_of(message):
            name = self.table.names.get(key)
            if name is not None and name.form is Form.PRIVATE and name.resource is not None:
                self.home.look_after(key, name)

    # -- state for joiners and for those behind (K4, K15) ------------------------------------------------------

    def feed(self, made: bool = False) -> None:
        """Send what is due for those who lack something."""
        if self.home.frozen:
            return
        try:
            if self.lender is not None:
                for piece in self.lender.due():
                    self.host.submit(piece)
                    self.lender.was_sent()
            if self.donor is not None:
                for chunk in self.donor.due(made):
                    self.host.submit(chunk)
                    self.donor.was_sent()
        except Backpressure:
            pass  # the next token brings room

    def _on_loan(self, message: Message) -> None:
        """A piece of what those who are behind have missed."""
        if self.lender is not None:
            self.lender.on_piece(message)
            if self.lender.done:
                self.lender = None
            else:
                self.feed()
        elif self.catcher is not None:
            try:
                loan = self.catcher.on_piece(message)
            except ValueError as damage:
                self._again(str(damage))
                return
            if loan is not None:
                assert self._view is not None
                entering.catch_up(self, self._view, self.catcher, loan)

    def _on_chunk(self, message: Message, position: int) -> None:
        if self.donor is not None:
            self.donor.on_chunk(message)
            if self.donor.done:
                self.donor = None
        elif self.joiner is not None:
            self.joiner.on_chunk(message, position)

    def _replay(self) -> None:
        """Some of the state that has come, then of what was ordered since, until nothing is left of it (E3)."""
        joiner = self.joiner
        if joiner is None or not joiner.busy or self._left <= 0:
            return
        try:
            self._left, done = joiner.catch_up(self._left, self.home.now, self.kept)
        except Damage as damage:
            self._again(str(damage))
            return
        if not done:
            return
        table = self.home.table = joiner.table
        self.joiner, self.complete, self._damaged = None, True, 0
        self.home.settled.delivered(joiner.position, table.applied)
        table.history.resize(self.config.history)
        self.home.link()
        self.host.event("dlm.caught_up", applied=table.applied, names=len(table.names))

    def _end_transfers(self) -> None:
        """Another view, or no state: nothing of what was on its way is of use."""
        if self.donor is not None:
            self.donor.drop()
        self.donor = self.joiner = self.lender = self.catcher = None

    def _again(self, damage: str) -> None:
        """The table has come damaged: another view brings another transfer."""
        self._damaged += 1
        self._drop_state("evicted")
        self.host.event("dlm.transfer_damaged", damage=damage, times=self._damaged)
        if self._damaged <= TRANSFERS:
            self.host.reform("the lock table has come damaged")
