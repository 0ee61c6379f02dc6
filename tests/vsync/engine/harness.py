"""Transcripts: a story of commands, and everything the engines make of it, written out for review.

A ``.txt`` file holds commands behind ``> `` and, below each, what happened. ``pytest --rewrite`` writes the files
anew; then the diff is read. The network is perfect and takes 100 µs a frame, so a transcript is exact; loss is put
in by hand with ``drop``.

Commands::

    start A B ..          start these nodes              crash N / restart N     without a word / with its record
    run MS                let so much time pass          leave N                 gracefully
    submit N TEXT ..      multicast from node N          drop KIND FROM TO [N]   lose the next N such frames
    safe N TEXT ..        the same, as SAFE messages     large N BYTES           one message of so many bytes
    cut A B / heal        no frames between A and B      cut1 A B                no frames from A to B
    gone N PEER           node N's transport says so     frames                  count frames since the last count
    status N FIELD ..     print fields of its status
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable

from vsync.engine import Deliver, Engine, Install, Note, Persist, Send, Stopped
from vsync.engine.outputs import Output
from vsync.types import NO_RING, ClusterConfig, Peer, Timing
from vsync.wire import FrameType

NOTHING = (1, {}, 0, NO_RING)  #: an entry of the layers above: one vote, nothing else
HOP = 100  #: µs a frame is on its way
HIDDEN = {"consensus", "gather_entered", "commit_entered", "recovery_entered", "operational_entered"}


class Story:
    """A few engines, a perfect network, and a pencil."""

    def __init__(self, nodes: int = 3) -> None:
        self.peers = tuple(Peer(n, f"n{n}", (f"sim:{n}",)) for n in range(1, nodes + 1))
        self.engines: dict[int, Engine] = {}
        self.disk: dict[int, bytes] = {}
        self.lives: Counter[int] = Counter()
        self.now = 0
        self.lines: list[str] = []
        self.sent: Counter[str] = Counter()
        self.drops: Counter[tuple[str, int, int]] = Counter()
        self.cuts: set[tuple[int, int]] = set()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._serial = 0

    def config(self, node: int) -> ClusterConfig:
        """What a node is told; a test may tell it something else."""
        return ClusterConfig("story", node, self.peers)

    def awake(self) -> dict[int, Engine]:
        """The engines whose timers run."""
        return self.engines

    def hop(self, source: int, target: int) -> int:
        """µs that a frame is on its way; a test may have another network."""
        return HOP

    def seen(self, node: int, output: Output) -> None:
        """Called with each output before it is carried out; for tests that keep books."""

    def do(self, command: str) -> list[str]:
        """Carry out one command; what happened."""
        verb, *args = command.split()
        self.lines = []
        getattr(self, f"_{verb}")(*args)
        return self.lines

    # ------------------------------------------------------------ commands

    def _start(self, *nodes: str) -> None:
        for node in map(int, nodes):
            self.lives[node] += 1
            life, record = self.lives[node], self.disk.get(node)
            engine = Engine(self.config(node), life, lambda *case: b"", lambda _: NOTHING, record)
            self.engines[node] = engine
            engine.start(self.now)
            self._carry_out(node)

    _restart = _start

    def _run(self, ms: str) -> None:
        end = self.now + int(float(ms) * 1000)
        while True:
            frames = self._events[0][0] if self._events else end
            timers = [(d, n) for n, e in self.awake().items() if (d := e.next_deadline()) is not None]
            deadline, node = min(timers, default=(end, 0))
            if min(frames, deadline) >= end:
                self.now = end
                return
            if frames <= deadline:
                self.now, _, event = heapq.heappop(self._events)
                event()
            else:
                self.now = max(self.now, deadline)
                self.engines[node].fire(self.now)
                self._carry_out(node)

    def _submit(self, node: str, *texts: str) -> None:
        for text in texts:
            self.engines[int(node)].submit(text.encode(), self.now)
        self._carry_out(int(node))

    def _crash(self, node: str) -> None:
        del self.engines[int(node)]

    def _leave(self, node: str) -> None:
        self.engines[int(node)].leave(self.now)
        self._carry_out(int(node))
        del self.engines[int(node)]

    def _drop(self, kind: str, source: str, target: str, count: str = "1") -> None:
        self.drops[kind.upper(), int(source), int(target)] += int(count)

    def _cut(self, a: str, b: str) -> None:
        self.cuts |= {(int(a), int(b)), (int(b), int(a))}

    def _cut1(self, a: str, b: str) -> None:
        self.cuts.add((int(a), int(b)))

    def _gone(self, node: str, peer: str) -> None:
        self.engines[int(node)].peer_gone(int(peer), "reset, then refused", self.now)
        self._carry_out(int(node))

    def _safe(self, node: str, *texts: str) -> None:
        for text in texts:
            self.engines[int(node)].submit(text.encode(), self.now, safe=True)
        self._carry_out(int(node))

    def _large(self, node: str, size: str) -> None:
        self.engines[int(node)].submit(b"x" * int(size), self.now)
        self._carry_out(int(node))

    def _heal(self) -> None:
        self.cuts.clear()

    def _frames(self) -> None:
        self.lines.append(" ".join(f"{kind}={n}" for kind, n in sorted(self.sent.items())) or "none")
        self.sent.clear()

    def _status(self, node: str, *fields: str) -> None:
        status = self.engines[int(node)].status()
        flat = {**status, **status["counters"]}
        self.lines.append(" ".join(f"{f}={flat.get(f, 0)}" for f in fields))

    # ------------------------------------------------------------ the world

    def _carry_out(self, node: int) -> None:
        while outputs := self.engines[node].take_outputs():
            for output in outputs:
                self.seen(node, output)
                self._do_output(node, output)

    def _do_output(self, node: int, output: Output) -> None:
        if isinstance(output, Send):
            for target in output.to:
                self._transmit(node, target, output.frame)
        elif isinstance(output, Persist):
            self.disk[node] = output.record
        elif isinstance(output, Deliver):
            texts = " ".join(m.decode() if len(m) < 80 else f"{len(m)} bytes" for m in output.messages)
            late = " (installing)" if output.installing else ""
            self._write(node, f"deliver {output.seq} from {output.origin}: {texts}{late}")
        elif isinstance(output, Install):
            c = output.configuration
            kind = "trans" if c.transitional else "VIEW "
            more = "".join(f" {k}={[m.node for m in v]}" for k, v in (("+", c.joined), ("-", c.left)) if v)
            self._write(node, f"{kind} {c.id} {[m.node for m in c.members]}{more}")
            if not c.transitional:
                self.disk[node] = self.engines[node].settled(c.id, self.now).record
        elif isinstance(output, Note) and output.name == "view_change":
            failed = "".join(f"; {n} failed: {why}" for n, why in output.fields["failed"].items())
            self._write(node, f"because {output.fields['reason']}{failed}")
        elif isinstance(output, Note) and output.name not in HIDDEN:
            fields = " ".join(f"{k}={v}" for k, v in output.fields.items() if k != "old")
            self._write(node, f"{output.name} {fields}".rstrip())
        elif isinstance(output, Stopped):
            self._write(node, f"stopped: {output.reason}")

    def _transmit(self, source: int, target: int, frame: bytes) -> None:
        kind = FrameType(frame[3]).name
        self.sent[kind] += 1
        if self.drops[kind, source, target] > 0:
            self.drops[kind, source, target] -= 1
            self._write(source, f"lost: {kind} to {target}")
        elif (source, target) not in self.cuts:
            self.later(self.hop(source, target), target, frame)

    def later(self, delay: int, target: int, frame: bytes) -> None:
        """The frame arrives after so many µs, if the process still lives then."""
        self._serial += 1
        life = self.lives[target]
        heapq.heappush(self._events, (self.now + delay, self._serial, lambda: self._arrive(target, life, frame)))

    def _arrive(self, target: int, life: int, frame: bytes) -> None:
        engine = self.engines.get(target)
        if engine is not None and self.lives[target] == life:
            engine.receive(frame, self.now)
            self._carry_out(target)

    def _write(self, node: int, text: str) -> None:
        self.lines.append(f"{self.now / 1000:9.1f} ms  {'    ' * (node - 1)}n{node} {text}")


class Talk(Story):
    """A story in which nodes submit their next message when they deliver their last one."""

    def __init__(self, nodes: int = 3, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.left: dict[int, int] = defaultdict(int)  #: messages that a node is still to send
        self.times: dict[int, list[int]] = defaultdict(list)  #: of its deliveries of its own
        self.orders: dict[int, list[bytes]] = defaultdict(list)
        super().__init__(nodes)
        self.do("start " + " ".join(map(str, range(1, nodes + 1))))
        self.do("run 2000")

    def config(self, node: int) -> ClusterConfig:
        return ClusterConfig("story", node, self.peers, self.timing)

    def seen(self, node: int, output: Output) -> None:
        if isinstance(output, Deliver):
            self.orders[node] += output.messages
            if output.origin.node == node:
                self.times[node].append(self.now)
                if self.left[node]:
                    self.left[node] -= 1
                    self.engines[node].submit(b"%d:%d" % (node, self.left[node]), self.now)

    def talk(self, node: int, count: int, ms: float = 1000) -> list[int]:
        """µs between its messages."""
        self.left[node] = count - 1
        self.do(f"submit {node} first")
        self.do(f"run {ms}")
        assert self.left[node] == 0
        return [b - a for a, b in zip(self.times[node], self.times[node][1:], strict=False)]

    def counter(self, node: int, name: str) -> int:
        return self.engines[node].counters[name]


def replay(text: str) -> str:
    """The story of a transcript, told anew."""
    story = Story()
    out: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            out.append(line)
            out += story.do(line[2:])
        elif line.startswith("#"):
            out.append(line)
    return "\n".join(out) + "\n"


