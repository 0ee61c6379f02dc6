"""corosync under load: the program that sends is compiled, all of its members take part, and it counts."""

from __future__ import annotations

import pytest

from vsync.bench import corosync_load
from vsync.bench.corosync_load import CorosyncLoad

MISSING = corosync_load.missing()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(MISSING), reason=f"corosync: {MISSING}")]


@pytest.mark.parametrize("encrypted", [False, True])
def test_latency_and_throughput(encrypted: bool) -> None:
    with CorosyncLoad(encrypted=encrypted) as load:
        latency = load.latency(64, 20)
        assert latency.p50_us
        assert latency.p50_us > 0
        assert load.throughput(1000, 0.2).value > 0
