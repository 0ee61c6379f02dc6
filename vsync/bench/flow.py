"""Messages that flow from every node to all while something is done to the cluster. Each knows when it was sent.

What is judged afterwards: that all arrived everywhere, in one order, and how long the slowest took.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from vsync import client
from vsync.clock import boot_us
from vsync.errors import NotConnected
from vsync.events import Message

__all__ = ["Arrival", "Flow", "longest_us", "sessions_flow", "wrong"]

INTERVAL_S = 0.02  #: between two messages of a node
DRAIN_S = 30.0
GROUP = "bench"
_BODY = struct.Struct("!IIQ")  # sender, number, submitted at


class Arrival(NamedTuple):
    """Message ``number`` of ``sender``, submitted at ``sent`` (boot-clock µs), was delivered at ``at``."""

    sender: int
    number: int
    sent: int
    at: int


class Flow:
    """What was sent and what arrived. Filled by other threads."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.sent = dict.fromkeys(nodes, 0)  #: messages, by sender
        self.arrivals: dict[int, list[Arrival]] = {node: [] for node in self.sent}  #: by receiver

    @property
    def complete(self) -> bool:
        """Whether as many arrived everywhere as were sent."""
        return all(len(arrivals) == sum(self.sent.values()) for arrivals in self.arrivals.values())


def wrong(flow: Flow) -> int:
    """How many deliveries are missing, are out of their sender's order, or differ from another node's."""
    count = 0
    orders = []
    for arrivals in flow.arrivals.values():
        for sender, sent in flow.sent.items():
            numbers = [a.number for a in arrivals if a.sender == sender]
            count += sum(a != b for a, b in zip(numbers, range(sent), strict=False)) + abs(sent - len(numbers))
        orders.append([(a.sender, a.number) for a in arrivals])
    return count + sum(a != b for order in orders[1:] for a, b in zip(orders[0], order, strict=False))


def longest_us(flow: Flow, since: int, until: int) -> int:
    """The longest time from submission to a delivery at ``since <= at < until``; 0 if there was none."""
    spent = (a.at - a.sent for arrivals in flow.arrivals.values() for a in arrivals if since <= a.at < until)
    return max(spent, default=0)


@contextlib.contextmanager
def sessions_flow(urls: Mapping[int, str]) -> Iterator[Flow]:
    """Messages through sessions with the daemons at ``urls`` (by node), all members of one group, until the block
    ends and everything has arrived, or is given up.
    """
    flow = Flow(urls)
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        groups = {}
        for node, url in urls.items():
            groups[node] = stack.enter_context(client.connect(url, "bench")).join(GROUP)
        receivers = [_start(_receive, group, flow.arrivals[node]) for node, group in groups.items()]
        senders = [_start(_send, group, node, flow, over) for node, group in groups.items()]
        try:
            yield flow
        finally:
            over.set()
            for thread in senders:
                thread.join()
            waited = threading.Event()
            end = boot_us() + int(DRAIN_S * 1e6)
            while not flow.complete and boot_us() < end:
                waited.wait(INTERVAL_S)
            stack.close()
            for thread in receivers:
                thread.join()


def _start(body: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=body, args=args, daemon=True)
    thread.start()
    return thread


def _send(group: client.Group, node: int, flow: Flow, over: threading.Event) -> None:
    while not over.wait(INTERVAL_S):
        group.send(_BODY.pack(node, flow.sent[node], boot_us()))
        flow.sent[node] += 1


def _receive(group: client.Group, into: list[Arrival]) -> None:
    with contextlib.suppress(NotConnected):
        for event in group:
            if isinstance(event, Message):
                at = boot_us()
                sender, number, sent = _BODY.unpack(event.data)
                into.append(Arrival(sender, number, sent, at))
