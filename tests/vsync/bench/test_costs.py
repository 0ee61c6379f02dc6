"""The bench of costs: it measures something, and an idle daemon is found to be nearly idle."""

from __future__ import annotations

import pytest

from vsync.bench import costs
from vsync.keys import ClusterKey
from vsync.transport.options import TransportConfig


@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_sealing_a_large_frame_costs_something(kind: str) -> None:
    send, receive = costs.frame_us(TransportConfig(kind, ClusterKey.generate()), 60_000, 3)
    assert send > 0
    assert receive > 0


@pytest.mark.live
def test_an_idle_daemon() -> None:
    assert 0 <= costs.idle_percent("zmq", 2, 1.0) < 50


def test_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(costs, "frame_us", lambda options, size, batches: (size / 100, batches / 10))
    monkeypatch.setattr(costs, "idle_percent", lambda kind, links, seconds: links * seconds)
    assert costs.main(["-n", "5", "--idle-seconds", "3"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    cells = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines}
    assert cells["udp, key"] == ["1.0, 0.5", "600.0, 0.5"]
    assert cells["zmq, 2 links"] == ["6.00"]
