"""How fast a failure becomes a view, on real daemons, as ratios of the configured timers.

``vsync bench view-change`` prints the figures. Medians of three rounds, so that each node is the victim once.
"""

from __future__ import annotations

import statistics

import pytest

from vsync.bench.local import LocalSubject, transports
from vsync.bench.view_change import FAULTS, Measured, measure
from vsync.types import Timing

pytestmark = [pytest.mark.live, pytest.mark.long]

TOKEN_MS = Timing().token / 1000
REFORM_MS = Timing().consensus / 1000


@pytest.fixture(scope="module", params=transports())
def measured(request: pytest.FixtureRequest) -> Measured:
    with LocalSubject(request.param) as subject:
        return measure(request.param, subject, 3)


def median(measured: Measured, fault: str) -> float:
    assert set(measured.times_ms) == set(FAULTS)
    return statistics.median(measured.times_ms[fault])


def test_a_dead_process_is_noticed_long_before_its_token_is_missed(measured: Measured) -> None:
    assert median(measured, "kill") < TOKEN_MS / 3


def test_a_leave_needs_no_timer(measured: Measured) -> None:
    assert median(measured, "terminate") < TOKEN_MS / 4


def test_a_silent_host_costs_a_token_timeout_and_a_consensus_at_most(measured: Measured) -> None:
    assert min(measured.times_ms["stop"]) > 0.5 * TOKEN_MS
    assert median(measured, "stop") < TOKEN_MS + REFORM_MS + 300


def test_who_comes_back_is_taken_in(measured: Measured) -> None:
    assert median(measured, "cont") < 2 * (TOKEN_MS + REFORM_MS)
    assert median(measured, "restart") < 2 * (TOKEN_MS + REFORM_MS) + 2000  # with the start of a Python program
