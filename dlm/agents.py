"""Fence agents: programs that turn a node off, as the configuration names them (``[dlm.fencing.NODE]``).

The interface is that of the ``fence-agents`` distribution: ``key=value`` lines on stdin, exit code 0 for success
and nothing else for it. What they are given may hold passwords: it goes to the program, and is neither logged nor
shown; what the program says is shown without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dlm.options import SECTION
from vsync.section import Section
from vsync.types import ClusterConfig

__all__ = ["ACTIONS", "STAGGER_US", "Agent", "agents_of", "gist", "unfenced_peers"]

SECOND = 1_000_000
STAGGER_US = 5 * SECOND  #: between two shots of a cut cluster's parts at each other, if nothing else is said
ACTIONS = ("reboot", "off")
MAX_RETRIES = 100
MAX_TEXT = 200  #: characters of what an agent said that are kept
HIDDEN = "***"

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_SECRET = re.compile(r"pass|secret|token|key|community|credential", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Agent:
    """How one node is fenced. Times in µs."""

    program: str  #: a path, or a name that is looked for
    action: str = ACTIONS[0]
    timeout: int = 60 * SECOND  #: of one attempt; then it has failed
    retries: int = 2  #: after the first attempt of an actor
    delay: int = 0  #: before the first attempt
    stdin: bytes = field(default=b"", repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)  #: values that must not be shown


def agents_of(config: ClusterConfig) -> dict[int, Agent]:
    """The agents by the node that they fence. Raises ``ConfigError`` that names the key."""
    section = Section("", SECTION, config.sections.get(SECTION, {})).table("fencing")
    ids = {peer.name: peer.node for peer in config.peers}
    agents: dict[int, Agent] = {}
    delayed = False
    for name, table in section.named():
        if name not in ids:
            section.fail(name, f"no node has this name; there are {', '.join(ids)}")
        delayed = delayed or "delay_s" in table.values
        agents[ids[name]] = _read(table, name)
    return agents if delayed else _staggered(agents, config)


def _read(table: Section, node: str) -> Agent:
    program = table.text("agent")
    action = table.choice("action", ACTIONS, ACTIONS[0])
    timeout, delay = (
        round(table.number(key, low, 3600, default, "seconds") * SECOND)
        for key, low, default in (("timeout_s", 0.1, 60), ("delay_s", 0, 0))
    )
    retries = table.integer("retries", 0, MAX_RETRIES, default=2)
    if not isinstance(table.values.get("options", {}), Mapping):
        table.fail("options", "must be a table, as in { ip = '10.0.0.3', plug = '4' }")  # without what was given
    options = table.table("options")
    table.end()
    lines = [f"action={action}", f"nodename={node}", *_lines(options)]
    stdin = "".join(f"{line}\n" for line in lines).encode()
    secrets = tuple(str(value) for key, value in sorted(options.values.items()) if _SECRET.search(key) and value)
    return Agent(program, action, timeout, retries, delay, stdin, secrets)


def _lines(options: Section) -> list[str]:
    lines = []
    for key, value in sorted(options.values.items()):
        if not _KEY.fullmatch(key):
            options.fail(key, "is no key: letters, digits and . _ - are allowed")
        if key in ("action", "nodename", "option"):
            options.fail(key, "is given by this node: set `action` beside `options`")
        if not isinstance(value, str | int | float):
            options.fail(key, "must be a text, a number, true or false")
        text = str(int(value)) if isinstance(value, bool) else str(value)
        if not text.isprintable():
            options.fail(key, "must be one line of printable characters")  # the value itself is not shown
        lines.append(f"{key}={text}")
    return lines


def _staggered(agents: Mapping[int, Agent], config: ClusterConfig) -> dict[int, Agent]:
    """Where both parts of a cut cluster are primary they would shoot each other at once, and all would be off. So
    every node is shot the later the lower its id is: the part with the lowest one survives, if its agents work.
    """
    if config.quorum.policy not in ("two_node", "none"):
        return dict(agents)
    ids = sorted((peer.node for peer in config.peers), reverse=True)
    return {node: replace(agent, delay=ids.index(node) * STAGGER_US) for node, agent in sorted(agents.items())}


def unfenced_peers(config: ClusterConfig, agents: Iterable[int]) -> list[str]:
    """The other nodes for which this one has no agent, by name."""
    return [peer.name for peer in config.peers if peer.node not in {config.node, *agents}]


def gist(agent: Agent, output: bytes) -> str:
    """What an agent said, in one line without secrets: its last one, where programs say why they failed."""
    text = output.decode(errors="replace")
    for secret in sorted(agent.secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    return "".join(c if c.isprintable() else " " for c in line)[-MAX_TEXT:]
