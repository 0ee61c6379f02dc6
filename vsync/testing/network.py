"""The network: per-link delay, loss, duplication, reordering, one-way cuts, size limits; partition and heal.

Links are directed. Without reordering a link is first-in first-out, like a TCP connection, but what it
loses is lost: the engine must live with both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from vsync.testing.options import LinkOptions
from vsync.testing.scheduler import Scheduler

__all__ = ["Network"]


class Network:
    """Carries frames between nodes 1..n. ``deliver(src, dst, frame)`` is called at the time of arrival."""

    def __init__(
        self,
        scheduler: Scheduler,
        options: LinkOptions,
        seed: int,
        deliver: Callable[[int, int, bytes], None],
    ) -> None:
        self.options = options
        self.sent = 0
        self.lost = 0
        self._scheduler = scheduler
        self._seed = seed
        self._deliver = deliver
        self._cut: set[tuple[int, int]] = set()
        self._limits: dict[tuple[int, int], int] = {}
        self._rngs: dict[tuple[int, int], Random] = {}
        self._last_arrival: dict[tuple[int, int], int] = {}
        self.changed: Callable[[], None] = lambda: None  #: called when links are cut, limited or healed
        self.drop: Callable[[int, int, bytes], bool] | None = None  #: a test's own rule: True loses the frame

    # -- cutting and healing ----------------------------------------------------------------

    def partition(self, *groups: Iterable[int], nodes: Iterable[int]) -> None:
        """Only nodes of the same group hear each other; who is in no group is alone. Replaces former cuts."""
        self.changed()
        side = {node: index for index, group in enumerate(groups) for node in group}
        self._cut = {
            (a, b)
            for a in nodes
            for b in nodes
            if a != b and side.get(a, ("alone", a)) != side.get(b, ("alone", b))
        }

    def cut(self, src: int, dst: int) -> None:
        """From now on ``dst`` does not hear ``src`` (one way)."""
        self.changed()
        self._cut.add((src, dst))

    def limit(self, src: int, dst: int, size: int) -> None:
        """From now on frames of more than ``size`` bytes do not get from ``src`` to ``dst`` (a path's MTU)."""
        self.changed()
        self._limits[src, dst] = size

    def heal(self) -> None:
        """Every link works again."""
        self.changed()
        self._cut.clear()
        self._limits.clear()

    def connected(self, src: int, dst: int) -> bool:
        """Whether frames from ``src`` reach ``dst``."""
        return (src, dst) not in self._cut

    # -- frames -----------------------------------------------------------------------------

    def send(self, src: int, dst: int, frame: bytes) -> None:
        """Hand a frame to the link; it arrives later, perhaps twice, perhaps never."""
        self.sent += 1
        link = (src, dst)
        if link in self._cut or (self.drop is not None and self.drop(src, dst, frame)):
            self.lost += 1
            return
        if self._limits and len(frame) > self._limits.get(link, len(frame)):
            self.lost += 1
            return
        options, rng = self.options, self._rng(link)
        if options.loss and rng.random() < options.loss:
            self.lost += 1
            return
        self._schedule(link, frame, rng)
        if options.duplicate and rng.random() < options.duplicate:
            self._schedule(link, frame, rng)

    def _rng(self, link: tuple[int, int]) -> Random:
        """Each link has its own stream: a frame more on one link changes nothing on the others."""
        rng = self._rngs.get(link)
        if rng is None:
            rng = self._rngs[link] = Random(f"link/{self._seed}/{link[0]}/{link[1]}")
        return rng

    def _schedule(self, link: tuple[int, int], frame: bytes, rng: Random) -> None:
        options, now = self.options, self._scheduler.now
        arrival = now + options.delay_low + int(rng.random() * (options.delay_high - options.delay_low))
        if options.reorder and rng.random() < options.reorder:
            arrival += int(rng.random() * options.reorder_delay)  # may be overtaken: not remembered
        else:
            arrival = max(arrival, self._last_arrival.get(link, 0))
            self._last_arrival[link] = arrival
        self._scheduler.at(arrival, self._arrive, link, frame)

    def _arrive(self, link: tuple[int, int], frame: bytes) -> None:
        if self.options.cut_in_flight and link in self._cut:
            self.lost += 1
            return
        self._deliver(link[0], link[1], frame)
