"""Networks of namespaces on this machine, one namespace a node, so that cables can be cut for real. Needs root.

Every link is a bridge ``<prefix>b<link>``; node *n* lives in namespace ``<prefix><n>``, with interfaces
``e<link>`` and addresses ``<net>.<link>.<n>``. The Unix sockets of what runs there are reached from outside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster, LocalNode, die_with_parent

__all__ = ["NetnsCluster", "Network", "missing"]

NOBODY = "02:00:00:00:00:ee"  #: a link-layer address that no interface has


def missing() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "ip is not installed (package iproute2)"
    probe = f"vsprobe{os.getpid()}"
    allowed = ip("netns", "add", probe, check=False)
    ip("netns", "del", probe, check=False)
    return "" if allowed else "network namespaces are not allowed here"


def ip(*words: str, check: bool = True) -> bool:
    """Run ``ip``; whether it succeeded. Raises ``VsyncError`` if it did not, unless told not to."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise VsyncError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.returncode == 0


class Network:
    """``nodes`` (their numbers) joined by ``links`` bridges. ``prefix`` has at most 9 characters."""

    def __init__(self, prefix: str, net: str, nodes: Iterable[int], links: int = 1) -> None:
        self._prefix = prefix
        self._net = net
        self._nodes = list(nodes)
        self._links = range(links)

    def address(self, node: int, link: int = 0) -> str:
        """Of a node on a link."""
        return f"{self._net}.{link}.{node}"

    def inside(self, node: int) -> list[str]:
        """What to put before a command that is to run there; replaced by it, so that the process id is its."""
        return ["ip", "netns", "exec", self._space(node)]

    def cut(self, node: int, link: int = 0) -> None:
        """The cable of this node is pulled: its interface loses the carrier."""
        ip("link", "set", self._port(node, link), "down")

    def mend(self, node: int, link: int = 0) -> None:
        """The cable is back."""
        ip("link", "set", self._port(node, link), "up")

    def unplug(self, node: int, link: int = 0) -> None:
        """The node's port leaves the bridge: the carrier stays, so that nobody is told."""
        ip("link", "set", self._port(node, link), "nomaster")

    def plug(self, node: int, link: int = 0) -> None:
        """The reverse of ``unplug``."""
        ip("link", "set", self._port(node, link), "master", self._bridge(link))

    def split(self, groups: Sequence[Iterable[int]], link: int = 0) -> None:
        """The switch falls apart: each group has one of its own from now on. The carriers stay."""
        for number, group in enumerate(groups):
            bridge = self._island(number) if number else self._bridge(link)
            if number:
                ip("link", "add", bridge, "type", "bridge", check=False)
                ip("link", "set", bridge, "up")
            for node in group:
                ip("link", "set", self._port(node, link), "master", bridge)

    def join(self, link: int = 0) -> None:
        """The reverse of ``split``."""
        for node in self._nodes:
            self.plug(node, link)
        self._remove_islands()

    def blackhole(self, sender: int, receiver: int) -> None:
        """``sender`` has no way to ``receiver``, and its own kernel tells it so; the other way is open."""
        ip("-n", self._space(sender), "route", "replace", "blackhole", f"{self.address(receiver)}/32")

    def unblackhole(self, sender: int, receiver: int) -> None:
        """The reverse of ``blackhole``."""
        ip("-n", self._space(sender), "route", "del", "blackhole", f"{self.address(receiver)}/32")

    def deafen(self, sender: int, receiver: int) -> None:
        """What ``sender`` sends to ``receiver`` goes nowhere; nobody is told, and the other way is open."""
        words = ("neigh", "replace", self.address(receiver), "lladdr", NOBODY, "dev", "e0", "nud", "permanent")
        ip("-n", self._space(sender), *words)

    def undeafen(self, sender: int, receiver: int) -> None:
        """The reverse of ``deafen``."""
        ip("-n", self._space(sender), "neigh", "del", self.address(receiver), "dev", "e0")

    def make(self) -> None:
        """Build it; what a run that was killed left behind is removed."""
        self.remove()
        for link in self._links:
            ip("link", "add", self._bridge(link), "type", "bridge")
            ip("link", "set", self._bridge(link), "up")
        for node in self._nodes:
            space = self._space(node)
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            for link in self._links:
                port, end = self._port(node, link), f"e{link}"
                ip("link", "add", port, "type", "veth", "peer", "name", end, "netns", space)
                ip("link", "set", port, "master", self._bridge(link), "up")
                ip("-n", space, "addr", "add", f"{self.address(node, link)}/24", "dev", end)
                ip("-n", space, "link", "set", end, "up")

    def remove(self) -> None:
        """Take it away, as far as it is there."""
        for node in self._nodes:
            ip("netns", "del", self._space(node), check=False)
            for link in self._links:
                ip("link", "del", self._port(node, link), check=False)
        for link in self._links:
            ip("link", "del", self._bridge(link), check=False)
        self._remove_islands()

    def _remove_islands(self) -> None:
        for number in range(1, len(self._nodes)):
            ip("link", "del", self._island(number), check=False)

    def _space(self, node: int) -> str:
        return f"{self._prefix}{node}"

    def _port(self, node: int, link: int) -> str:
        return f"{self._prefix}p{node}l{link}"

    def _bridge(self, link: int) -> str:
        return f"{self._prefix}b{link}"

    def _island(self, number: int) -> str:
        return f"{self._prefix}s{number}"


