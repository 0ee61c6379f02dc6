"""The set of nodes changes while everything breaks: what was found that way, and a few seeds more."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from vsync.testing import run
from vsync.testing.options import draw
from vsync.testing.registrar import Registrar
from vsync.testing.shrink import parse

#: The runs that showed it first, in full: they do not depend on how options are drawn.
FOUND = {
    "a ring of nodes without marks talked to one that nobody else knew any more": (
        "seed=33,nodes=5,chaos=8000000,timing=0.5,links.delay_high=500,links.delay_low=125,links.reorder_delay=25000,"
        "drift_ppm=100,fault_interval=75000,crash=2,leave=2,partition=4,one_way=1,pause=2,nested=2,lost_disk=0.5,"
        "fast_restart=0.9,start_spread=750000,send_interval=266666,quorum.policy=last_man_standing,"
        "votes=1+1+1+1+1,bootstrap=1,nodes_interval=250000"
    ),
    "only the removed node knew that it was removed, and its vote was still needed": (
        "seed=48,nodes=3,timing=0.1,links.delay_high=800,links.delay_low=200,links.reorder=0.01,"
        "links.reorder_delay=40000,fault_interval=100000,crash=1,slow=1,mtu=2,evidence=1.0,fast_restart=0.9,"
        "send_interval=6666,packet_bytes=1400,accelerated=4,quorum.wait_for_all=1,votes=1+1+1,nodes_interval=50000"
    ),
    "the representative had an empty disk and could not tell the absent where the others were": (
        "seed=126,nodes=3,chaos=8000000,timing=0.5,links.delay_high=10000,links.delay_low=1250,links.reorder=0.1,"
        "links.reorder_delay=7500,drift_ppm=100,fault_interval=500000,crash=2,leave=1,partition=4,one_way=2,herd=2,"
        "slow=4,lost_disk=0.5,fast_restart=0.0,start_spread=750000,send_interval=266666,votes=1+1+1,"
        "group_interval=26666,nodes_interval=250000"
    ),
    "who had learned that an attempt was void did not say so": (
        "seed=336,nodes=3,chaos=6000000,timing=0.1,links.cut_in_flight=1,links.delay_high=400,links.delay_low=200,"
        "links.duplicate=0.1,links.loss=0.02,links.reorder_delay=1200,drift_ppm=100,fault_interval=40000,crash=2,"
        "leave=2,partition=2,one_way=4,pause=2,nested=8,evidence=0.5,fast_restart=0.9,start_spread=20000,"
        "send_interval=10000,big=0.02,safe=0.5,accelerated=20,quorum.auto_tie_breaker=1,"
        "quorum.policy=last_man_standing,votes=1+1+1,nodes_interval=50000"
    ),
    "the guess of a ring that never came to be was counted by": (
        "seed=404,nodes=4,chaos=6000000,timing=0.2,links.delay_high=1000,links.duplicate=0.1,links.loss=0.005,"
        "links.reorder_delay=3000,drift_ppm=100,fault_interval=30000,crash=4,partition=4,nested=8,rumour=2,"
        "frozen=0.5,evidence=1.0,start_spread=40000,votes=1+1+1+1,bootstrap=1,nodes_interval=600000"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", FOUND.values(), ids=[what.replace(" ", "-") for what in FOUND])
def test_found_here(text: str) -> None:
    result = run(parse(text))
    assert result.violation is None, str(result.violation)


def test_commands_of_every_kind_come_into_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the runs would prove little."""
    made: list[Registrar] = []

    class Kept(Registrar):
        def __init__(self, seed: int, interval: int) -> None:
            super().__init__(seed, interval)
            made.append(self)

    monkeypatch.setattr(sys.modules["vsync.testing.run"], "Registrar", Kept)
    for seed in range(1, 9):
        options = draw(seed, (3, 4, 5)[seed % 3])
        interval = options.timing.token // 2
        result = run(replace(options, nodes_interval=interval, foreign=0, chaos=2 * options.chaos))
        assert result.violation is None, f"seed {seed}: {result.violation}"
    done = {kind: sum(each.done.get(kind, 0) for each in made) for kind in ("add", "remove", "replace", "set")}
    assert min(done.values()) >= 1, done
    assert sum(done.values()) > 15, done
