"""``[dlm.fencing.NODE]``: what is read, what is refused, what the agent gets, and what nobody gets to see."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlm.agents import Agent, agents_of, gist, unfenced_peers
from dlm.service import DlmService
from vsync.config import load
from vsync.core import Core
from vsync.errors import ConfigError
from vsync.recorder import Recorder
from vsync.types import ClusterConfig, Peer, QuorumConfig

SECOND = 1_000_000
PAGE = Path(__file__).parents[2] / "docs/stonith.md"
PEERS = tuple(Peer(n, name, (f"127.0.0.1:{n}",)) for n, name in enumerate("abc", 1))


def config(policy: str = "majority", **fencing: Any) -> ClusterConfig:
    quorum = QuorumConfig(policy)
    return ClusterConfig("test", 1, PEERS, quorum=quorum, sections={"dlm": {"fencing": fencing}})


def test_nothing_said() -> None:
    assert agents_of(ClusterConfig("test", 1, PEERS)) == {}
    assert agents_of(config()) == {}


def test_defaults() -> None:
    [agent] = agents_of(config(b={"agent": "fence_xvm"})).values()
    assert agent == Agent("fence_xvm", "reboot", 60 * SECOND, 2, 0, b"action=reboot\nnodename=b\n")


def test_all_keys() -> None:
    options: dict[str, Any] = {"ip": "10.0.0.1", "plug": 4, "lanplus": True, "verbose": False, "power_wait": 2.5}
    options["password"] = "s=e c"
    table = {"agent": "/x/y", "action": "off", "timeout_s": 1.5, "retries": 0, "delay_s": 3, "options": options}
    agents = agents_of(config(c=table))
    lines = b"ip=10.0.0.1\nlanplus=1\npassword=s=e c\nplug=4\npower_wait=2.5\nverbose=0\n"
    stdin = b"action=off\nnodename=c\n" + lines
    assert agents == {3: Agent("/x/y", "off", 1_500_000, 0, 3 * SECOND, stdin, ("s=e c",))}


@pytest.mark.parametrize(
    ("table", "error"),
    [
        ({}, r"\[dlm.fencing.b\] agent: is missing"),
        ({"agent": ""}, r"\[dlm.fencing.b\] agent: must not be empty"),
        ({"agent": "x", "agnet": 1}, r"\[dlm.fencing.b\] agnet: unknown key; did you mean 'agent'"),
        ({"agent": "x", "action": "on"}, r"\[dlm.fencing.b\] action: 'on' is not one of reboot, off"),
        ({"agent": "x", "timeout_s": 0}, r"\[dlm.fencing.b\] timeout_s: 0 is not between"),
        ({"agent": "x", "retries": -1}, r"\[dlm.fencing.b\] retries: -1 is not between"),
        ({"agent": "x", "delay_s": "1"}, r"\[dlm.fencing.b\] delay_s: must be a number \(seconds\)"),
        ({"agent": "x", "options": {"a b": 1}}, r"\[dlm.fencing.b.options\] a b: is no key"),
        ({"agent": "x", "options": {"action": "off"}}, r"\[dlm.fencing.b.options\] action: .* beside `options`"),
        ({"agent": "x", "options": {"passwd": "hunter\n2"}}, r"\[dlm.fencing.b.options\] passwd: must be one line"),
        ({"agent": "x", "options": {"passwd": ["hunter2"]}}, r"\[dlm.fencing.b.options\] passwd: must be a text"),
        ({"agent": "x", "options": "passwd=hunter2"}, r"\[dlm.fencing.b\] options: must be a table"),
    ],
)
def test_what_is_wrong_is_named(table: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        agents_of(config(b=table))
    assert "hunter" not in str(caught.value)


def test_a_node_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"\[dlm.fencing\] d: no node has this name; there are a, b, c"):
        agents_of(config(d={"agent": "x"}))


def test_where_both_parts_are_primary_one_shoots_later() -> None:
    """The part with the lowest node is shot last, unless somebody has said otherwise."""
    tables = {name: {"agent": "x"} for name in "abc"}

    def delays(policy: str, **more: Any) -> list[int]:
        agents = agents_of(config(policy, **{**tables, **more}))
        return [agents[node].delay // SECOND for node in (1, 2, 3)]

    assert delays("majority") == [0, 0, 0]
    assert delays("none") == [10, 5, 0]
    assert delays("none", b={"agent": "x", "delay_s": 0}) == [0, 0, 0]
    pair = replace(config("two_node", a=tables["a"], b=tables["b"]), peers=PEERS[:2])
    assert [agent.delay // SECOND for agent in agents_of(pair).values()] == [5, 0]


def test_whom_nobody_here_can_fence() -> None:
    assert unfenced_peers(config(), [2]) == ["c"]
    assert unfenced_peers(config(), [1, 2, 3]) == []


def test_what_an_agent_says() -> None:
    agent = Agent("x", secrets=("abc", "abcdef"))
    assert gist(agent, b"") == ""
    assert gist(agent, b"first\n  last: abcdef abc \n\n \n") == "last: *** ***"
    assert gist(agent, b"\xff\x1b[31mred\n") == "\ufffd [31mred"
    assert gist(agent, b"x" * 1000 + b"end") == "x" * 197 + "end"


def test_secrets_are_not_in_what_is_printed() -> None:
    """Of the configuration as well: it comes with errors and in tracebacks."""
    settings = config(b={"agent": "x", "options": {"snmp_priv_passwd": "hunter2", "ssl_key": "hunter2"}})
    assert "hunter2" not in repr(settings) + repr(agents_of(settings))


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        """
[cluster]
name = "pair"
[node]
name = "a"
[[nodes]]
id = 1
name = "a"
address = "127.0.0.1:7001"
[[nodes]]
id = 2
name = "node-b.example"
address = "127.0.0.1:7002"
[dlm.fencing."node-b.example"]
agent = "fence_ipmilan"
options = { ip = "10.0.0.2", lanplus = true }
"""
    )
    [(node, agent)] = agents_of(load(path).cluster).items()
    assert (node, agent.program) == (2, "fence_ipmilan")
    assert agent.stdin == b"action=reboot\nnodename=node-b.example\nip=10.0.0.2\nlanplus=1\n"


# -- docs/stonith.md

CLUSTER = '[cluster]\nname = "x"\n[node]\nname = "a"\n'


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_tables_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    found = []
    for text in snippets("toml"):
        nodes = "ab" if "two_node" in text else "abc"
        lists = "".join(
            f'[[nodes]]\nid = {i}\nname = "{n}"\naddress = "127.0.0.1:700{i}"\n' for i, n in enumerate(nodes, 1)
        )
        path.write_text(CLUSTER + lists + text)
        found.append(agents_of(load(path).cluster))
    assert [sorted(agents) for agents in found] == [[1, 2, 3], [1, 2], [2]]
    shown = PAGE.read_text().split("What an agent is given:\n\n```\n")[1].split("```")[0]
    assert found[0][2].stdin.decode() == shown
    assert [agent.delay // SECOND for agent in found[1].values()] == [10, 0]


def test_the_agent_on_the_page(tmp_path: Path) -> None:
    [text] = snippets("python")
    agent, number = tmp_path / "agent", tmp_path / "number"
    agent.write_text(text)

    def run(action: str) -> tuple[int, str]:
        given = f"# this line is ignored\naction={action}\nplug={number}\n"
        done = subprocess.run([sys.executable, agent], input=given, capture_output=True, text=True, timeout=60)
        assert not done.stderr
        return done.returncode, done.stdout

    with subprocess.Popen(["sleep", "1000"]) as victim:
        number.write_text(str(victim.pid))
        assert run("status") == (0, "")
        assert run("on") == (1, "")
        assert run("off") == (0, "Success: Powered OFF\n")
        assert run("status") == (2, "")
        assert run("reboot") == (0, "Success: Powered OFF\n")
        assert victim.wait(60) == -9
    assert run("monitor") == (2, "")


def test_secrets_are_in_no_recording_and_no_commit_token() -> None:
    table = {"agent": "x", "options": {"passwd": "hunter2"}}
    settings = config(**dict.fromkeys("abc", table))
    recorder = Recorder(1 << 20)
    node = Core(settings, 1, [DlmService(settings)], None, recorder=recorder)
    node.start(1)
    for now in range(100_000, 3_000_000, 100_000):  # alone, it forms rings
        node.fire(now)
    outputs = repr(node.take_outputs())
    assert "Persist" in outputs
    assert "hunter2" not in outputs + repr(node.status())
    recording = b"".join(recorder.take().chunks())
    assert b"127.0.0.1" in recording
    assert b"hunter2" not in recording
