"""Clusters in network namespaces, cut apart, stopped, killed, wiped – under clients whose histories are judged.

What is judged: ``dlm.testing.linear`` (locks) and ``dlm.testing.register`` (what they guard); that everybody gets
locks again after each fault; and at the end that every lock is free. Short timers and a few seconds each; the rest
is in ``test_storm_long``, and random storms can be had by hand: ``python -m dlm.testing.storm --nodes 5``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dlm.testing.storm.__main__ import main
from dlm.testing.storm.run import Plan
from tests.live.arena import Arena, needs_network

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    arena = Arena(Plan(seed=11, fast=True), tmp_path_factory)
    yield arena
    arena.finish()


@needs_network
@pytest.mark.parametrize(
    "fault",
    ["minority", "alone", "one way", "stop", "stopped client cut off", "kill", "restart all", "wipe", "disk full"],
)
def test_all_is_in_order_after(arena: Arena, fault: str) -> None:
    arena.strike(fault)


def test_faults_of_the_network_need_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--loopback", "--fault", "alone"]) == 2
    assert "these faults need network namespaces" in capsys.readouterr().err
