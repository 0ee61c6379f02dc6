"""``bast-pingpong``: two clients at two nodes hand one EX lock to each other.

Each gives it up in its blocking callback and asks for it again at once. A *handover* is from one's grant to the
other's. Beside it the same lock is handed on by the queue: both ask for it all the time, and give it back as soon
as they have it. The floor is the bare hop, one after the other.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import dlm
from dlm.bench.callers import Others, daemons
from vsync.bench.contest import Measure, contest
from vsync.bench.hop import ONE_BY_ONE, BareHop
from vsync.bench.options import Options, Tell
from vsync.bench.rows import Row, Sample, rows_of, sample
from vsync.bench.workers import Handler, Workers, cpu_s
from vsync.clock import boot_us
from vsync.errors import VsyncError
from vsync.testcluster import LocalCluster

__all__ = ["Players", "pingpong"]

NAME = "bench/pingpong"
PLAY_S = 0.5
HOPS = 400
PATIENCE_S = 10.0
BAST, QUEUE = "blocking callback", "queue handover"


def pingpong(transport: str, options: Options, tell: Tell) -> Iterator[Row]:
    """The rows. Raises ``VsyncError``."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(LocalCluster(3, settings={"transport": transport}, key=False))
        clients = [stack.enter_context(dlm.connect(node.url)) for node in cluster.nodes]
        players = stack.enter_context(Players(cluster, daemons(cluster, clients)))
        hop = stack.enter_context(BareHop())
        entrants: dict[str, Measure] = {case: partial(players.play, case) for case in (BAST, QUEUE)}
        entrants[ONE_BY_ONE] = partial(hop.rate, 64, HOPS)
        found = contest(entrants, options.rounds, lambda text: tell(f"{transport}: bast-pingpong: {text}"))
        described = {
            "what": "bast-pingpong", "case": BAST, "nodes": 3, "transport": transport, "via": "vsyncd",
            "size": None, "callers": 2, "unit": "1/s",
        }  # fmt: skip
        yield from rows_of(described, found[BAST], {peer: found[peer] for peer in (QUEUE, ONE_BY_ONE)})


class Players(Workers):
    """Two processes, each with a client of another node. ``others``: what else belongs to the game."""

    def __init__(self, cluster: LocalCluster, others: Others) -> None:
        super().__init__([(_player, (node.url,)) for node in cluster.nodes[:2]])
        self._others = others

    def play(self, case: str, seconds: float = PLAY_S) -> Sample:
        """Handovers per second. Raises ``VsyncError`` if there was none."""
        before = self._spent()
        played = self.each(case, seconds)
        cpu, sent = (now - then for now, then in zip(self._spent(), before, strict=True))
        return rated(played, cpu, sent)

    def _spent(self) -> tuple[float, int]:
        return self.cpu_s() + sum(map(cpu_s, self._others.pids)), self._others.messages()


def rated(played: Sequence[Sequence[int]], cpu_s: float, messages: float) -> Sample:
    """Of the times of grants of two players. Those that follow one of the same player are no handovers. Raises
    ``VsyncError`` if there was none.
    """
    grants = sorted((at, player) for player, times in enumerate(played) for at in times)
    took = [float(after[0] - before[0]) for before, after in pairwise(grants) if before[1] != after[1]]
    if not took:
        raise VsyncError("no lock was handed over")
    count, spent_s = len(took), max(1, grants[-1][0] - grants[0][0]) / 1e6
    return sample(took, value=count / spent_s, cpu_us=cpu_s / count * 1e6, messages=messages / count)


# -- in the players' processes


def _until_asked(client: dlm.Client, until: int) -> int:
    """Hold the lock until the other one wants it, or the time is over; when it was granted."""
    given = threading.Event()

    def give(held: dlm.Held, mode: dlm.Mode) -> None:
        with contextlib.suppress(dlm.NotHeld):  # the time was over at this moment
            held.release()
        given.set()

    held = client.acquire(NAME, timeout=PATIENCE_S, on_blocking=give)
    granted = boot_us()
    if not given.wait(max(0.0, (until - granted) / 1e6)):
        with contextlib.suppress(dlm.NotHeld):  # asked for at this moment
            held.release(wait=True)
    return granted


def _at_once(client: dlm.Client, until: int) -> int:
    held = client.acquire(NAME, timeout=PATIENCE_S)
    granted = boot_us()
    held.release()
    return granted


PLAYS: dict[str, Callable[[dlm.Client, int], int]] = {BAST: _until_asked, QUEUE: _at_once}


def _play(client: dlm.Client, case: str, seconds: float) -> list[int]:
    """When it was granted."""
    granted: list[int] = []
    until = boot_us() + round(seconds * 1e6)
    while boot_us() < until or not granted:
        granted.append(PLAYS[case](client, until))
    return granted


@contextlib.contextmanager
def _player(url: str) -> Iterator[Handler]:
    """The body of a process."""
    with dlm.connect(url, name="bench") as client, client.acquire(NAME, dlm.Mode.NL):  # shared from the start
        yield partial(_play, client)
