"""The bench of packets behind the token: its processes carry load; what is made of the measurements."""

from __future__ import annotations

import pytest

from vsync.bench import accelerated
from vsync.bench.load import Measurement, Nodes
from vsync.keys import ClusterKey
from vsync.transport.options import TransportConfig


@pytest.mark.live
@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_three_processes_carry_load(kind: str) -> None:
    with Nodes(TransportConfig(kind, ClusterKey.generate())) as nodes:
        for behind in (0, 16):
            nodes.set(accelerated=behind)
            measured = nodes.measure(size=1000, senders=3, window=8, seconds=0.1)
            assert measured.rate > 0
            assert measured.p50_ms > 0


def test_ratios_are_taken_within_a_turn() -> None:
    """The machine was twice as slow in the second turn, which is no business of the settings."""
    rates_by = dict(zip(accelerated.SETTINGS, (100.0, 100.0, 110.0, 120.0, 90.0), strict=True))
    turns = [
        {name: Measurement(r * speed, [int(1000 / speed)], 1.0) for name, r in rates_by.items()}
        for speed in (1.0, 0.5)
    ]
    rates, times = accelerated._rows((64, 1, 8), turns)
    assert rates[0].startswith("64 B, 1 sender, 8 under way")
    assert rates[1] == "75"
    assert [cell.partition(" ")[0] for cell in rates[2:]] == ["1.00", "1.10", "1.20", "0.90"]
    assert [cell.partition(" ")[0] for cell in times[2:]] == ["1.00"] * 4


def test_each_setting_goes_first_in_its_turn() -> None:
    class Fake(Nodes):
        def __init__(self) -> None:
            self.order: list[int] = []

        def set(self, **settings: int) -> None:
            self.order.append(settings["accelerated"])

        def measure(self, size: int, senders: int, window: int, seconds: float) -> Measurement:
            return Measurement(1, [1], 1)

    fake = Fake()
    for number in range(3):
        assert set(accelerated._turn(fake, number, (64, 1, 1), 0.1)) == set(accelerated.SETTINGS)
    assert fake.order == [0, 0, 4, 8, 16, 0, 4, 8, 16, 0, 4, 8, 16, 0, 0]
