"""Random streams of operations with all flags: one name against the dumb model, every effect in order.

After every event the invariants at the end of locks.md §1.18 are checked on what the resource says of itself,
and it is encoded and decoded: what is needed to go on must be in its state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dlm import modes
from dlm.resource import Effect, Lock, Resource, State, What
from tests.dlm.model import MODES, QUECVT_TO, Model, Who, conflict

WORDS = [
    "NOQUEUE", "NOQUEUEBAST", "QUECVT", "CONVDEADLK", "PERSISTENT", "ORPHAN", "NODLCKWT", "NODLCKBLK", "EXPEDITE",
    "HEADQUE", "NOORDER", "ALTPR", "ALTCW", "VALBLK", "IVVALBLK", "NOTIFY",
]  # fmt: skip
BITS = {word: getattr(modes, word) for word in WORDS}
OUTCOMES = {word: getattr(modes, word) for word in ("DEMOTED", "VALNOTVALID", "ALTMODE")}


class Step(NamedTuple):
    """One random event; what it comes to depends on who has a lock at that moment."""

    kind: str
    node: int
    session: int
    mode: str
    flags: frozenset[str]
    value: bytes

    @property
    def who(self) -> Who:
        return self.node, self.session, 1


STEPS = st.builds(
    Step,
    kind=st.sampled_from(["act"] * 12 + ["cancel", "cancel", "unlock", "unlock", "end", "nodes"]),
    node=st.integers(1, 3),
    session=st.integers(1, 3),
    mode=st.sampled_from(MODES),
    flags=st.one_of(
        st.frozensets(st.sampled_from(["NOTIFY", "VALBLK"])),
        st.frozensets(st.sampled_from(WORDS), max_size=5).map(lambda words: words | {"NOTIFY"}),
    ),
    value=st.binary(max_size=2),
)


def lawful(flags: frozenset[str], held: str, asked: str) -> frozenset[str]:
    """Without what §1.7 would refuse (E4, E5, E9)."""
    drop = set() if held else {"QUECVT", "CONVDEADLK"}
    if held or asked != "NL" or "NOQUEUE" in flags:
        drop |= {"EXPEDITE"}
    if held:
        drop |= {"ORPHAN"}
        if asked not in QUECVT_TO[held]:
            drop |= {"QUECVT"}
        if "NOQUEUE" in flags:
            drop |= {"CONVDEADLK"}
    return flags - drop


def plain(effect: Effect) -> tuple[Any, ...]:
    """An effect in the model's words."""
    said = frozenset(word for word, bit in OUTCOMES.items() if effect.flags & bit)
    if effect.what is What.GRANTED:
        return "ok", effect.key, MODES[effect.mode], effect.fence, effect.value, said, effect.was
    if effect.what is What.REFUSED:
        return "refused", effect.key, effect.code
    if effect.what is What.CANCELED:
        return "canceled", effect.key, _word(effect.mode), said
    if effect.what is What.BLOCKING:
        return "bast", effect.key, MODES[effect.mode]
    if effect.what is What.CANCEL_DONE:
        return "cancel_done", effect.key, bool(effect.mode)
    return effect.what.name.lower(), effect.key


def _word(mode: int) -> str:
    return "" if mode < 0 else MODES[mode]


def state(resource: Resource) -> tuple[Any, ...]:
    """What the model's ``state`` says, of the real one."""
    value, valid, *queues = resource.encode()[:5]
    now = [[Lock.decode(row, s, 0) for row in rows] for s, rows in zip(State, queues, strict=True)]
    rows = [[(one.key, _word(one.mode), MODES[one.asked], one.fence, one.orphan) for one in queue] for queue in now]
    return sorted(rows[0]), rows[1], rows[2], value, valid


