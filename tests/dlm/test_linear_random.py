"""The checker of locks against a true lock and against a search: random good histories, and random damage.

A true lock runs at instants of its own; calls and answers are noted around them. Such histories are good. Damage of
a kind that must be seen makes them bad; and whatever the damage, the verdict on the order of the grants is that of
the general search, which knows the specification and nothing else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from dlm.held import both
from dlm.info import Mode
from dlm.modes import COMPATIBLE, NAMES
from dlm.testing.calls import History, Note, Result, Verb, What, read
from dlm.testing.linear import Grant, grants_of, judge, order_problems
from dlm.testing.wgl import NEVER, Call, linearize

Notes = list[Note]
SEEDS = range(60)


# -- a true lock -------------------------------------------------------------------------------------------------


class TrueLock:
    """One name, in true time. ``random`` says who does what next, and how long calls and answers take."""

    def __init__(self, chance: random.Random, steps: int) -> None:
        self.chance = chance
        self.notes: Notes = []
        self.now = 100
        self.fence = 0
        self.op = 0
        self.held: dict[int, tuple[int, int]] = {}  # by handle: mode, time of the last answer
        self.free_at: dict[int, int] = {}  # by handle: before that its client is busy
        self.lock()
        for _ in range(steps):
            self.now += chance.randint(0, 8)
            chance.choice((self.lock, self.lock, self.convert, self.release, self.lose))()
        for handle in sorted(self.held):
            self.now += 10
            self.release(handle)

    def lock(self) -> None:
        """One new client for each handle: so nobody has to wait for an answer."""
        mode = self.chance.randrange(6)
        if not all(COMPATIBLE[other][mode] for other, _ in self.held.values()):
            return
        handle = len(self.free_at) + 1
        self.free_at[handle] = self.now
        self.fence += self.chance.randint(1, 3)
        answered = self.operation(handle, Verb.ACQUIRE, mode=NAMES[mode], fence=self.fence, name="n", node="x")
        self.held[handle] = mode, answered

    def convert(self) -> None:
        handle = self.ready()
        if handle is None:
            return
        old, new = self.held[handle][0], self.chance.randrange(6)
        others = [mode for other, (mode, _) in self.held.items() if other != handle]
        if not all(COMPATIBLE[other][new] for other in others):
            return
        fence = next(n.fence for n in reversed(self.notes) if n.client == f"c{handle}" and n.fence)
        if both(Mode(old), Mode(new)) != new:
            self.fence += 1
            fence = self.fence
        answered = self.operation(handle, Verb.CONVERT, mode=NAMES[new], fence=fence)
        self.held[handle] = new, answered

    def release(self, handle: int | None = None) -> None:
        handle = self.ready() if handle is None else handle
        if handle is None:
            return
        self.now = max(self.now, self.held.pop(handle)[1])
        self.operation(handle, Verb.RELEASE)

    def lose(self) -> None:
        handle = self.ready()
        if handle is not None and self.chance.random() < 0.5:
            del self.held[handle]
            self.note(handle, What.LOST, self.now, reason="evicted", deadline=self.now)

    def ready(self) -> int | None:
        """A handle whose client has been told everything."""
        free = [handle for handle, (_, answered) in sorted(self.held.items()) if answered <= self.now]
        return self.chance.choice(free) if free else None

    def operation(self, handle: int, verb: Verb, **fields: object) -> int:
        """It happens now; it was called a little ago and is answered in a little while."""
        self.op += 1
        called = max(self.free_at[handle], self.now - self.chance.randint(0, 20))
        if verb is Verb.RELEASE:
            called = self.now  # the hold ends there
        answered = self.now + self.chance.randint(0, 20)
        asked = {key: value for key, value in fields.items() if key != "fence"}
        self.note(handle, What.CALL, called, op=self.op, verb=verb, **asked)
        told = {"fence": fields["fence"], "mode": fields["mode"], "deadline": 10**6} if "fence" in fields else {}
        self.note(handle, What.RETURN, answered, op=self.op, result=Result.OK, **told)
        self.free_at[handle] = answered
        return answered

    def note(self, handle: int, what: What, t: int, **fields: object) -> None:
        self.notes.append(Note(t, f"c{handle}", what, handle=handle, **fields))  # type: ignore[arg-type]


def true_history(seed: int, steps: int = 60) -> Notes:
    """The notes of a true lock."""
    return TrueLock(random.Random(seed), steps).notes


@pytest.mark.parametrize("seed", SEEDS)
def test_what_a_lock_does_is_good(seed: int) -> None:
    for part in range(5):
        verdict = judge(read(true_history(seed * 100 + part)))
        assert verdict.good, verdict.report()
        assert verdict.grants > 3


# -- damage that must be seen ------------------------------------------------------------------------------------


def two_fences_change_places(notes: Notes, chance: random.Random) -> bool:
    """Of holds one of which was over when the other was asked for."""
    grants = [i for i, note in enumerate(notes) if note.what is What.RETURN and note.fence]
    calls = {(n.client, n.op): n.t for n in notes if n.what is What.CALL}
    pairs = [(i, j) for i in grants for j in grants if notes[i].t < calls[notes[j].client, notes[j].op]]
    if not pairs:
        return False
    i, j = chance.choice(pairs)
    if notes[i].fence == notes[j].fence:
        return False
    notes[i], notes[j] = replace(notes[i], fence=notes[j].fence), replace(notes[j], fence=notes[i].fence)
    return True


def a_fence_is_used_twice(notes: Notes, chance: random.Random) -> bool:
    grants = [i for i, note in enumerate(notes) if note.what is What.RETURN and note.fence]
    i, j = chance.choice(grants), chance.choice(grants)
    if notes[i].client == notes[j].client:
        return False
    notes[i] = replace(notes[i], fence=notes[j].fence)
    return True


def an_answer_is_lost(notes: Notes, chance: random.Random) -> bool:
    del notes[chance.choice([i for i, note in enumerate(notes) if note.what is What.RETURN])]
    return True


def an_answer_comes_twice(notes: Notes, chance: random.Random) -> bool:
    i = chance.choice([i for i, note in enumerate(notes) if note.what is What.RETURN])
    notes.insert(i + 1, notes[i])
    return True


def a_call_was_never_made(notes: Notes, chance: random.Random) -> bool:
    del notes[chance.choice([i for i, note in enumerate(notes) if note.what is What.CALL])]
    return True


def an_end_was_never_reported(notes: Notes, chance: random.Random) -> bool:
    """Release or loss; with what is noted after it."""
    ends = [i for i, n in enumerate(notes) if n.verb is Verb.RELEASE or n.what is What.LOST]
    i = chance.choice(ends)
    notes[:] = [note for j, note in enumerate(notes) if j < i or note.client != notes[i].client]
    return True


def a_hold_lasts_into_the_next(notes: Notes, chance: random.Random) -> bool:
    """Its end is noted only after an answer that it excludes."""
    ends = [i for i, n in enumerate(notes) if n.verb is Verb.RELEASE]
    grants = [n for n in notes if n.what is What.RETURN and n.mode == "EX"]
    pairs = [(i, n) for i in ends for n in grants if notes[i].t < n.t and n.client != notes[i].client]
    handles = {n.client: n.mode for n in notes if n.mode}
    lasts = {n.client: max(m.t for m in notes if m.client == n.client) for n in notes}
    pairs = [(i, n) for i, n in pairs if handles[notes[i].client] != "NL" and lasts[n.client] > n.t]
    if not pairs:
        return False
    i, grant = chance.choice(pairs)
    client = notes[i].client
    op = notes[i].op
    for j, note in enumerate(notes):
        if note.client == client and note.op == op:
            notes[j] = replace(note, t=grant.t + 1)
    return True


CERTAIN: list[Callable[[Notes, random.Random], bool]] = [
    two_fences_change_places, a_fence_is_used_twice, an_answer_is_lost, an_answer_comes_twice,
    a_call_was_never_made, an_end_was_never_reported, a_hold_lasts_into_the_next,
]  # fmt: skip


@pytest.mark.parametrize("damage", CERTAIN, ids=lambda damage: damage.__name__)
def test_damage_is_seen(damage: Callable[[Notes, random.Random], bool]) -> None:
    done = 0
    for seed in range(150):
        notes = true_history(seed, 40)
        if damage(notes, random.Random(seed)):
            done += 1
            assert not judge(read(notes)).good, f"seed {seed}"
    assert done > 50


# -- the same verdict as a search --------------------------------------------------------------------------------

State = tuple[int, tuple[tuple[int, int, int], ...]]  # the last fence; who holds what, after how many steps
Step = tuple[int, int, int, int]


def lock_step(state: State, what: Step) -> State | None:
    """The specification. ``what``: handle, new mode, fence of a grant or 0 for what needs none, number of the step
    in the life of its handle.
    """
    last, held = state
    handle, mode, fence, number = what
    if next((steps for who, _, steps in held if who == handle), 0) != number:
        return None
    if fence:
        if fence <= last or not all(COMPATIBLE[other][mode] for who, other, _ in held if who != handle):
            return None
        last = fence
    rest = tuple(each for each in held if each[0] != handle)
    return last, tuple(sorted((*rest, (handle, mode, number + 1))))


def searched(grants: list[Grant]) -> bool:
    """Whether a search finds an order."""
    calls: list[Call[Step]] = []
    steps: Counter[int] = Counter()
    for grant in grants:  # those of one handle are in its order
        handle = grant.op.handle
        assert grant.op.returned is not None
        calls.append(Call(grant.op.called, grant.op.returned, (handle, grant.mode, grant.fence, steps[handle])))
        steps[handle] += 1
        until = NEVER if grant.next is None else grant.next.op.returned
        assert until is not None
        for t, mode in grant.ends:
            calls.append(Call(t, until, (handle, mode, 0, steps[handle])))
            steps[handle] += 1
    return linearize(calls, (0, ()), lock_step).good


def damaged(notes: Notes, chance: random.Random) -> Notes:
    """Some times and fences are changed; each client's notes stay in their order."""
    notes = list(notes)
    for _ in range(chance.randint(1, 3)):
        i = chance.randrange(len(notes))
        note = notes[i]
        if chance.random() < 0.4:
            notes = shifted(notes, note.client, chance.randint(-40, 40))
            continue
        if note.fence and chance.random() < 0.7:
            notes[i] = replace(note, fence=max(1, note.fence + chance.randint(-9, 9)))
            continue
        mine = [n.t for n in notes if n.client == note.client]
        at = [j for j, n in enumerate(notes) if n.client == note.client].index(i)
        low = mine[at - 1] if at else 0
        high = mine[at + 1] if at + 1 < len(mine) else note.t + 60
        notes[i] = replace(note, t=chance.randint(low, max(low, high)))
    return notes


def shifted(notes: Notes, client: str, by: int) -> Notes:
    """All of this client happens earlier or later."""
    return [replace(note, t=note.t + by) if note.client == client else note for note in notes]


def order_by_fence_is_strict(grants: list[Grant]) -> bool:
    fences = [grant.fence for grant in grants]
    chains = all(grant.next is None or grant.next.fence > grant.fence for grant in grants)
    return len(set(fences)) == len(fences) and chains


def sane(history: History) -> bool:
    """Whether the clients' own accounts make sense, so that there is something to order."""
    return not history.problems


def test_the_verdict_on_the_order_is_that_of_a_search() -> None:
    """Where each grant has a fence of its own, as the other rules demand."""
    found = {True: 0, False: 0}
    for seed in range(2000):
        chance = random.Random(seed)
        history = read(damaged(true_history(seed, chance.randint(6, 40)), chance))
        grants = grants_of(history, "n")
        if sane(history) and order_by_fence_is_strict(grants):
            good = not order_problems("n", grants)
            assert good == searched(grants), f"seed {seed}"
            found[good] += 1
    assert min(found.values()) > 300, found
