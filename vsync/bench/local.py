"""Three ``vsyncd`` on this machine, as a subject of the bench: on the loopback, or in network namespaces."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from vsync import client
from vsync.bench.netns import NetnsCluster
from vsync.bench.subject import Watch
from vsync.clock import boot_us
from vsync.config import load
from vsync.errors import ConfigError, NotConnected
from vsync.testcluster import LocalCluster

__all__ = ["CabledSubject", "LocalSubject", "follow", "transports"]

TRANSPORTS = ("zmq", "udp")
REST_S = 0.7  #: more than a merge interval and a hold: nothing of the last change goes on


class LocalSubject:
    """See ``Subject``. ``transport`` is what ``[cluster] transport`` may be, ``cluster`` one not started."""

    def __init__(self, transport: str, cluster: LocalCluster | None = None) -> None:
        self.cluster = LocalCluster(3, settings={"transport": transport}) if cluster is None else cluster

    @property
    def names(self) -> list[str]:
        """a, b, c."""
        return self.cluster.names

    @contextlib.contextmanager
    def watch(self, names: Iterable[str]) -> Iterator[Watch]:
        """Sessions like those of ``vsync watch``, a thread each; the clock is read when the view arrives."""
        names = list(names)
        watch = Watch(names)
        with contextlib.ExitStack() as stack:
            for name in names:
                session = stack.enter_context(client.connect(self.cluster[name].url, "bench"))
                follow(name, session, watch)
            yield watch

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.cluster.kill(name)

    def terminate(self, name: str) -> None:
        """SIGTERM."""
        os.kill(self.cluster[name].pid, signal.SIGTERM)

    def stop(self, name: str) -> None:
        """SIGSTOP."""
        self.cluster.stop(name)

    def cont(self, name: str) -> None:
        """SIGCONT."""
        self.cluster.cont(name)

    def restart(self, name: str) -> None:
        """Start its process again, when the old one has ended."""
        process = self.cluster[name].process
        if process is not None:
            process.wait(20)
        self.cluster.restart(name)

    def settle(self) -> None:
        """One view of all, then rest."""
        self.cluster.wait_view(self.names)
        time.sleep(REST_S)

    def __enter__(self) -> Self:
        self.cluster.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.__exit__(kind, error, trace)


class CabledSubject(LocalSubject):
    """See ``Cabled``. Each daemon in a network namespace of its own; needs root (``netns.missing``)."""

    cluster: NetnsCluster

    def __init__(self, transport: str) -> None:
        super().__init__(transport, NetnsCluster(prefix="vscab", net="10.98", transport=transport))

    def cut(self, name: str) -> None:
        """Its cable is pulled."""
        self.cluster.cut(name)

    def mend(self, name: str) -> None:
        """Its cable is back."""
        self.cluster.mend(name)


def follow(name: str, session: client.Client, watch: Watch) -> None:
    """Tell ``watch`` of every regular view that ``session`` is told, on a thread, until the session ends."""
    threading.Thread(target=_follow, args=(name, session, watch), name=f"follow-{name}", daemon=True).start()


def _follow(name: str, session: client.Client, watch: Watch) -> None:
    with contextlib.suppress(NotConnected):
        for view in session.views():
            now = boot_us()
            if not view.transitional:
                watch.saw(name, [member.name for member in view.members], now)


def transports() -> list[str]:
    """The transports that this release can be configured to use."""
    known = [TRANSPORTS[0]]
    for transport in TRANSPORTS[1:]:
        cluster = LocalCluster(1, settings={"transport": transport})
        try:
            load(cluster.nodes[0].config)
            known.append(transport)
        except ConfigError:
            pass
        finally:
            cluster.close()
    return known
