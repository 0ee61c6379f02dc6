"""The flight recorder: what a node did is run again and is the same, to the last output."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import vsync
from tests.vsync.support import until
from vsync.cli import run as cli
from vsync.core import Core
from vsync.dumps import Dumps
from vsync.engine import Engine, snapshot
from vsync.errors import NotConnected, RecordingError
from vsync.recorder import CHECKPOINT, INPUTS, MAGIC, OUT, RECEIVE, RecordedEngine, Recorder, Recording, digest
from vsync.service import Service
from vsync.testcluster import LocalCluster
from vsync.testing import SimCluster, draw
from vsync.testing.main import main
from vsync.testing.replay import Divergence, Rerun, judge, rerun
from vsync.testing.run import run
from vsync.testing.trace import Delivered, Viewed
from vsync.transport.memory import MemoryHub
from vsync.types import ClusterConfig, Peer
from vsync.upper import decode_upper

LARGE = 64 << 20


class Recorders:
    """Makes cores with a recorder each; keeps all recorders in the order of birth."""

    def __init__(self, limit: int = LARGE) -> None:
        self.limit = limit
        self.made: list[Recorder] = []

    def __call__(
        self, config: ClusterConfig, incarnation: int, services: Sequence[Service], stored: bytes | None, seq: int
    ) -> Core:
        self.made.append(Recorder(self.limit))
        return Core(config, incarnation, services, stored, seq, recorder=self.made[-1])

    def recordings(self) -> list[Recording]:
        """All of them, through a file."""
        return [through_a_file(recorder.take()) for recorder in self.made]


def through_a_file(recording: Recording) -> Recording:
    return Recording.read(b"".join(recording.chunks(reason="a test", wall_us=5, boot_us=2)), "here")


def faulty_run(recorders: Recorders) -> None:
    """Five nodes: messages of all kinds, a partition, a crash, a restart, a graceful leave."""
    with SimCluster(n=5, seed=3, core_factory=recorders) as cluster:
        cluster.settle()
        for round_ in range(20):
            for node in cluster.nodes.values():
                node.send(b"%d" % round_)
            cluster[1].send(size=150_000)
            cluster.advance(0.01)
        cluster.partition({1, 2}, {3, 4, 5})
        cluster.advance(3)
        cluster.crash(4)
        cluster.heal()
        cluster.advance(1)
        cluster.restart(4)
        cluster.settle()
        cluster[2].leave()
        cluster.advance(2)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    recorders = Recorders()
    faulty_run(recorders)
    return recorders.recordings()


def runs(recordings: Sequence[Recording]) -> list[Rerun]:
    return [rerun(recording, f"recording {index}") for index, recording in enumerate(recordings)]


# ---------------------------------------------------------------- the same again


def test_a_simulated_fault_replays_the_same(recordings: list[Recording]) -> None:
    assert len(recordings) == 6  # five nodes, one of them twice
    again = runs(recordings)
    assert all(r.inputs > 30 and not r.failure for r in again)
    views = [sum(isinstance(e, Viewed) and not e.view.transitional for e in r.events) for r in again]
    assert min(views) >= 1
    assert max(views) >= 4
    assert sum(isinstance(e, Delivered) for r in again for e in r.events) > 500
    assert judge(again) == []


@pytest.mark.parametrize("limit", [LARGE, 100_000])
def test_changes_of_the_set_of_nodes_replay(limit: int) -> None:
    """A node comes, one gets another vote, one goes; with a small limit the first checkpoint lies in between."""
    recorders = Recorders(limit)
    with SimCluster(n=3, seed=4, core_factory=recorders) as cluster:
        cluster.settle()
        new = Peer(4, "n4", ("127.0.0.1:7004",))
        cluster.enlist(new, (Peer(1, "n1", ("127.0.0.1:7001",)),)).start()
        for kind, what in (
            ("add", {"node": 4, "name": new.name, "addresses": list(new.addresses)}),
            ("set", {"node": 4, "votes": 2}),
            ("remove", {"node": 3}),
        ):
            cluster.disturbed()
            cluster[1].request(1, 5, "nodes", kind, what)
            for number in range(50):
                cluster[2].send(b"%d" % number)
                cluster.advance(0.05)
        assert cluster[4].view is not None
        assert cluster[4].view.nodes == (1, 2, 4)
    again = runs(recorders.recordings())
    assert len(again) == 4
    assert judge(again) == []
    assert any(run.ring.seq for run in again) == (limit < LARGE)


def test_recording_changes_nothing() -> None:
    def trace(factory: Recorders | None) -> str:
        more = {"core_factory": factory} if factory else {}
        with SimCluster(n=3, seed=8, **more) as cluster:
            cluster.settle()
            cluster[1].send(b"x")
            cluster.partition({1}, {2, 3})
            cluster.advance(3)
            return cluster.trace.hash

    assert trace(Recorders()) == trace(None)


def test_chaos_replays_from_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small limit the beginning is gone: the replay starts at some checkpoint, in whatever state."""
    again: list[Rerun] = []
    for seed in range(1, 5):
        recorders = Recorders(limit=100_000)
        monkeypatch.setattr(sys.modules[run.__module__], "SimCluster", partial(SimCluster, core_factory=recorders))
        assert run(draw(seed, 4, 4_000_000)).violation is None
        there = runs(recorders.recordings())
        assert judge(there) == []
        again += there
    assert sum(r.checkpoints for r in again) > 4
    assert any(r.ring.seq for r in again), "no recording began in the middle"


