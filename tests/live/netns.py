"""Three daemons in network namespaces of their own, so that cables can be cut for real.

Bridge ``vsnet0``, namespaces ``vsnet1..3``, addresses 10.96.0.1..3. Their Unix sockets are reached from outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from vsync.testcluster import LocalCluster, LocalNode, die_with_parent

__all__ = ["NetnsCluster", "missing"]

PREFIX = "vsnet"
BRIDGE = f"{PREFIX}0"
NET = "10.96.0"
NOBODY = "02:00:00:00:00:ee"  #: a link-layer address that no interface has


def missing() -> str:
    """Why this cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "ip is not installed (package iproute2)"
    allowed = ip("netns", "add", f"{PREFIX}probe", check=False)
    ip("netns", "del", f"{PREFIX}probe", check=False)
    return "" if allowed else "network namespaces are not allowed here"


def ip(*words: str, check: bool = True) -> bool:
    """Run ``ip``; whether it succeeded."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.returncode == 0


class NetnsCluster(LocalCluster):
    """Nodes a, b, c. ``cut`` pulls a node's cable, ``mend`` puts it in again; ``deafen`` loses one direction."""

    def __init__(self, timing: Mapping[str, float] | None = None, **more: str) -> None:
        super().__init__(3, timing=timing, settings=more)
        for node in self.nodes:
            node.addresses = (f"{NET}.{node.id}:7400",)
        for node in self.nodes:
            node.config.write_text(self._configuration(node, timing or {}))

    def cut(self, name: str) -> None:
        """The cable of this node is pulled: its interface loses the carrier."""
        ip("link", "set", self._port(self[name]), "down")

    def mend(self, name: str) -> None:
        """The cable is back."""
        ip("link", "set", self._port(self[name]), "up")

    def unplug_switch_side(self, name: str) -> None:
        """The node's port leaves the bridge: the carrier stays, so that nobody is told."""
        ip("link", "set", self._port(self[name]), "nomaster")

    def plug_switch_side(self, name: str) -> None:
        """The reverse of ``unplug_switch_side``."""
        ip("link", "set", self._port(self[name]), "master", BRIDGE)

    def deafen(self, sender: str, receiver: str) -> None:
        """What ``sender`` sends to ``receiver`` goes nowhere; nobody is told, and the other way is open."""
        where = f"{NET}.{self[receiver].id}"
        words = ("neigh", "replace", where, "lladdr", NOBODY, "dev", "e0", "nud", "permanent")
        ip("-n", self._space(self[sender]), *words)

    def undeafen(self, sender: str, receiver: str) -> None:
        """The reverse of ``deafen``."""
        ip("-n", self._space(self[sender]), "neigh", "del", f"{NET}.{self[receiver].id}", "dev", "e0")

    def __enter__(self) -> Self:
        try:
            self._make_network()
            super().__enter__()
        except BaseException:
            self._remove_network()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._remove_network()

    @staticmethod
    def _space(node: LocalNode) -> str:
        return f"{PREFIX}{node.id}"

    @staticmethod
    def _port(node: LocalNode) -> str:
        return f"{PREFIX}l{node.id}"

    def _make_network(self) -> None:
        self._remove_network()  # what a run that was killed left behind
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for node in self.nodes:
            space, port = self._space(node), self._port(node)
            ip("netns", "add", space)
            ip("link", "add", port, "type", "veth", "peer", "name", "e0", "netns", space)
            ip("link", "set", port, "master", BRIDGE, "up")
            ip("-n", space, "addr", "add", f"{NET}.{node.id}/24", "dev", "e0")
            ip("-n", space, "link", "set", "e0", "up")
            ip("-n", space, "link", "set", "lo", "up")

    def _remove_network(self) -> None:
        for node in self.nodes:
            ip("netns", "del", self._space(node), check=False)
            ip("link", "del", self._port(node), check=False)
        ip("link", "del", BRIDGE, check=False)

    def _start(self, node: LocalNode) -> None:
        inside = ["ip", "netns", "exec", self._space(node)]  # replaced by the program: its pid is the daemon's
        with open(node.log, "ab") as log:
            node.process = subprocess.Popen(
                [*inside, sys.executable, "-m", "vsync.daemon", "--config", str(node.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
                process_group=0,
            )
