"""Nested faults at each protocol step: every type of frame in every state, sent and received, every kind of fault.

``vsync.testing.rules`` says which of these steps cannot occur, and why.
"""

from __future__ import annotations

from collections import Counter

import pytest

from vsync.testing import Options, SimCluster, Violation, run
from vsync.testing.hunt import coverage
from vsync.testing.options import LinkOptions, scaled
from vsync.testing.rules import ACTIONS, CELLS, NEVER_SENT, POINTLESS, SIDES, STATES, TYPES, Cell, check_sent
from vsync.types import Member
from vsync.wire import FrameType, encode_header
from vsync.wire_forming import Join, encode_join

MOST = 150  #: seeds; a third of them has been enough


def steps(seed: int) -> Options:
    """Short timers and many nested faults; enough lost that recoveries have something to do."""
    return Options(
        seed=seed,
        nodes=4,
        chaos=4_000_000,
        timing=scaled(0.1),
        links=LinkOptions(delay_low=100, delay_high=400, loss=0.1),
        fault_interval=20_000,
        send_interval=20_000,
        nested=6,
        crash=1,
        partition=2,
    )


def met(seeds: range) -> Counter[Cell]:
    fired: Counter[Cell] = Counter()
    for seed in seeds:
        result = run(steps(seed))
        assert result.violation is None, f"seed {seed}: {result.violation}"
        fired += result.fired
        if all(fired[cell] for cell in CELLS):
            break
    return fired


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_step_that_can_occur_is_met() -> None:
    fired = met(range(1, MOST + 1))
    assert not [cell for cell in CELLS if not fired[cell]], "\n".join(coverage(fired))


def test_most_of_them_within_moments() -> None:
    """Every type in every state at least, in a few seeds."""
    fired = met(range(1, 9))
    steps_met = {cell[:3] for cell in fired}
    assert steps_met == {cell[:3] for cell in CELLS}, "\n".join(coverage(fired))


def test_the_table_is_whole() -> None:
    """Each step either can occur or has a reason why not."""
    every = {(k, s, side, a) for k in TYPES for s in STATES for side in SIDES for a in ACTIONS}
    never = {(k, s, "sent", a) for k, s in NEVER_SENT for a in ACTIONS}
    assert every == set(CELLS) | never | set(POINTLESS)
    assert not set(CELLS) & (never | set(POINTLESS))
    assert len(CELLS) == len(set(CELLS)) == 210
    assert all(why.strip() for why in [*NEVER_SENT.values(), *POINTLESS.values()])


@pytest.mark.parametrize(("kind", "state"), sorted(NEVER_SENT))
def test_what_never_is_sent_is_noticed(kind: str, state: str) -> None:
    """The reasons are checked in every run: a core that sent such a frame would break rule STEP."""
    frame = encode_header(FrameType[kind], 0, Member(1, 1))
    with pytest.raises(Violation, match=f"STEP: node 1 sent {kind} in {state}, but "):
        check_sent(frame, state, 1)
    check_sent(frame, "recovery" if kind in ("DATA", "TOKEN", "COMMIT") else "operational", 1)


def test_a_join_outside_gather_is_a_goodbye() -> None:
    with SimCluster(n=2) as cluster:
        cluster.settle()
        engine = cluster[1].core.engine  # type: ignore[attr-defined]
        header = engine.header(FrameType.JOIN)
        joins = [Join(engine.hello, 1, frozenset({engine.me}), frozenset(), leaving) for leaving in (True, False)]
        goodbye, plain = (encode_join(header, join) for join in joins)
        check_sent(goodbye, "operational", 1)
        check_sent(plain, "gather", 1)
        with pytest.raises(Violation, match=r"STEP.*goodbye"):
            check_sent(plain, "operational", 1)


def test_an_engine_that_takes_a_wrong_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that sends its last token again although it has given up the ring."""
    from vsync.engine import gather
    from vsync.engine.engine import Engine
    from vsync.engine.states import Reason

    enter = gather.enter

    def wrong(e: Engine, reason: Reason, now: int, **details: object) -> None:
        enter(e, reason, now, **details)
        if e.ring.sent_token is not None:
            e.send(e.ring.successor.node, e.ring.sent_token)

    monkeypatch.setattr(gather, "enter", wrong)
    violation = run(steps(1)).violation
    assert violation is not None
    assert violation.rule == "STEP"
    assert "sent TOKEN in gather" in violation.text