def test_an_exception_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorders = Recorders()
    with SimCluster(n=2, seed=1, core_factory=recorders) as cluster:
        cluster.settle()
        core = cluster[1].core
        assert isinstance(core, Core)
        monkeypatch.setattr("vsync.engine.operational.on_cancel", fail)
        with pytest.raises(ZeroDivisionError):
            core.receive(cancel_frame(cluster), 10**12)
        again = rerun(recorders.recordings()[0], "here")
    assert again.failure == "ZeroDivisionError: on purpose"


def fail(*arguments: object) -> None:
    raise ZeroDivisionError("on purpose")


def cancel_frame(cluster: SimCluster) -> bytes:
    from vsync.wire import Cancel, FrameType, encode_cancel

    engine = cluster[2].core.engine  # type: ignore[attr-defined]
    return encode_cancel(engine.header(FrameType.CANCEL), Cancel(engine.ring.id))


# ---------------------------------------------------------------- what is wrong is found


def changed(recording: Recording, kind: int, change: Callable[[list[Any]], object], which: int = 20) -> Recording:
    """The recording with its ``which``-th record of this kind changed."""
    records = [list(record) for record in recording.records]
    change([record for record in records if record[0] == kind][which])
    return Recording(recording.head, [tuple(record) for record in records])


def test_other_outputs_are_a_divergence(recordings: list[Recording]) -> None:
    def other(record: list[Any]) -> None:
        record[2] ^= 1

    with pytest.raises(Divergence, match=r"here: input \d+ at \d+ µs: \d outputs with digest"):
        rerun(changed(recordings[0], OUT, other), "here")


def test_a_lost_input_is_a_divergence(recordings: list[Recording]) -> None:
    inputs = [i for i, r in enumerate(recordings[0].records) if r[0] == RECEIVE]
    records = list(recordings[0].records)
    del records[inputs[40]]
    with pytest.raises(Divergence):
        rerun(Recording(recordings[0].head, records), "here")


def test_another_state_is_a_divergence() -> None:
    recorders = Recorders(limit=100_000)
    with SimCluster(n=2, seed=1, core_factory=recorders) as cluster:
        cluster.advance(5)
    recording = recorders.recordings()[0]
    state = [r for r in recording.records if r[0] == CHECKPOINT][1][1]
    pair = next(pair for pair in state[1] if pair[0] == "tokens")
    pair[1] += 1
    with pytest.raises(Divergence, match="another state than the checkpoint there: tokens"):
        rerun(recording, "here")


def test_different_messages_break_a_rule(recordings: list[Recording]) -> None:
    again = runs(recordings)
    event = next(e for e in again[2].events if isinstance(e, Delivered))
    event.digest ^= 1
    assert [v.rule for v in judge(again)] == ["EVS-E19"]


def test_a_left_out_message_breaks_a_rule(recordings: list[Recording]) -> None:
    again = runs(recordings)
    delivered = [i for i, e in enumerate(again[0].events) if isinstance(e, Delivered)]
    del again[0].events[delivered[5]]
    assert next(v.rule for v in judge(again)) in ("EVS-E13", "EVS-E16")


