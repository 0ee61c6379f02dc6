"""The configuration file: what is accepted, and that every mistake is named with its key and a remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from vsync.config import load, with_paths
from vsync.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"

LONG = "x" * 120
GOOD = """
[cluster]
name = "prod"
[node]
name = "b"
[[nodes]]
id = 1
name = "a"
address = "127.0.0.1:7001"
[[nodes]]
id = 2
name = "b"
address = "[::1]:7002"
votes = 3
[timing]
token_ms = 500
[daemon]
socket = "/tmp/x/{node}.sock"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    settings = load(write(tmp_path, GOOD))
    cluster = settings.cluster
    assert (cluster.cluster, cluster.node) == ("prod", 2)
    assert [(p.node, p.name, p.addresses, p.votes) for p in cluster.peers] == [
        (1, "a", ("127.0.0.1:7001",), 1),
        (2, "b", ("[::1]:7002",), 3),
    ]
    assert cluster.timing.token == 500_000
    assert str(settings.daemon.socket) == "/tmp/x/b.sock"


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert load(path, "a").cluster.node == 1
    assert load(path, "1").cluster.node == 1
    assert str(with_paths(load(path, "a"), socket="/s/{node}").daemon.socket) == "/s/a"


@pytest.mark.parametrize("node", ["a", "b", "c"])
def test_the_three_node_example_is_right_for_each_node(node: str) -> None:
    settings = load(CONFIGS / "three-nodes.toml", node)
    assert settings.cluster.name(settings.cluster.node) == node
    assert str(settings.daemon.socket).endswith(f"/{node}.sock")


def test_the_example_documents_the_defaults() -> None:
    from vsync.types import Timing

    assert load(CONFIGS / "three-nodes.toml", "a").cluster.timing == Timing()


def test_quorum(tmp_path: Path) -> None:
    from vsync.types import QuorumConfig

    assert load(write(tmp_path, GOOD)).cluster.quorum == QuorumConfig() == QuorumConfig("majority")
    text = '\n[quorum]\npolicy = "last_man_standing"\nwait_for_all = true\nauto_tie_breaker = true\n'
    assert load(write(tmp_path, GOOD + text)).cluster.quorum == QuorumConfig("last_man_standing", True, True)
    text = '\n[quorum]\npolicy = "two_node"\nunsafe = true\n'
    assert load(write(tmp_path, GOOD + text)).cluster.quorum == QuorumConfig("two_node", unsafe=True)
    assert load(CONFIGS / "three-nodes.toml", "a").cluster.quorum == QuorumConfig()


def test_the_development_example_needs_no_node() -> None:
    assert load(CONFIGS / "development.toml").cluster.node == 1


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("token_ms = 500", "tokn_ms = 500", r"timing\.tokn_ms: unknown key; did you mean 'token_ms'"),
        ("[timing]", "[timings]", r"timings: unknown key; did you mean 'timing'"),
        ("votes = 3", "weight = 3", r"nodes\[2\]\.weight: unknown key; known here: address, id"),
        ("votes = 3", "votes = true", r"nodes\[2\]\.votes: must be a whole number, not True"),
        ("votes = 3", 'votes = "3"', r"nodes\[2\]\.votes: must be a whole number, not '3'"),
        ("votes = 3", "votes = -1", r"nodes\[2\]\.votes: -1 is not between"),
        ("id = 2", "id = 1", r"nodes\[2\]\.id: 1 is already used by nodes\[1\]"),
        ('name = "b"\naddress', 'name = "a"\naddress', r"nodes\[2\]\.name: 'a' is already used"),
        ("[::1]:7002", "127.0.0.1:7001", r"nodes\[2\]\.address: '127.0.0.1:7001' is already used"),
        ("[::1]:7002", "localhost", r"nodes\[2\]\.address: .* is not host:port"),
        ("[::1]:7002", "127.0.0.1:70000", r"is not host:port"),
        ("[::1]:7002", "::1:7002", r"put an IPv6 address in brackets"),
        ("[::1]:7002", "10.0.0.1:7002", r"nodes: node 'b': address 10.0.0.1:7002 is not a loopback address"),
        ('[node]\nname = "b"', '[node]\nname = "bb"', r"node: 'bb' is not among .*did you mean 'b'"),
        ('[node]\nname = "b"', '[node]\nname = "b"\nid = 1', r"node: id 1 and name 'b' are two different"),
        ('[node]\nname = "b"', "", r"node: which of \[\[nodes\]\] is this one\? .*--node"),
        ('[cluster]\nname = "prod"', "", r"cluster: is missing"),
        ('name = "prod"', 'name = "a b"', r"cluster\.name: 'a b' is not a name"),
        ("token_ms = 500", "token_ms = 3000", r"timing: lease must exceed .*\(here: .*token_ms = 3000"),
        ("token_ms = 500", 'log = "x"', r"timing\.log: unknown key"),
        ("token_ms = 500", "token_ms = 0", r"timing\.token_ms: 0 is not between"),
        ('socket = "/tmp/x/{node}.sock"', 'log_level = "inf"', r"log_level: 'inf' .*did you mean 'info'"),
        ('socket = "/tmp/x/{node}.sock"', f'socket = "/{LONG}"', r"daemon\.socket: is longer"),
        ("votes = 3", "votes = 3 3", r"is not valid TOML: .*line"),
        ("[timing]", '[quorum]\npolicy = "majorty"\n[timing]', r"quorum\.policy: .*did you mean 'majority'"),
        ("[timing]", "[quorum]\nwait_for_all = 1\n[timing]", r"quorum\.wait_for_all: must be true or false, not 1"),
        ("[timing]", "[quorum]\nwait_for_al = true\n[timing]", r"quorum\.wait_for_al: unknown key; did you mean"),
        ("[timing]", '[quorum]\npolicy = "two_node"\nauto_tie_breaker = true\n[timing]',
         r"quorum: auto_tie_breaker has no meaning with policy two_node"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert GOOD.count(old) == 1
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=says) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_table_named_like_a_service_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsync.config.service_names", lambda: ["dlm", "timing"])
    assert load(write(tmp_path, GOOD)).cluster.sections == {}
    cluster = load(write(tmp_path, GOOD + "[dlm.lockspace.default]\nwhatever = 3\n")).cluster
    assert cluster.sections == {"dlm": {"lockspace": {"default": {"whatever": 3}}}}
    assert cluster.timing.token == 500_000, "the file's own tables are not a service's"
    with pytest.raises(ConfigError, match="dln: unknown key; did you mean 'dlm'"):
        load(write(tmp_path, GOOD + "[dln]\n"))
    with pytest.raises(ConfigError, match="dlm: must be a table, not 3"):
        load(write(tmp_path, "dlm = 3\n" + GOOD))


def test_nobody_with_a_vote(tmp_path: Path) -> None:
    text = '[cluster]\nname="x"\n[[nodes]]\nid=1\nname="a"\naddress="127.0.0.1:1"\nvotes=0\n'
    with pytest.raises(ConfigError, match="no node has a vote"):
        load(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load(tmp_path / "nowhere.toml")


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load(path)