class NetnsCluster(LocalCluster):
    """Nodes a, b, c, … in a network of their own. ``cut``, ``mend``, … do what those of ``Network`` do, by name."""

    def __init__(
        self,
        timing: Mapping[str, float] | None = None,
        *,
        nodes: int = 3,
        folder: str | os.PathLike[str] | None = None,
        links: int = 1,
        prefix: str = "vsnet",
        net: str = "10.96",
        **more: str,
    ) -> None:
        super().__init__(nodes, folder=folder, timing=timing, settings=more)
        self.network = Network(prefix, net, [node.id for node in self.nodes], links)
        for node in self.nodes:
            node.addresses = tuple(f"{self.network.address(node.id, link)}:7400" for link in range(links))
        for node in self.nodes:
            node.config.write_text(self._configuration(node, timing or {}))

    def cut(self, name: str, link: int = 0) -> None:
        """See ``Network``."""
        self.network.cut(self[name].id, link)

    def mend(self, name: str, link: int = 0) -> None:
        """See ``Network``."""
        self.network.mend(self[name].id, link)

    def unplug(self, name: str, link: int = 0) -> None:
        """See ``Network``."""
        self.network.unplug(self[name].id, link)

    def plug(self, name: str, link: int = 0) -> None:
        """See ``Network``."""
        self.network.plug(self[name].id, link)

    def deafen(self, sender: str, receiver: str) -> None:
        """See ``Network``."""
        self.network.deafen(self[sender].id, self[receiver].id)

    def undeafen(self, sender: str, receiver: str) -> None:
        """See ``Network``."""
        self.network.undeafen(self[sender].id, self[receiver].id)

    def split(self, *groups: Iterable[str]) -> None:
        """See ``Network``."""
        self.network.split([[self[name].id for name in group] for group in groups])

    def join(self) -> None:
        """See ``Network``."""
        self.network.join()

    def blackhole(self, sender: str, receiver: str) -> None:
        """See ``Network``."""
        self.network.blackhole(self[sender].id, self[receiver].id)

    def unblackhole(self, sender: str, receiver: str) -> None:
        """See ``Network``."""
        self.network.unblackhole(self[sender].id, self[receiver].id)

    def __enter__(self) -> Self:
        try:
            self.network.make()
            super().__enter__()
        except BaseException:
            self.network.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self.network.remove()

    def _start(self, node: LocalNode) -> None:
        command = [sys.executable, "-m", "vsync.daemon", "--config", str(node.config)]
        with open(node.log, "ab") as log:
            node.process = subprocess.Popen(
                [*self.network.inside(node.id), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),
                process_group=0,
            )
