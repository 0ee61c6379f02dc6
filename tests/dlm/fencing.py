"""The bus with fence agents: what they do is the test's, and takes the time that it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tests.dlm.bus import Bus, Node
from vsync.types import ClusterConfig, QuorumConfig

SECOND = 1_000_000
Result = tuple[int, int | None, bytes]  #: after how many µs, exit code, output


class Run(NamedTuple):
    """An agent that was started: where, for whom, and the rest of its input."""

    actor: int
    target: str
    action: str
    options: Mapping[str, str]


def powered_off(run: Run) -> Result:
    """An agent that works."""
    return 0, 0, b"Success: Powered OFF"


def refused(run: Run) -> Result:
    """An agent whose device says no."""
    return 0, 1, b"Failed: Unable to obtain correct plug status"


class FencedBus(Bus):
    """``fenced``: the nodes that there are agents for, ``at``: the nodes that have them (default: all)."""

    def __init__(
        self,
        nodes: int = 3,
        fenced: Iterable[int] = (1, 2, 3),
        at: Iterable[int] = (1, 2, 3, 4, 5),
        quorum: QuorumConfig | None = None,
        section: Mapping[str, Any] | None = None,
        **agent: Any,
    ) -> None:
        self._at, self._quorum = frozenset(at), quorum or QuorumConfig()
        table = {"agent": "fence_test", "timeout_s": 20, "retries": 1, "options": {"plug": 4}, **agent}
        self._agents = {f"n{node}": table for node in fenced if node <= nodes}
        self._section = dict(section or {"lockspace": {"default": {"fencing": True}}})
        self.agent: Callable[[Run], Result] = powered_off
        self.runs: list[Run] = []
        self.killed: list[Run] = []
        self._programs: dict[tuple[Node, int], tuple[int, Run, int | None, bytes]] = {}
        super().__init__(nodes)

    def config(self, node: int) -> ClusterConfig:
        section = {**self._section, **({"fencing": self._agents} if node in self._at else {})}
        return replace(super().config(node), sections={"dlm": section}, quorum=self._quorum)

    def spawn(self, node: Node, ticket: int, argv: Sequence[str], stdin: bytes, timeout_us: int) -> None:
        assert list(argv) == ["fence_test"]
        options = dict(line.split("=", 1) for line in stdin.decode().splitlines())
        run = Run(node.id, options.pop("nodename"), options.pop("action"), options)
        self.runs.append(run)
        after, code, output = self.agent(run)
        if after > timeout_us:
            after, code, output = timeout_us, None, b"no end in time"
        self._programs[node, ticket] = self.now + after, run, code, output

    def kill_program(self, node: Node, ticket: int) -> None:
        found = self._programs.get((node, ticket))
        if found is not None:
            self.killed.append(found[1])
            self._programs[node, ticket] = self.now, found[1], None, b"killed"

    def tokens(self) -> None:
        """One rotation in every ring; and programs whose time has come end."""
        for (node, ticket), (due, _, code, output) in list(self._programs.items()):
            if due <= self.now:
                del self._programs[node, ticket]
                if node.alive:
                    node.service.spawned(ticket, code, output, self.now)
        super().tokens()

    def rows(self, node: int) -> list[dict[str, Any]]:
        """``dlm fences`` at this node."""
        rows: list[dict[str, Any]] = self.result(self.call(node, "fences"))
        return rows
