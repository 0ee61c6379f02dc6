"""Three corosync daemons on this machine, as a subject of the bench: the yardstick beside our own figures.

Each runs in a network namespace of its own, as corosync's nodes must differ by address: bridge ``vsbench0``,
namespaces ``vsbench1..3``, addresses 10.97.0.1..3. Defaults of corosync, no encryption. Needs root, iproute2,
corosync and libcpg. A process group, one member a node, tells the views; a node's member is back when its program
has joined again.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vsync.bench.subject import NotSeen, Watch
from vsync.errors import VsyncError
from vsync.testcluster import die_with_parent

__all__ = ["CorosyncSubject", "missing"]

PREFIX = "vsbench"
BRIDGE = f"{PREFIX}0"
NET = "10.97.0"
START_S = 30.0
REST_S = 1.0


def missing() -> str:
    """Why corosync cannot be measured here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    for program, package in (("corosync", "corosync"), ("ip", "iproute2"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            return f"{program} is not installed (package {package})"
    if ctypes.util.find_library("cpg") is None:
        return "libcpg is not installed (package libcpg4)"
    probe = subprocess.run(["ip", "netns", "add", f"{PREFIX}probe"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", f"{PREFIX}probe"], capture_output=True, check=False)
    return "" if probe.returncode == 0 else "network namespaces are not allowed here"


class CorosyncSubject:
    """See ``Subject``. Nodes are called 1, 2, 3."""

    names = ("1", "2", "3")

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vsync-corosync-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: dict[str, subprocess.Popen[str]] = {}
        self._followers: list[threading.Thread] = []
        self._watch = Watch(())
        self._lock = threading.Lock()
        self._present: dict[str, tuple[list[str], int]] = {}  # by watcher: the members it was told last, and when

    # -- Subject

    @contextlib.contextmanager
    def watch(self, names: Iterable[str]) -> Iterator[Watch]:
        """The members of the process group, as told to the members at these nodes."""
        watch = Watch(names)
        with self._lock:
            self._watch = watch
            for name in names:
                watch.saw(name, *self._present.get(name, ([], 0)))
        yield watch
        with self._lock:
            self._watch = Watch(())

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self._daemons[name].kill()

    def terminate(self, name: str) -> None:
        """SIGTERM."""
        self._daemons[name].terminate()

    def stop(self, name: str) -> None:
        """SIGSTOP."""
        self._daemons[name].send_signal(signal.SIGSTOP)

    def cont(self, name: str) -> None:
        """SIGCONT."""
        self._daemons[name].send_signal(signal.SIGCONT)

    def restart(self, name: str) -> None:
        """Start daemon and group member again, when the old ones have ended."""
        processes: list[subprocess.Popen[Any]] = [self._daemons[name], self._watchers[name]]
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self._start(name)

    def settle(self) -> None:
        """One view of all, then rest."""
        with self.watch(self.names) as watch:
            watch.until(self.names, START_S)
        time.sleep(REST_S)

    # -- life

    def __enter__(self) -> Self:
        try:
            self._make_network()
            for name in self.names:
                self._start(name)
            self.settle()
        except BaseException as e:
            logs = "".join(p.read_text(errors="replace")[-800:] for p in sorted(self.folder.glob("*.out")))
            self.close()
            if isinstance(e, NotSeen):
                raise NotSeen(f"corosync did not form a ring of three: {logs}") from e
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything and take the network away."""
        processes: list[subprocess.Popen[Any]] = [*self._watchers.values(), *self._daemons.values()]
        for process in processes:
            process.kill()
            process.wait()
        for follower in self._followers:
            follower.join(5)
        self._remove_network()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_network(self) -> None:
        for name in self.names:
            _ip("netns", "del", f"{PREFIX}{name}", check=False)
        _ip("link", "del", BRIDGE, check=False)

    def _make_network(self) -> None:
        self._remove_network()  # what a run that was killed left behind
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("link", "set", BRIDGE, "up")
        for name in self.names:
            space = f"{PREFIX}{name}"
            _ip("netns", "add", space)
            _ip("link", "add", f"{PREFIX}l{name}", "type", "veth", "peer", "name", "e0", "netns", space)
            _ip("link", "set", f"{PREFIX}l{name}", "master", BRIDGE, "up")
            _ip("-n", space, "addr", "add", f"{NET}.{name}/24", "dev", "e0")
            _ip("-n", space, "link", "set", "e0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _start(self, name: str) -> None:
        """A daemon with a ``/run`` of its own, where its pid file lies, and a group member beside it."""
        folder = self.folder / name
        for sub in ("state", "run"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        config = folder / "corosync.conf"
        config.write_text(_config(self.names, folder))
        script = 'mount --bind "$0" /run && exec corosync -f -c "$1"'
        inside = ["ip", "netns", "exec", f"{PREFIX}{name}"]
        with open(self.folder / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                [*inside, "unshare", "-m", "sh", "-c", script, str(folder / "run"), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent(),
            )
        self._watchers[name] = subprocess.Popen(
            [*inside, sys.executable, "-m", "vsync.bench.cpg_watch"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(),
        )
        follower = threading.Thread(target=self._follow, args=(name, self._watchers[name]), daemon=True)
        follower.start()
        self._followers.append(follower)

    def _follow(self, name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                at, nodes = json.loads(line)
                with self._lock:
                    self._present[name] = ([str(node) for node in nodes], at)
                    self._watch.saw(name, *self._present[name])


def _config(names: Iterable[str], folder: Path) -> str:
    nodes = [f"  node {{\n    nodeid: {n}\n    name: n{n}\n    ring0_addr: {NET}.{n}\n  }}" for n in names]
    return "\n".join(
        [
            "totem {\n  version: 2\n  cluster_name: bench\n  transport: knet\n}",
            "nodelist {", *nodes, "}",
            "quorum {\n  provider: corosync_votequorum\n}",
            f"system {{\n  state_dir: {folder}/state\n  sched_rr: no\n  priority: min\n}}",
            "logging {\n  to_stderr: yes\n  to_syslog: no\n}",
        ]
    ) + "\n"  # fmt: skip


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise VsyncError(f"ip {' '.join(words)}: {done.stderr.strip()}")