class Pair:
    """The real one and the model, fed alike."""

    def __init__(self) -> None:
        self.resource = Resource(iter(range(1, 10_000)).__next__)
        self.model = Model(iter(range(1, 10_000)).__next__)
        self.pending: set[Who] = set()  #: accepted operations without an outcome
        self.created = self.ended = 0

    def step(self, step: Step) -> None:
        entry = self.model.find(step.who)
        out: list[Effect] = []
        before = {one.who for one in self.model.all()}
        expected = self._both(step, entry, out)
        assert [plain(effect) for effect in out] == expected, step
        self.created += len({one.who for one in self.model.all()} - before)
        self.ended += len(before - {one.who for one in self.model.all()})
        self._account(out)
        self._invariants()

    def _both(self, step: Step, entry: Any, out: list[Effect]) -> Any:
        who, mode, resource = step.who, MODES.index(step.mode), self.resource
        if step.kind == "nodes":
            resource.purge([step.node], out)
            self.pending = {one for one in self.pending if one[0] != step.node}
            return self.model.nodes_end([step.node])
        if step.kind == "end":
            resource.abandon(who, out)
            self.pending.discard(who)
            return self.model.session_ends(who)
        if step.kind == "cancel":
            expected = self.model.cancel(who)
            assert resource.cancel(who, out) == (expected is not None)
            return expected or []
        flags = lawful(step.flags, entry.held if entry else "", step.mode)
        bits = sum(BITS[word] for word in flags)
        if step.kind == "unlock":
            expected = self.model.unlock(who, flags, step.value)
            assert resource.unlock(who, bits, step.value, out) == (expected is not None)
            self.pending.discard(who)
            return expected or []
        if entry is None:
            self.pending.add(who)
            resource.lock(Lock(who, mode, bits, step.value), out)
            return self.model.request(who, step.mode, flags, step.value)
        if entry in self.model.granted and not entry.orphan:
            self.pending.add(who)
        resource.convert(who, mode, bits, step.value, 0, out)
        return self.model.convert(who, step.mode, flags, step.value)

    def _account(self, out: list[Effect]) -> None:
        """One outcome for every accepted operation (U7)."""
        for effect in out:
            if effect.what in (What.GRANTED, What.CANCELED) or effect.code in ("again", "deadlock"):
                assert effect.key in self.pending, f"{effect} without an operation"
                self.pending.remove(effect.key)
            elif effect.code == "unknown":
                self.pending.remove(effect.key)  # an adoption that finds nothing

    def _invariants(self) -> None:
        """§1.18, at its end."""
        real, model = state(self.resource), self.model.state()
        assert real == model
        granted, converting, waiting = real[:3]
        holders = [*granted, *converting]
        for i, (_, held, *_) in enumerate(holders):
            assert not any(conflict(held, other) for _, other, *_ in holders[:i]), "incompatible"
        if converting:
            who, _, asked, *_ = converting[0]
            others = [held for other, held, *_ in holders if other != who]
            assert any(conflict(held, asked) for held in others), "the first to convert could be granted"
        elif waiting:
            asked = waiting[0][2]
            assert any(conflict(held, asked) for _, held, *_ in holders), "the first to wait could be granted"
        queued = [row[0] for row in [*converting, *waiting]]
        assert self.pending <= set(queued)
        everybody = [row[0] for row in [*holders, *waiting]]
        assert len(set(everybody)) == len(everybody) == self.created - self.ended
        self.resource.invariants()
        self.resource = Resource.decode(self.resource.encode(), self.resource.mint, 0)


@settings(max_examples=400, deadline=None, phases=(Phase.explicit, Phase.generate, Phase.shrink))
@given(st.lists(STEPS, max_size=40))
def test_one_name_against_the_model(steps: list[Step]) -> None:
    """An orphan has no session that could convert or cancel, but the table must not mind if one did."""
    pair = Pair()
    for step in steps:
        entry = pair.model.find(step.who)
        if entry is not None and entry.orphan and step.kind != "unlock":
            step = step._replace(kind="end")
        pair.step(step)