def test_a_forged_view_breaks_a_rule(recordings: list[Recording]) -> None:
    again = runs(recordings)
    views = [e for e in again[0].events if isinstance(e, Viewed)]
    again[0].events.append(views[0])
    assert [v.rule for v in judge(again)] == ["EVS-E7"]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda data: b"", "is not a recording of the flight recorder"),
        (lambda data: b"PK" + data, "is not a recording of the flight recorder"),
        (lambda data: MAGIC + b"\x00\x09" + data[10:], "is of format 9, this release reads 1"),
        (lambda data: data[: len(data) // 2], "is damaged or was changed"),
        (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "is damaged or was changed"),
    ],
)
def test_a_damaged_file_is_refused(
    damage: Callable[[bytes], bytes],
    text: str,
    recordings: list[Recording],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(damage(whole(recordings[0])))
    assert main(["--replay", str(path)], "vsync.testing", lambda seed: ()) == 1
    assert capsys.readouterr().out.startswith(f"vsync.testing: {path}: {text}")


def whole(recording: Recording) -> bytes:
    """The bytes of a file. (A recording that was read holds its checkpoints as plain data already.)"""
    records = [(r[0], snapshot.decode(r[1])) if r[0] == CHECKPOINT else r for r in recording.records]
    return b"".join(Recording(recording.head, records).chunks())


def test_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--replay", "/nowhere/at/all"], "vsync.testing", lambda seed: ()) == 1
    assert capsys.readouterr().out == "vsync.testing: /nowhere/at/all: cannot be read: No such file or directory\n"


def test_nothing_foreign_is_made_of_a_file() -> None:
    forged = ["o", "Ring", [["__class__", 1]]]
    for raw in (["o", "Popen", []], ["n", "Engine", []], ["e", "Ring", "x"], ["x", []], forged):
        with pytest.raises(ValueError, match="a checkpoint has"):
            snapshot.decode(raw)
    with pytest.raises(TypeError, match="a checkpoint cannot hold a"):
        snapshot.encode(Path("x"))


def test_several_files_tell_one_story(
    recordings: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for index, recording in enumerate(recordings):
        files.append(str(tmp_path / f"{index}.rec"))
        Path(files[-1]).write_bytes(whole(recording))
    assert main(["--replay", *files], "vsync.testing", lambda seed: ()) == 0
    out = capsys.readouterr().out
    assert "node n1 (1) of sim" in out
    assert "view_change" in out
    assert out.endswith("every output as it was live; no rule is broken\n")


# ---------------------------------------------------------------- the recorder itself


def test_every_input_of_the_engine_is_recorded() -> None:
    inputs = {
        name
        for name, method in vars(Engine).items()
        if not name.startswith("_") and inspect.isfunction(method) and "now" in inspect.signature(method).parameters
    }
    assert inputs - {"installed", "give_up"} == set(INPUTS)  # these two are for the engine's own phases
    for name in INPUTS:
        assert name in vars(RecordedEngine), name
        assert inspect.signature(getattr(RecordedEngine, name)) == inspect.signature(getattr(Engine, name))


def test_a_checkpoint_is_independent_and_complete() -> None:
    """An engine made of a checkpoint goes on exactly as the first one, whatever that one did in between."""
    with SimCluster(n=3, seed=5) as cluster:
        cluster.settle()
        cluster[2].send(size=200_000)
        cluster.advance(0.001)
        core = cluster[1].core
        assert isinstance(core, Core)
        state = snapshot.capture(core.engine)
        plain = snapshot.encode(state)
        cluster.partition({1}, {2, 3})
        cluster.advance(3)
        assert snapshot.encode(state) == plain
        assert snapshot.encode(snapshot.capture(core.engine)) != plain
        twin = snapshot.restore(snapshot.decode(plain), core.config, lambda *case: b"", decode_upper)
        assert snapshot.encode(snapshot.capture(twin)) == plain


def test_memory_is_bounded_and_the_newest_is_kept() -> None:
    recorders = Recorders(limit=1_000_000)
    with SimCluster(n=3, seed=5, core_factory=recorders) as cluster:
        cluster.settle()
        for _ in range(300):
            cluster[1].send(size=30_000)
            cluster.advance(0.02)
        written = b"".join(recorders.made[1].take().chunks())
        assert 300_000 < len(written) < 1_500_000
        again = rerun(Recording.read(written, "here"), "here")
    last = [e for e in again.events if isinstance(e, Delivered)][-1]
    assert last.origin.node == 1
    assert again.ring.seq  # not from the beginning


def test_the_digest_tells_outputs_apart(recordings: list[Recording]) -> None:
    from vsync.engine.outputs import Note, Persist, Send, Stopped

    lists: list[list[Any]] = [
        [], [Send((1,), b"a")], [Send((2,), b"a")], [Send((1,), b"b")], [Send((1,), b"a" * 300)],
        [Persist(b"a")], [Note("a")], [Note("a", {"x": 1})], [Stopped("a")], [Send((1,), b"a"), Persist(b"a")],
        [Persist(b"a"), Send((1,), b"a")],
    ]  # fmt: skip
    assert len({digest(outputs) for outputs in lists}) == len(lists)


def test_no_key_is_written(recordings: list[Recording]) -> None:
    config = recordings[0].config
    assert [p.node for p in config.peers] == [1, 2, 3, 4, 5]
    assert not any("key" in name for name in recordings[0].head["config"])


def test_a_file_of_another_release_is_refused(recordings: list[Recording]) -> None:
    records = [*recordings[0].records]
    records[0] = (CHECKPOINT, ["d", [["state", ["e", "Mood", "GOOD"]]]])
    with pytest.raises(RecordingError, match="this release cannot run it: a checkpoint has a Mood"):
        rerun(Recording(recordings[0].head, records), "here")


# ---------------------------------------------------------------- files


def test_the_newest_dumps_are_kept(tmp_path: Path) -> None:
    recorders = Recorders()
    with SimCluster(n=1, seed=1, core_factory=recorders) as cluster:
        cluster.settle()
    dumps = Dumps(recorders.made[0], tmp_path / "flight")
    paths = [dumps.write(f"for no reason {number}") for number in range(10)]
    kept = sorted((tmp_path / "flight").iterdir())
    assert kept == paths[-8:]
    assert kept[-1].stat().st_mode & 0o777 == 0o600
    recording = Recording.read(kept[-1].read_bytes(), "here")
    assert recording.head["reason"] == "for no reason 9"
    assert kept[-1].name.endswith("Z-for-no-reason-9.rec")


def test_a_dump_that_cannot_be_written_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "flight").write_text("a file")
    recorders = Recorders()
    with SimCluster(n=1, seed=1, core_factory=recorders) as cluster:
        cluster.settle()
    assert Dumps(recorders.made[0], tmp_path / "flight").write("x") is None


def test_a_core_that_fails_leaves_a_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = (Peer(1, "a", ("127.0.0.1:1",)),)
    with vsync.Node(
        config=ClusterConfig("x", 1, peers), transport=MemoryHub().transport(1), state_dir=tmp_path, services=()
    ) as node:
        group = node.join("g")
        monkeypatch.setattr("vsync.engine.operational.wake", fail)
        with pytest.raises(NotConnected):
            group.send(b"x", wait=True)
        assert node.wait(20)
        assert isinstance(node.failure, ZeroDivisionError)
    (dump,) = (tmp_path / "flight").iterdir()
    recording = Recording.read(dump.read_bytes(), "here")
    monkeypatch.undo()
    assert rerun(recording, "here").inputs > 2
    assert recording.head["reason"] == "crash: ZeroDivisionError('on purpose')"


@pytest.mark.live
def test_a_live_fault_replays_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three daemons, a kill; dumps by the command and by SIGUSR2; the command line runs them again."""
    with LocalCluster(3) as cluster:
        with vsync.connect(cluster["a"].url) as client:
            group = client.join("g")
            for number in range(50):
                group.send(b"%d" % number)
            cluster.kill("c")
            cluster.wait_view(["a", "b"])
        assert cli(["record", "dump", "--url", cluster["a"].url, str(tmp_path / "a.rec")]) == 0
        assert capsys.readouterr().out.startswith(f"{tmp_path / 'a.rec'}  ")
        os.kill(cluster["b"].pid, signal.SIGUSR2)
        flight = cluster.folder / "b" / "flight"
        (dump,) = until(lambda: sorted(flight.glob("*-sigusr2.rec")), "the dump")
        assert main(["--replay", str(tmp_path / "a.rec"), str(dump)], "vsync.testing", lambda seed: ()) == 0
        out = capsys.readouterr().out
        assert "node a (1) of local" in out
        assert "node b (2) of local" in out
        assert out.endswith("every output as it was live; no rule is broken\n")


@pytest.mark.live
def test_the_recorder_can_be_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LocalCluster(1) as cluster:
        cluster.leave("a")
        config = cluster["a"].config
        config.write_text(config.read_text().replace("[daemon]", "[daemon]\nrecorder_mb = 0"))
        cluster.restart("a")
        cluster.wait_view(["a"])
        assert cli(["record", "dump", "--url", cluster["a"].url]) == 1
        assert "the flight recorder is off: set [daemon] recorder_mb" in capsys.readouterr().err
