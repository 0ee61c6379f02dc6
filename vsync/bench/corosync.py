"""Three corosync daemons on this machine, as a subject of the bench: the yardstick beside our own figures.

Each runs in a network namespace of its own, as corosync's nodes must differ by address. Defaults of corosync, no
encryption unless it is asked for. Needs root, iproute2, corosync and libcpg. A process group, one member a node,
tells the views; a node's member is back when its program has joined again.
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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vsync.bench import netns
from vsync.bench.subject import NotSeen, Watch
from vsync.testcluster import die_with_parent

__all__ = ["CorosyncSubject", "missing"]

PREFIX = "vsbench"
NET = "10.97"
START_S = 30.0
REST_S = 1.0
KEY_BYTES = 1024


def missing() -> str:
    """Why corosync cannot be measured here; empty if it can."""
    for program, package in (("corosync", "corosync"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            return f"{program} is not installed (package {package})"
    if ctypes.util.find_library("cpg") is None:
        return "libcpg is not installed (package libcpg4)"
    return netns.missing()


class CorosyncSubject:
    """See ``Subject``. Nodes are called 1, 2, 3."""

    names = ("1", "2", "3")

    def __init__(self, *, encrypted: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vsync-corosync-"))
        self._crypto = _crypto(self.folder / "key") if encrypted else ""
        self.network = netns.Network(PREFIX, NET, map(int, self.names))
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

    def cut(self, name: str) -> None:
        """Its cable is pulled."""
        self.network.cut(int(name))

    def mend(self, name: str) -> None:
        """Its cable is back."""
        self.network.mend(int(name))

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
            self.network.make()
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
        self.network.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str) -> None:
        """A daemon with a ``/run`` of its own, where its pid file lies, and a group member beside it."""
        folder = self.folder / name
        for sub in ("state", "run"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        config = folder / "corosync.conf"
        addresses = {name: self.network.address(int(name)) for name in self.names}
        config.write_text(_config(addresses, folder, self._crypto))
        script = 'mount --bind "$0" /run && exec corosync -f -c "$1"'
        inside = self.network.inside(int(name))
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


def _crypto(key: Path) -> str:
    """Make a key, and say how it is used."""
    key.write_bytes(os.urandom(KEY_BYTES))
    key.chmod(0o400)
    return f"  crypto_cipher: aes256\n  crypto_hash: sha256\n  keyfile: {key}\n"


def _config(addresses: Mapping[str, str], folder: Path, crypto: str) -> str:
    node = "  node {{\n    nodeid: {0}\n    name: n{0}\n    ring0_addr: {1}\n  }}"
    nodes = [node.format(*each) for each in addresses.items()]
    return "\n".join(
        [
            f"totem {{\n  version: 2\n  cluster_name: bench\n  transport: knet\n{crypto}}}",
            "nodelist {", *nodes, "}",
            "quorum {\n  provider: corosync_votequorum\n}",
            f"system {{\n  state_dir: {folder}/state\n  sched_rr: no\n  priority: min\n}}",
            "logging {\n  to_stderr: yes\n  to_syslog: no\n}",
        ]
    ) + "\n"  # fmt: skip
