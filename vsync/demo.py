"""``vsync demo``: a cluster of real daemons on the loopback, and what happens when a node of it is killed.

This module starts the cluster, tells of its views and keeps the time; what is shown are *acts*: functions
found in the entry point group ``vsync.demo``, called with the ``Stage``. The lock manager brings one. An
act that returns has succeeded; one that raises ``ActFailed`` has not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import entry_points
from typing import Any

from vsync import client
from vsync.errors import NotConnected, RequestFailed, VsyncError
from vsync.testcluster import ClusterError, LocalCluster

__all__ = ["ACTS", "Act", "ActFailed", "Stage", "main"]

ACTS = "vsync.demo"  #: entry point group
SCHEMA = 1
MAX_NODES = 16
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ActFailed(VsyncError):
    """What was to be shown did not happen; the text is the reason."""


class Stage:
    """What an act has: the cluster, and a voice. ``say`` may be called by any thread."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._began = time.monotonic()
        self._voice = threading.Lock()

    def say(self, who: str, text: str) -> None:
        """Print one line: seconds since the start, who, what."""
        with self._voice:
            print(f"{time.monotonic() - self._began:6.2f} s  {who:<8} {text}", flush=True)


Act = Callable[[Stage], None]


def main(arguments: Sequence[str]) -> int:
    """Run the demo; returns 0, or 1 after telling a reason on stderr, or 128+n when signal n ended it."""
    options = _parse(arguments)
    try:
        with _ended_by_signals():
            cluster = LocalCluster(options.nodes, name="demo")
            try:
                if options.keep:
                    _keep(cluster, options.json)
                else:
                    _show(cluster)
            finally:
                _hold_signals()
                cluster.close()
    except _Ended as end:
        return 128 + end.number
    except (ClusterError, ActFailed) as error:
        print(f"vsync demo: failed: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="vsync demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave a cluster running until Ctrl-C")
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help=f"2 to {MAX_NODES}; default 3")
    parser.add_argument("--json", action="store_true", help="with --keep: one line when it is ready")
    options = parser.parse_args(list(arguments))
    if options.json and not options.keep:
        parser.error("--json goes with --keep")
    if not (1 if options.keep else 3) <= options.nodes <= MAX_NODES:
        parser.error(f"--nodes is 3 to {MAX_NODES} (with --keep also 1 and 2: two of three must go on)")
    return options


# -- the demo


def _show(cluster: LocalCluster) -> None:
    stage = Stage(cluster)
    stage.say("demo", f"starting {len(cluster.nodes)} vsyncd on the loopback, in {cluster.folder}")
    with contextlib.closing(_Views(stage)):
        cluster.start()
        for name, act in _acts():
            try:
                act(stage)
            except NotConnected as error:
                raise ActFailed(f"{name}: {error}") from error
    stage.say("demo", "done")


def _acts() -> list[tuple[str, Act]]:
    # The same distribution can be found twice (an editable install beside a source directory).
    points = {(point.name, point.value): point for point in entry_points(group=ACTS)}
    return [(point.name, point.load()) for _, point in sorted(points.items())] or [("members", _members_act)]


def _members_act(stage: Stage) -> None:
    """Without any service: a node is killed, the others go on, it comes back."""
    cluster = stage.cluster
    stage.say("demo", "no installed package brings an act (entry point group vsync.demo): membership alone")
    last = cluster.names[-1]
    stage.say("demo", f"kill -9 node {last} (pid {cluster[last].pid})")
    cluster.kill(last)
    cluster.wait_view(cluster.names[:-1])
    stage.say("demo", f"restarting node {last}")
    cluster.restart(last)
    cluster.wait_view(cluster.names)


class _Views:
    """Tells of every regular view once, by whoever has it first."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        for node in stage.cluster.nodes:
            threading.Thread(target=self._follow, args=(node.name, node.url), daemon=True).start()

    def close(self) -> None:
        """Say nothing any more."""
        self._over.set()

    def _follow(self, name: str, url: str) -> None:
        while not self._over.wait(0.05):
            try:
                with client.connect(url, "demo") as session:
                    for view in session.views():
                        self._tell(name, view)
            except (NotConnected, RequestFailed, TimeoutError):
                continue  # not up yet, or killed: it may be restarted

    def _tell(self, name: str, view: client.ClusterView) -> None:
        with self._lock:
            if view.transitional or view.id in self._told or self._over.is_set():
                return
            self._told.add(view.id)
        members = " ".join(member.name for member in view.members)
        changes = [f"+{member.name}" for member in view.joined] + [f"-{member.name}" for member in view.left]
        verdict = "primary" if view.primary else "not primary"
        self._stage.say(f"node {name}", f"view {view.id}: {members} ({verdict}) {' '.join(changes)}".rstrip())


# -- a cluster to keep


def _keep(cluster: LocalCluster, as_json: bool) -> None:
    cluster.start()
    if as_json:
        print(json.dumps(_description(cluster)), flush=True)
    else:
        _invite(cluster)
    with contextlib.suppress(_Ended):  # this is how it is meant to end
        while True:
            signal.pause()


def _description(cluster: LocalCluster) -> dict[str, Any]:
    nodes = [node.to_json() for node in cluster.nodes]
    return {"v": SCHEMA, "VSYNC_URL": cluster.nodes[0].url, "nodes": nodes}


def _invite(cluster: LocalCluster) -> None:
    print(f"{len(cluster.nodes)} nodes are up, in {cluster.folder}:")
    for node in cluster.nodes:
        print(f"  {node.name}  pid {node.pid}  {node.url}")
    print("\nIn another terminal:\n")
    print(f"  export VSYNC_URL={cluster.nodes[0].url}")
    print("  vsync status")
    print("\nRestart a node that you have killed with: vsyncd --config FOLDER/NAME.toml")
    print("Ctrl-C ends all of them.", flush=True)


# -- signals


class _Ended(BaseException):
    """A signal asks us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn signals into ``_Ended`` in the main thread, for as long as the block lasts."""

    def end(number: int, frame: object) -> None:
        _hold_signals()
        raise _Ended(number)

    old = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _hold_signals() -> None:
    """Cleaning up is not interrupted; it is short."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
