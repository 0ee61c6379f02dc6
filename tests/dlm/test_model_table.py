"""Several names, several replicas: random streams with all flags through every form that a name can have.

Three nodes apply one order, and work alone on names that are private to them; two more tables follow the same
order, one late, one from a state transfer in the middle. Every effect is compared with the dumb model, name by
name; tables at one position must be byte for byte the same, and all invariants hold after every event. What a view
does to names that nobody waits for, node 1 does at once, node 2 some time later, node 3 only when somebody looks
(``dlm.purge``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dlm import purge
from dlm.messages import TAG, Kind, Message
from dlm.modes import FORCEUNLOCK, IVVALBLK
from dlm.recovery import Announcement, primary_view
from dlm.resource import Effect, Lock
from dlm.table import Composed, Effects, Life, Table
from tests.dlm.model import MODES, Model, Who
from tests.dlm.test_model import BITS, WORDS, lawful, plain, state
from vsync.types import Entry, Member, RingId, View

NODES = (1, 2, 3)
NAMES = (b"\0a", b"\0b", b"\0c")
IN_A_ROW = 8  # A5


class Step(NamedTuple):
    """One random event."""

    kind: str
    node: int
    session: int
    name: bytes
    mode: str
    flags: frozenset[str]
    value: bytes
    ordered: bool  #: as a message, even where the node could decide alone (K12)

    @property
    def who(self) -> Who:
        return self.node, self.session, NAMES.index(self.name) + 1


KINDS = ["act"] * 14 + ["cancel", "cancel", "unlock", "unlock", "publish", "publish", "publish"]
KINDS += ["end", "purge", "yield", "give back", "view", "view", "walk", "catch up", "take over"]
STEPS = st.builds(
    Step,
    kind=st.sampled_from(KINDS),
    node=st.sampled_from(NODES),
    session=st.integers(1, 2),
    name=st.sampled_from(NAMES),
    mode=st.sampled_from(MODES),
    flags=st.one_of(
        st.frozensets(st.sampled_from(["NOTIFY", "VALBLK"])),
        st.frozensets(st.sampled_from(WORDS), max_size=5).map(lambda words: words | {"NOTIFY"}),
    ),
    value=st.binary(max_size=2),
    ordered=st.booleans(),
)


class Op(NamedTuple):
    """An operation as the model waits with it in a handover."""

    life: tuple[int, int]  #: (node, which of its lives)
    run: Callable[[Model], list[Any]]


class Named:
    """What the model knows of a name: its form, and the dumb queues, wherever they are at the moment."""

    def __init__(self, owner: int, model: Model) -> None:
        self.form, self.owner, self.model = "private", owner, model
        self.waiting: list[Op] = []
        self.last, self.row = 0, 0  #: A5


class World:
    """Three tables in step, two that follow, and the model of every name."""

    def __init__(self) -> None:
        self.seq = 1
        self.lives = dict.fromkeys(NODES, 1)  #: by node: which of its lives this is
        self.serials = dict.fromkeys(NODES, 0)
        self.publications: list[tuple[int, int, Composed]] = []  #: (node, its life, what is to be ordered)
        self.log: list[tuple[Member, Message] | View] = []
        self.digests: list[bytes] = []  #: of the tables after each entry of the log
        self.tables = {node: self._first(node) for node in NODES}
        self.late, self.at = self._first(7), 0
        self.joined: tuple[Table, int] | None = None
        self.names: dict[bytes, Named] = {}
        self.walk: Iterator[int] = iter(())  #: through the names of table 2
        self.mints = {name: count(1) for name in NAMES}
        self.fences: dict[bytes, list[int]] = {name: [] for name in NAMES}  #: real ones, in the model's order

    def _first(self, me: int) -> Table:
        table = Table(me)
        table.begin_epoch(RingId(self.seq, 1))
        table.lives = {node: Life(node, 1, RingId(self.seq, 1)) for node in NODES}
        return table

    # -- events ----------------------------------------------------------------------------------------------

    def step(self, step: Step) -> None:
        name = self.names.get(step.name)
        mine = name is not None and name.form == "private" and name.owner == step.node
        if step.kind == "publish":
            if self.publications:
                self.publish()
        elif step.kind == "view":
            self.view(step.node)
        elif step.kind == "walk":
            next(self.walk, None)
        elif step.kind == "catch up":
            self.catch_up()
        elif step.kind == "take over":
            self.take_over(step)
        elif step.kind in ("yield", "give back"):
            if mine:
                self.change_form(step)
        elif name is not None and name.form == "private" and mine and not step.ordered:
            self.alone(step, name)
        else:
            self.ordered(step)
        self.check()

    def alone(self, step: Step, name: Named) -> None:
        """The owner's fast path: no message."""
        resource = self.tables[step.node].local(step.name)
        assert resource is not None
        entry = name.model.find(step.who)
        flags = self._flags(step, name.model)
        bits, mode, out = sum(BITS[word] for word in flags), MODES.index(step.mode), []
        expected: Any
        if step.kind == "cancel":
            expected = name.model.cancel(step.who) or []
            resource.cancel(step.who, out)
        elif step.kind == "unlock":
            expected = name.model.unlock(step.who, flags, step.value) or []
            resource.unlock(step.who, bits, step.value, out)
        elif step.kind == "end" or (entry is not None and entry.orphan):
            expected = name.model.session_ends(step.who)
            resource.abandon(step.who, out)
        elif step.kind == "purge":
            expected = []
            for who in [one.who for one in name.model.all() if one.orphan]:
                expected += name.model.unlock(who, ["IVVALBLK"]) or []
                resource.unlock(who, FORCEUNLOCK | IVVALBLK, None, out)
        elif entry is None:
            expected = name.model.request(step.who, step.mode, flags, step.value)
            resource.lock(Lock(step.who, mode, bits, step.value, owner=step.who[2]), out)
        else:
            expected = name.model.convert(step.who, step.mode, flags, step.value)
            resource.convert(step.who, mode, bits, step.value, 0, out)
        assert self.seen(step.name, out) == expected, step

    def ordered(self, step: Step) -> None:
        """The same as messages."""
        name = self.names.get(step.name)
        entry = name.model.find(step.who) if name is not None else None
        flags = self._flags(step, name.model if name is not None else None)
        bits, mode, who = sum(BITS[word] for word in flags), MODES.index(step.mode), step.who
        h = who[2]
        row = step.name, step.session, h, mode, bits, step.value
        if step.kind == "cancel":
            self.operate(step, Kind.CANCEL, (*row[:3], 0, 0, None), lambda model: _cancel(model, who))
        elif step.kind == "unlock":
            self.operate(step, Kind.UNLOCK, row, lambda model: _unlock(model, who, flags, step.value))
        elif step.kind == "end" or (entry is not None and entry.orphan):
            body = step.session, ((step.name, h),)
            self.operate(step, Kind.END, body, lambda model: model.session_ends(who))
        elif step.kind == "purge":
            for other in [one.who for one in name.model.all() if one.orphan] if name is not None else []:
                if other[0] == step.node:
                    self.purge(step, other)
        elif entry is None:
            waits = name is not None and len(name.waiting) > 6
            if not waits:
                run = _locker(who, step.mode, flags, step.value)
                self.operate(step, Kind.LOCK, (*row, 0, "", 0, h), run)
        else:
            run = _converter(who, step.mode, flags, step.value)
            self.operate(step, Kind.CONVERT, row, run)

    def take_over(self, step: Step) -> None:
        """Everybody else gives the name up, and this node uses it often enough to own it (A5)."""
        name = self.names.get(step.name)
        others = [entry.who for entry in name.model.all() if entry.who[0] != step.node] if name is not None else []
        for node, session, _ in others:
            self.ordered(step._replace(kind="unlock", node=node, session=session))
        for _ in range(IN_A_ROW + 1):
            self.ordered(step._replace(kind="act", mode="NL", flags=frozenset()))

    def purge(self, step: Step, who: Who) -> None:
        body = step.name, who[1], who[2], 0, FORCEUNLOCK | IVVALBLK, None
        self.operate(step, Kind.UNLOCK, body, lambda model: _unlock(model, who, frozenset({"IVVALBLK"}), None))

    def _flags(self, step: Step, model: Model | None) -> frozenset[str]:
        entry = model.find(step.who) if model is not None else None
        return lawful(step.flags, entry.held if entry is not None else "", step.mode)

    def operate(self, step: Step, kind: Kind, body: tuple[Any, ...], run: Callable[[Model], list[Any]]) -> None:
        """Order a message; each table must answer what the model says of the form the name has there."""
        key, node = step.name, step.node
        name = self.names.get(key)
        claims = kind is Kind.LOCK and not BITS["ORPHAN"] & body[4]
        if name is None and claims:
            name = self.names[key] = Named(node, Model(self.mints[key].__next__))
        everywhere: list[Any] = []
        owner = 0
        if name is not None and name.form == "private" and name.owner == node:
            everywhere, owner = run(name.model), node
        elif name is not None and name.form == "private" and claims:
            name.form = "handover"
            name.waiting.append(Op((node, self.lives[node]), run))
        elif name is not None and name.form == "handover":
            name.waiting.append(Op((node, self.lives[node]), run))
        elif name is not None and name.form == "shared":
            everywhere = self._shared(key, name, node, run)
        else:
            everywhere = run(Model(lambda: 0)) if not claims else []  # A8: nothing to work on
        self.order(node, kind, body, {owner: everywhere} if owner else dict.fromkeys(NODES, everywhere), key)

    def _shared(self, key: bytes, name: Named, node: int, run: Callable[[Model], list[Any]]) -> list[Any]:
        done = run(name.model)
        if not name.model.all():
            self._vacate(key, name)
            return done
        name.last, name.row = node, (name.row if name.last == node else 0) + 1
        alone = all(entry.who[0] == node for entry in name.model.granted)
        if name.row >= IN_A_ROW and alone and not name.model.converting and not name.model.waiting:
            self.names[key] = Named(node, name.model)  # A5
        return done

    def publish(self) -> None:
        """The owner's publication gets its place in the order."""
        node, life, composed = self.publications.pop(0)
        if self.lives[node] != life:
            return
        done = self._share(composed.key, Model.nothing)
        self.order(node, Kind.PUBLISH, tuple(composed), dict.fromkeys(NODES, done), composed.key)

    def _share(self, key: bytes, lost: Callable[[Model], None]) -> list[Any]:
        """Handover -> shared, then what has waited, except what ended lives asked (A4, A7)."""
        name = self.names[key]
        lost(name.model)
        name.form, name.owner, name.last, name.row = "shared", 0, 0, 0
        done = name.model.again()
        waiting, name.waiting = name.waiting, []
        for op in waiting:
            if op.life in self.lives.items():
                done += op.run(name.model)
        if not name.model.all():
            self._vacate(key, name)
        return done

    def _vacate(self, key: bytes, name: Named) -> None:
        """The name stays shared, but nothing of what it was (L10)."""
        name.model = Model(self.mints[key].__next__)

    def change_form(self, step: Step) -> None:
        name, epoch = self.names[step.name], self.tables[step.node].names[step.name].epoch
        if step.kind == "yield":
            name.form = "handover"
            self.order(step.node, Kind.YIELD, (step.name, epoch), {}, step.name)
        elif not name.model.all():
            del self.names[step.name]
            self.order(step.node, Kind.GIVE_BACK, (((step.name, epoch),),), {}, step.name)

    def order(self, node: int, kind: Kind, body: tuple[Any, ...], expected: dict[int, Any], key: bytes) -> None:
        """Deliver at all three; compare what each says of the name."""
        self.serials[node] += 1
        life = self.tables[node].lives[node]
        message = Message(kind, life.ring, self.serials[node], body)
        self.log.append((Member(node, life.incarnation), message))
        for at, table in self.tables.items():
            effects = table.apply(*self.log[-1])  # type: ignore[misc]
            assert effects is not None
            self._compose(at, effects)
            assert self.seen(key, effects) == expected.get(at, []), (at, kind, body)
        self.digests.append(self.tables[1].encode())

    def _compose(self, at: int, effects: Effects) -> None:
        self.publications += [(at, self.lives[at], one) for one in effects if isinstance(one, Composed)]

    def view(self, dead: int) -> None:
        """A node dies and is back in the next view, as another life, with the table of the others."""
        self.seq += 4
        self.lives[dead] += 1
        self.serials[dead] = 0
        going_on = tuple(node for node in NODES if node != dead)
        view = self._view(going_on, dead)
        self.log.append(view)
        done: dict[bytes, list[Any]] = {}
        for key in sorted(self.names):
            name = self.names[key]
            if name.form == "private" and name.owner == dead:
                del self.names[key]
            elif name.form == "handover" and name.owner == dead:
                done[key] = self._share(key, Model.lose_everything)
            elif name.form == "shared":
                had = bool(name.model.all())
                done[key] = name.model.nodes_end([dead])
                if had and not name.model.all():
                    del self.names[key]
        for node in going_on:
            effects = primary_view(self.tables[node], view, frozenset(going_on), (), ()).effects
            self._compose(node, effects)
            said = [each for key in sorted(done) for each in done[key]]
            assert self.seen(None, effects) == said, view
        self.tables[dead] = Table.decode(dead, self.tables[going_on[0]].encode(), 0)
        self.tables[1].complete()
        self.walk = purge.walk(self.tables[2], self.tables[2].era)
        self.digests.append(self.tables[1].encode())

    def _view(self, going_on: tuple[int, ...], dead: int) -> View:
        members = tuple(Member(node, self.lives[node]) for node in NODES)
        old = self.tables[going_on[0]]
        entries = {
            member.node: Entry(
                member,
                old.ring,
                1,
                {TAG: Announcement(old.ring, 0, True, old.lives[member.node].ring).encode()},
            )
            for member in members
        }
        ring = RingId(self.seq, going_on[0])
        return View(ring, members, (), (), True, False, "test", entries, old.ring)

    # -- comparing -------------------------------------------------------------------------------------------

    def seen(self, key: bytes | None, effects: Any) -> list[tuple[Any, ...]]:
        """Effects in the model's words, with its fences."""
        return [self._numbered(plain(effect)) for effect in effects if isinstance(effect, Effect)]

    def _numbered(self, effect: tuple[Any, ...]) -> tuple[Any, ...]:
        if effect[0] != "ok":
            return effect
        fences = self.fences[NAMES[effect[1][2] - 1]]
        if effect[3] not in fences:
            assert not fences or effect[3] > fences[-1], "a fence that does not rise"
            fences.append(effect[3])
        return (*effect[:3], fences.index(effect[3]) + 1, *effect[4:])

    def check(self) -> None:
        """One table everywhere; the contents are the model's."""
        for node, table in self.tables.items():
            table.invariants()
            assert table.encode() == self.tables[1].encode(), node
        assert set(self.tables[1].names) == set(self.names)
        for key, name in self.names.items():
            for node in NODES if name.form == "shared" else [name.owner] if name.form == "private" else []:
                if self.tables[node].names[key].era < self.tables[node].era:
                    continue
                resource = self.tables[node].names[key].resource
                assert resource is not None
                assert _unnumbered(state(resource)) == _unnumbered(name.model.state())

    def catch_up(self) -> None:
        """The late one comes up to a third of the way; one that joins gets its state here, or catches up too."""
        target = self.at + (len(self.log) - self.at + 2) // 3
        self.at = self._follow(self.late, self.at, target)
        if self.joined is None:
            if self.log:
                self.joined = Table.decode(8, self.tables[2].encode(), 0), len(self.log)
        else:
            table, at = self.joined
            self.joined = table, self._follow(table, at, at + (len(self.log) - at + 1) // 2)

    def _follow(self, table: Table, at: int, target: int) -> int:
        for index in range(at, target):
            entry = self.log[index]
            if isinstance(entry, View):
                going_on = {node for node in NODES if table.lives[node].incarnation == entry.members[node - 1][1]}
                primary_view(table, entry, frozenset(going_on), (), ())
            else:
                assert table.apply(*entry) is not None
            assert table.encode() == self.digests[index], f"other bytes at position {index}"
        return target

    def end(self) -> None:
        """Whatever is on its way arrives; the two that follow are brought up to date."""
        while self.publications:
            self.publish()
            self.check()
        for _ in range(40):
            self.catch_up()
        assert self.at == len(self.log)


def _cancel(model: Model, who: Who) -> list[Any]:
    done = model.cancel(who)
    return [*(done or []), ("cancel_done", who, done is not None)]


def _unlock(model: Model, who: Who, flags: frozenset[str], value: bytes | None) -> list[Any]:
    done = model.unlock(who, flags, value)
    return [("gone", who)] if done is None else done


def _locker(who: Who, mode: str, flags: frozenset[str], value: bytes) -> Callable[[Model], list[Any]]:
    return lambda model: model.request(who, mode, flags, value)


def _converter(who: Who, mode: str, flags: frozenset[str], value: bytes) -> Callable[[Model], list[Any]]:
    return lambda model: model.convert(who, mode, flags, value)


def _unnumbered(found: tuple[Any, ...]) -> tuple[Any, ...]:
    *queues, value, valid = found
    return *([(*row[:3], *row[4:]) for row in queue] for queue in queues), value, valid


@settings(max_examples=200, deadline=None, phases=(Phase.explicit, Phase.generate, Phase.shrink))
@given(st.lists(STEPS, max_size=80))
def test_names_and_replicas_against_the_model(steps: list[Step]) -> None:
    world = World()
    for step in steps:
        world.step(step)
    world.end()
