"""The bench itself: what is waited for, what is counted, what is shown. The measuring is in tests/live."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator

import pytest

from vsync.bench import command
from vsync.bench.flow import Arrival, Flow, longest_us, wrong
from vsync.bench.link_cut import LinkCut
from vsync.bench.subject import NotSeen, Watch
from vsync.bench.view_change import FAULTS, Measured, measure, measure_cables
from vsync.clock import boot_us
from vsync.errors import VsyncError


def test_watch_waits_for_the_last_watcher() -> None:
    watch = Watch(["a", "b"])
    watch.saw("a", "ab", 10)
    with pytest.raises(NotSeen, match="no view of a, b within 0 s"):
        watch.until("ab", 0)
    threading.Timer(0.05, lambda: watch.saw("b", "ab", 20)).start()
    assert watch.until("ab", 20) == 20


def test_watch_wants_present_views() -> None:
    watch = Watch(["a"])
    watch.saw("a", "ab", 10)
    watch.saw("a", "a", 20)
    with pytest.raises(NotSeen):
        watch.until("ab", 0)


def test_a_watch_is_not_interested_in_others() -> None:
    watch = Watch(["a"])
    watch.saw("c", "c", 10)  # who was cut off has a view, too
    watch.saw("a", "ab", 20)
    assert watch.until("ab", 0) == 20


class FakeSubject:
    """Every fault is seen at once, 1 ms after it; what is done is written down."""

    names = ("a", "b", "c")

    def __init__(self) -> None:
        self.done: list[str] = []
        self.present = set(self.names)
        self.current = Watch(())

    @contextlib.contextmanager
    def watch(self, names: Iterable[str]) -> Iterator[Watch]:
        names = list(names)
        assert self.present.issuperset(names), "only nodes that are there can be watched"
        self.watchers, self.current = names, Watch(names)
        yield self.current

    def _change(self, what: str, name: str, present: bool) -> None:
        self.done.append(f"{what} {name}")
        (self.present.add if present else self.present.discard)(name)
        for watcher in self.watchers:
            self.current.saw(watcher, self.present, boot_us() + 1000)

    def kill(self, name: str) -> None:
        self._change("kill", name, False)

    def terminate(self, name: str) -> None:
        self._change("terminate", name, False)

    def stop(self, name: str) -> None:
        self._change("stop", name, False)

    def cont(self, name: str) -> None:
        self._change("cont", name, True)

    def restart(self, name: str) -> None:
        self._change("restart", name, True)

    def cut(self, name: str) -> None:
        self._change("cut", name, False)

    def mend(self, name: str) -> None:
        self._change("mend", name, True)

    def settle(self) -> None:
        assert self.present == set(self.names)


def test_every_fault_is_measured_each_round_with_another_victim() -> None:
    subject = FakeSubject()
    told: list[str] = []
    measured = measure("fake", subject, 4, told.append)
    assert {fault: len(times) for fault, times in measured.times_ms.items()} == dict.fromkeys(FAULTS, 4)
    assert all(time >= 1 for times in measured.times_ms.values() for time in times)
    assert [d for d in subject.done if d.startswith("kill")] == ["kill a", "kill b", "kill c", "kill a"]
    assert told[0] == "fake: round 1 of 4, node a"


def flow(*orders: list[tuple[int, int]]) -> Flow:
    """Nodes 1 and 2 each sent two messages; what arrived at them, in which order. It took ``number`` + 1 µs."""
    flow = Flow([1, 2])
    flow.sent = {1: 2, 2: 2}
    for node, order in enumerate(orders, 1):
        flow.arrivals[node] = [Arrival(sender, n, 100 * n, 100 * n + n + 1) for sender, n in order]
    return flow


RIGHT = [(1, 0), (2, 0), (2, 1), (1, 1)]


@pytest.mark.parametrize(
    ("order", "mistakes"),
    [
        (RIGHT, 0),
        ([(2, 0), (1, 0), (2, 1), (1, 1)], 2),  # another order than the other node's, at two places
        (RIGHT[:3], 1),
        ([], 4),
        ([(1, 0), (2, 1), (2, 0), (1, 1)], 4),
        ([*RIGHT, (1, 1)], 1),
    ],
)
def test_what_is_wrong_with_a_flow(order: list[tuple[int, int]], mistakes: int) -> None:
    assert wrong(flow(RIGHT, order)) == mistakes
    assert flow(RIGHT, order).complete == (len(order) == 4)


def test_the_longest_time_of_what_arrived_in_a_span() -> None:
    both = flow(RIGHT, RIGHT)
    assert longest_us(both, 0, 1000) == 2
    assert longest_us(both, 0, 102) == 1
    assert longest_us(both, 103, 1000) == 0


def test_cables_are_measured_with_the_rest() -> None:
    measured = Measured("fake", {"kill": [1.0]})
    subject = FakeSubject()
    measure_cables(measured, subject, 3, lambda text: None)
    assert {fault: len(times) for fault, times in measured.times_ms.items()} == {"kill": 1, "cut": 3, "mend": 3}
    assert subject.done == [f"{what} {name}" for name in "abc" for what in ("cut", "mend")]


def test_medians_and_json() -> None:
    measured = Measured("x", {"kill": [3.0, 1.0, 100.0]})
    assert measured.median("kill") == 3
    assert measured.median("stop") is None
    times = {"kill": [3.0, 1.0, 100.0]}
    assert measured.to_json() == {"subject": "x", "median_ms": {"kill": 3.0}, "times_ms": times}


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Measured("vsyncd zmq", {"kill": [90.0]}), Measured("corosync", {"kill": [7732.0], "stop": [1.0]})]
    rows[0].link_cuts += [LinkCut(5, 99.25, 40, 0, 0), LinkCut(6, 120.04, 40, 0, 0)]
    command._print(rows, 1, {"cables": "", "corosync": ""}, as_json=False)
    text = capsys.readouterr().out
    cells = {line[:-20].strip(): line[-20:].split() for line in text.splitlines()}
    assert cells["longest time from submission to delivery, ms"] == ["120.0", "-"]
    assert cells["view changes"] == ["0", "-"]
    assert cells["messages sent"] == ["80", "-"]
    assert "kill -9 of a daemon, until the survivors' view" in text
    assert "7732.0" in text
    assert "not measured" not in text
    command._print(rows[:1], 1, {"cables": "", "corosync": "needs root"}, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert (answer["corosync"], answer["cables"]) == ("needs root", "measured")
    assert answer["results"][0]["link_cut"]["all_longest_ms"] == [99.2, 120.0]
    assert answer["results"][0]["median_ms"] == {"kill": 90.0}


def test_an_unknown_transport() -> None:
    with pytest.raises(VsyncError, match="transport carrier is not available here; there is zmq"):
        command.view_change(1, ["carrier"], peers=False, as_json=False, tell=print)
