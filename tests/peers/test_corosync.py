"""corosync beside our own figures: the runner works where corosync is installed."""

from __future__ import annotations

import pytest

from vsync.bench import corosync
from vsync.bench.corosync import CorosyncSubject

MISSING = corosync.missing()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(MISSING), reason=f"corosync: {MISSING}")]


def test_three_daemons_a_kill_a_restart_and_a_cut_cable() -> None:
    with CorosyncSubject() as subject, subject.watch(["1", "2"]) as watch:
        before = watch.until(subject.names, 30)
        subject.kill("3")
        after = watch.until(["1", "2"], 60)
        assert after > before
        subject.restart("3")
        again = watch.until(subject.names, 60)
        assert again > after
        subject.cut("3")
        apart = watch.until(["1", "2"], 60)
        assert apart > again
        subject.mend("3")
        assert watch.until(subject.names, 60) > apart
