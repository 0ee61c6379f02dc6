"""``vsync bench view-change``, its rows of one link of two: cut while messages flow, and nobody should notice.

From every node a message each 20 ms, to sessions at all nodes; after a second link 0 goes silent for all of
them, and two seconds later, when everybody has found it down, it comes back. Counted are views, messages that are
missing or out of order, and the longest time from a submission to a delivery.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vsync import client
from vsync.bench.cables import Cables, links_up
from vsync.bench.flow import longest_us, sessions_flow, wrong
from vsync.clock import boot_us
from vsync.errors import NotConnected
from vsync.testcluster import LocalCluster

__all__ = ["LinkCut", "summary", "watch_a_cut"]

BEFORE_S = 1.0
AFTER_S = 2.0
NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class LinkCut:
    """What one cut did."""

    before_ms: float  #: the longest time from submission to delivery before it
    longest_ms: float  #: and from the cut on
    messages: int  #: sent
    wrong: int  #: deliveries missing or out of order
    views: int  #: that any node's sessions were told


def summary(cuts: list[LinkCut]) -> dict[str, Any]:
    """Of several: the worst, not the median – the promise is about every message."""
    return {
        "longest_ms": max(round(cut.longest_ms, 1) for cut in cuts),
        "before_ms": max(round(cut.before_ms, 1) for cut in cuts),
        "median_longest_ms": round(statistics.median(cut.longest_ms for cut in cuts), 1),
        "messages": sum(cut.messages for cut in cuts),
        "wrong": sum(cut.wrong for cut in cuts),
        "view_changes": sum(cut.views for cut in cuts),
        "all_longest_ms": [round(cut.longest_ms, 1) for cut in cuts],
    }


def watch_a_cut(cluster: LocalCluster, cables: Cables) -> LinkCut:
    """Cut link 0 under way, and put it together again. Raises ``ClusterError``.

    For a cluster that has not been through one lately: a link that fails again has to prove itself for longer.
    """
    _wait_links(cluster, 0, "up")
    _wait_links(cluster, 1, "up")
    with _views(cluster) as views, sessions_flow({node.id: node.url for node in cluster.nodes}) as flow:
        began = boot_us()
        time.sleep(BEFORE_S)
        cut = boot_us()
        cables.cut()
        time.sleep(AFTER_S)  # without asking the nodes meanwhile: that would take time from the messages
        _wait_links(cluster, 0, "down")
        cables.heal()
        _wait_links(cluster, 0, "up")
    return LinkCut(
        before_ms=longest_us(flow, began, cut) / 1000,
        longest_ms=longest_us(flow, cut, NEVER) / 1000,
        messages=sum(flow.sent.values()),
        wrong=wrong(flow),
        views=max(len(seen) - 1 for seen in views.values()),
    )


def _wait_links(cluster: LocalCluster, link: int, state: str) -> None:
    cluster.wait(lambda: links_up(cluster, link, state), f"link {link} is not {state} everywhere")


@contextlib.contextmanager
def _views(cluster: LocalCluster) -> Iterator[dict[str, list[str]]]:
    """The regular views that a session at each node is told, the present one first; filled by threads."""
    seen: dict[str, list[str]] = {name: [] for name in cluster.names}

    def follow(session: client.Client, into: list[str]) -> None:
        with contextlib.suppress(NotConnected):
            for view in session.views():
                if not view.transitional:
                    into.append(view.id)

    threads = []
    with contextlib.ExitStack() as stack:
        for name, into in seen.items():
            session = stack.enter_context(client.connect(cluster[name].url, "bench"))
            threads.append(threading.Thread(target=follow, args=(session, into), daemon=True))
            threads[-1].start()
        cluster.wait(lambda: all(seen.values()), "no view was told")
        yield seen
    for thread in threads:
        thread.join()

