"""A small vocabulary for stories about rings: production engines, an exact network, and books of what happened.

    world = World(3)
    world.do("start 1 2 3", "run 1000")
    world.rule = lambda kind, source, target, frame: LOSE if kind == "COMMIT" and target == 2 else PASS
    world.until(lambda: world.ring(1) == [1, 3], 3000)

Everything that ``harness.Story`` can be told works here too (``do``); this adds rules for single frames, stopped
processes, and what each node was given. After each story ``agree()`` checks what must hold of any story.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from harness import Story

from vsync.engine import Deliver, Engine, Install, Note
from vsync.engine.outputs import Configuration, Output
from vsync.engine.states import State
from vsync.types import ClusterConfig, RingId
from vsync.wire import FrameType

__all__ = ["LOSE", "PASS", "TWICE", "World"]

PASS, LOSE, TWICE = "pass", "lose", "twice"  #: what may happen to a frame; a number is a delay in ms

Rule = Callable[[str, int, int, bytes], "str | float"]


@dataclass(frozen=True)
class Got:
    """One message as a node got it."""

    origin: int
    data: bytes
    ring: RingId
    seq: int
    installing: bool
    transitional: bool  #: after the transitional view


class World(Story):
    """``Story`` with rules and books."""

    def __init__(self, nodes: int = 3, **settings: Any) -> None:
        super().__init__(nodes)
        self.settings = settings
        self.rule: Rule = lambda kind, source, target, frame: PASS
        self.got: dict[int, list[Got]] = {n: [] for n in range(1, nodes + 1)}
        self.views: dict[int, list[Configuration]] = {n: [] for n in range(1, nodes + 1)}
        self.transitional: dict[int, list[Configuration]] = {n: [] for n in range(1, nodes + 1)}
        self.notes: list[tuple[int, str, dict[str, Any]]] = []
        self.at_view: Callable[[int, Configuration], None] = lambda node, view: None
        self._between: set[int] = set()  #: nodes between their transitional and their regular view
        self._paused: dict[int, list[tuple[int, bytes]]] = {}

    # ------------------------------------------------------------ telling

    def config(self, node: int) -> ClusterConfig:
        """The same settings for all."""
        return replace(super().config(node), **self.settings)

    def do(self, *commands: str) -> list[str]:  # type: ignore[override]
        """Carry out commands of ``Story``; what happened."""
        return [line for command in commands for line in super(World, self).do(command)]

    def together(self) -> World:
        """Start all nodes and wait for their ring."""
        self.do("start " + " ".join(str(p.node) for p in self.peers))
        everybody = [p.node for p in self.peers]
        self.until(lambda: all(self.ring(n) == everybody for n in everybody), 3000)
        self.do("run 20")
        return self

    def until(self, condition: Callable[[], bool], ms: float, step: float = 0.1) -> None:
        """Let time pass until the condition holds; fails after ``ms``."""
        end = self.now + int(ms * 1000)
        while not condition():
            assert self.now < end, f"did not happen within {ms:g} ms: {self.sketch()}"
            super().do(f"run {step}")

    def send(self, node: int, data: bytes, safe: bool = False, urgent: bool = False) -> None:
        """Node ``node`` multicasts."""
        self.engines[node].submit(data, self.now, urgent=urgent, safe=safe)
        self._carry_out(node)

    def frame(self, node: int, frame: bytes) -> None:
        """A frame of the test's own arrives at a node."""
        self.engines[node].receive(frame, self.now)
        self._carry_out(node)

    def pause(self, node: int) -> None:
        """SIGSTOP: frames pile up, timers do not fire."""
        self._paused[node] = []

    def resume(self, node: int, timers_first: bool = False) -> None:
        """SIGCONT. What piled up is read at once; the kernel does not say whether timers come first."""
        engine, waiting = self.engines[node], self._paused.pop(node)
        if timers_first:
            engine.fire(self.now)
            self._carry_out(node)
        for _, frame in waiting:
            engine.receive(frame, self.now)
            self._carry_out(node)

    # ------------------------------------------------------------ asking

    def ring(self, node: int) -> list[int]:
        """The members of the ring a node works in; empty while it is not operational."""
        engine = self.engines.get(node)
        if engine is None or engine.state is not State.OPERATIONAL:
            return []
        return [m.node for m in engine.ring.members]

    def state(self, node: int) -> State:
        """Of a node's engine."""
        return self.engines[node].state

    def data(self, node: int) -> list[bytes]:
        """What a node was given, in order."""
        return [got.data for got in self.got[node]]

    def count(self, node: int, name: str) -> int:
        """A counter of a node."""
        return self.engines[node].counters[name]

    def noted(self, name: str, node: int | None = None) -> list[dict[str, Any]]:
        """The notes of this name."""
        return [fields for n, what, fields in self.notes if what == name and node in (None, n)]

    def sketch(self) -> str:
        """Where everybody is, for failures."""
        engines = sorted(self.engines.items())
        return ", ".join(f"n{n} {e.state.value} {e.ring.id} {self.ring(n)}" for n, e in engines)

    def agree(self, *nodes: int) -> None:
        """These nodes share one regular view, and the messages of every ring that they left together."""
        ids = {self.views[n][-1].id for n in nodes}
        assert len(ids) == 1, self.sketch()
        for a in nodes:
            assert self.ring(a) == sorted(nodes), self.sketch()
            for b in nodes:
                for view in self._shared(a, b):
                    mine, its = self._messages(a, view), self._messages(b, view)
                    assert mine == its, f"n{a} and n{b} in {view}"

    def _shared(self, a: int, b: int) -> list[RingId]:
        """Rings out of which two nodes went together, and the one they are in."""
        at_b = {(v.previous, v.id) for v in self.views[b]}
        return [v.previous for v in self.views[a] if (v.previous, v.id) in at_b]

    def _messages(self, node: int, ring: RingId) -> list[tuple[int, bytes, bool]]:
        return [(g.seq, g.data, g.transitional) for g in self.got[node] if g.ring == ring]

    # ------------------------------------------------------------ the world

    def seen(self, node: int, output: Output) -> None:
        """Keep books."""
        if isinstance(output, Deliver):
            late = node in self._between
            for data in output.messages:
                self.got[node].append(
                    Got(output.origin.node, data, output.ring, output.seq, output.installing, late)
                )
        elif isinstance(output, Install):
            view = output.configuration
            (self.transitional if view.transitional else self.views)[node].append(view)
            (self._between.add if view.transitional else self._between.discard)(node)
            if not view.transitional:
                self.at_view(node, view)
        elif isinstance(output, Note):
            self.notes.append((node, output.name, output.fields))

    def _start(self, *nodes: str) -> None:
        for node in map(int, nodes):
            self._between.discard(node)
        super()._start(*nodes)

    _restart = _start

    def awake(self) -> dict[int, Engine]:
        """All but the stopped ones."""
        return {n: e for n, e in self.engines.items() if n not in self._paused}

    def _transmit(self, source: int, target: int, frame: bytes) -> None:
        verdict = self.rule(FrameType(frame[3]).name, source, target, frame)
        if verdict == LOSE:
            return
        if isinstance(verdict, (int, float)):
            self.later(int(verdict * 1000), target, frame)
            return
        super()._transmit(source, target, frame)
        if verdict == TWICE:
            super()._transmit(source, target, frame)

    def _arrive(self, target: int, life: int, frame: bytes) -> None:
        if target in self._paused and self.lives[target] == life:
            self._paused[target].append((life, frame))
        else:
            super()._arrive(target, life, frame)
