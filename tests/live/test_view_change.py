"""How fast a failure becomes a view, on real daemons, as ratios of the configured timers.

``vsync bench view-change`` prints the figures. Medians of three rounds, so that each node is the victim once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from vsync.bench import cables, netns
from vsync.bench.link_cut import watch_a_cut
from vsync.bench.local import CabledSubject, LocalSubject, transports
from vsync.bench.view_change import CABLE_FAULTS, FAULTS, Measured, measure, measure_cables
from vsync.testcluster import LocalCluster
from vsync.types import Timing

pytestmark = [pytest.mark.live, pytest.mark.long]

Way = AbstractContextManager[tuple[LocalCluster, cables.Cables]]
TOKEN_MS = Timing().token / 1000
REFORM_MS = Timing().consensus / 1000


@pytest.fixture(scope="module", params=transports())
def measured(request: pytest.FixtureRequest) -> Measured:
    with LocalSubject(request.param) as subject:
        return measure(request.param, subject, 3)


def median(measured: Measured, fault: str) -> float:
    return statistics.median(measured.times_ms[fault])


def test_every_fault_is_measured(measured: Measured) -> None:
    assert {fault: len(times) for fault, times in measured.times_ms.items()} == dict.fromkeys(FAULTS, 3)


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


NO_NAMESPACES = netns.missing()
in_namespaces = pytest.mark.skipif(bool(NO_NAMESPACES), reason=f"network namespaces: {NO_NAMESPACES}")


@in_namespaces
@pytest.mark.parametrize("transport", transports())
def test_a_cut_cable_is_a_silent_host(transport: str) -> None:
    measured = Measured(transport)
    with CabledSubject(transport) as subject:
        measure_cables(measured, subject, 3, print)
    assert {fault: len(times) for fault, times in measured.times_ms.items()} == dict.fromkeys(CABLE_FAULTS, 3)
    assert min(measured.times_ms["cut"]) > 0.5 * TOKEN_MS
    assert median(measured, "cut") < TOKEN_MS + REFORM_MS + 300


@pytest.mark.parametrize("transport", transports())
@pytest.mark.parametrize("way", [cables.relays, pytest.param(cables.namespaces, marks=in_namespaces)])
def test_one_of_two_links_is_cut_and_no_message_is_missing(transport: str, way: Callable[[str], Way]) -> None:
    with way(transport) as (cluster, links):
        cut = watch_a_cut(cluster, links)
    assert cut.messages
    assert (cut.wrong, cut.views) == (0, 0)
    assert cut.longest_ms < TOKEN_MS  # no message waited for the ring's timers
