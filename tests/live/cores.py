"""A few cores on one virtual clock and a wire that loses nothing: to count what they send, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dlm.service import DlmService
from vsync.core import Core, Push, Reply
from vsync.engine.outputs import Send, Stopped
from vsync.service import Credentials
from vsync.types import ClusterConfig, Peer
from vsync.wire import FrameType

__all__ = ["Cores"]


class Cores:
    """Cores 1..n of one cluster, joined to one ring. Session 1 is open at each of them."""

    def __init__(
        self, count: int = 2, cluster: str = "test", addresses: Sequence[str] = (), **more: Any
    ) -> None:
        places = addresses or [f"127.0.0.1:{n}" for n in range(1, count + 1)]
        peers = tuple(Peer(n, chr(96 + n), (place,)) for n, place in enumerate(places, 1))
        configs = {n: ClusterConfig(cluster, n, peers, **more) for n in range(1, count + 1)}
        self.cores = {n: Core(c, 1000 + n, [DlmService(c)], None) for n, c in configs.items()}
        self.now = 0
        self.sent: Counter[str] = Counter()  #: frames by kind, all nodes together, one per receiver
        self.frames: list[tuple[int, bytes]] = []  #: (sender, frame) as they left
        self.answers: dict[tuple[int, int, int], Reply] = {}  #: by (node, session, rid)
        self.pushes: list[tuple[int, Push]] = []
        self._rid = 0
        for core in self.cores.values():
            core.start(0)
        self.run(2_000_000)
        assert all(core.view and len(core.view.members) == count for core in self.cores.values())
        for node in self.cores:
            self.open(node, 1)

    def __getitem__(self, node: int) -> Core:
        return self.cores[node]

    def open(self, node: int, session: int, name: str = "test") -> None:
        """Open a session."""
        self.cores[node].open_session(session, Credentials(100 + session, 0, 0, name), self.now)

    def call(self, node: int, service: str, verb: str, session: int = 1, **args: Any) -> Any:
        """Request, run until there is an answer, and return it (``data``, whether it is a refusal or not)."""
        rid = self.post(node, service, verb, session, **args)
        limit = self.now + 5_000_000
        while (node, session, rid) not in self.answers:
            assert self.now < limit, f"{service}.{verb} is not answered"
            self.run(max(1, min(self._deadlines()) - self.now))
        return self.answers[node, session, rid].data

    def post(self, node: int, service: str, verb: str, session: int = 1, **args: Any) -> int:
        """Request; returns its number."""
        self._rid += 1
        self.cores[node].request(session, self._rid, service, verb, args, self.now)
        self._carry()
        return self._rid

    def run(self, span: int) -> None:
        """Let ``span`` µs pass, and everything happen that is due in them."""
        end = self.now + span
        self._carry()
        while (due := min(self._deadlines(), default=end)) <= end:
            self.now = max(due, self.now)
            for core in self.cores.values():
                core.fire(self.now)
            self._carry()
        self.now = end

    def messages(self, node: int) -> int:
        """Ordered messages that the node has put on the ring so far, with those that wait."""
        engine = self.cores[node].engine
        return engine.counters["mcast_tx"] + len(engine.queue)

    def _deadlines(self) -> list[int]:
        times = (core.next_deadline() for core in self.cores.values())
        return [time for time in times if time is not None]

    def _carry(self) -> None:
        """Carry everything out until all is quiet. A frame takes no time, but tokens would go round for ever."""
        busy = True
        while busy:
            busy = False
            for node, core in self.cores.items():
                for output in core.take_outputs():
                    busy = True
                    self._output(node, output)

    def _output(self, node: int, output: Any) -> None:
        if isinstance(output, Send):
            self.sent[FrameType(output.frame[3]).name] += len(output.to)
            self.frames.append((node, output.frame))
            self.now += 10
            for to in output.to:
                self.cores[to].receive(output.frame, self.now)
        elif isinstance(output, Reply):
            self.answers[node, output.session, output.rid] = output
        elif isinstance(output, Push):
            self.pushes.append((node, output))
        assert not isinstance(output, Stopped)
