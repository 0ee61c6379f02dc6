"""The options of lockspaces: what the configuration and requests may say."""

from __future__ import annotations

from typing import Any

import pytest

from dlm.arguments import BadArgument
from dlm.options import DELAY, FENCING, PLAIN, RECOVERY, Configured, Options, given, words
from dlm.plugin import service
from vsync.errors import ConfigError
from vsync.types import ClusterConfig, Peer


def config(**dlm: Any) -> ClusterConfig:
    return ClusterConfig("test", 1, (Peer(1, "a", ("127.0.0.1:1",)),), sections={"dlm": dlm})


def test_nothing_said() -> None:
    assert Configured(ClusterConfig("test", 1, ())).options("default") == PLAIN
    assert PLAIN.row() == {"answer": "delivery", "lock_delay_ms": 0, "fencing": False, "recovery": False}
    assert not PLAIN.needs
    assert not PLAIN.settles


def test_what_is_said_about_each() -> None:
    said = Configured(config(lockspace={"default": {"answer": "stable"}, "disks": {"fencing": True}}))
    assert said.options("default") == Options(stable=True)
    assert said.options("disks") == Options(fencing=True)
    assert said.options("other") == PLAIN


@pytest.mark.parametrize("options", [Options(fencing=True), Options(recovery=True), Options(lock_delay_ms=1)])
def test_who_waits_for_what_a_failed_node_had_settles(options: Options) -> None:
    assert options.settles
    assert options.row()["answer"] == "stable"


def test_needs() -> None:
    assert Options(False, 5, True, True).needs == FENCING | RECOVERY | DELAY
    assert words(FENCING | DELAY) == "fencing, lock_delay"


@pytest.mark.parametrize(
    ("dlm", "says"),
    [
        ({"lockspace": {"default": {"answer": "stabel"}}},
         r"\[dlm\.lockspace\.default\] answer: 'stabel' is not one of delivery, stable; did you mean 'stable'\?"),
        ({"lockspace": {"default": {"lock_delay_ms": -1}}}, r"lock_delay_ms: -1 is not between 0 and 3600000"),
        ({"lockspace": {"default": {"lock_delay_ms": "5s"}}}, r"lock_delay_ms: must be a whole number, not '5s'"),
        ({"lockspace": {"a": {"fencing": 1}}}, r"\[dlm\.lockspace\.a\] fencing: must be true or false, not 1"),
        ({"lockspace": {"a": {"fence": True}}}, r"fence: unknown key; did you mean 'fencing'"),
        ({"lockspace": {"a": True}}, r"\[dlm\.lockspace\] a: must be a table, not True"),
        ({"lockspace": {"a" * 65: {}}}, r"a lockspace's name has 1\.\.64 bytes"),
        ({"lockspaces": {}}, r"\[dlm\] lockspaces: unknown key; did you mean 'lockspace'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(dlm: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        service(config(**dlm))


def test_requests() -> None:
    assert given({}) == (None, None, None, None)
    changes = given({"answer": "stable", "lock_delay_ms": 0, "recovery": True})
    assert changes == (True, 0, None, True)
    assert Options(False, 7, True).changed(changes) == Options(True, 0, True, True)
    wrong: list[dict[str, Any]] = [
        {"answer": "soon"}, {"answer": 1}, {"lock_delay_ms": -1}, {"lock_delay_ms": True}, {"lock_delay_ms": 10**9},
        {"fencing": "yes"}, {"recovery": 2},
    ]  # fmt: skip
    for args in wrong:
        with pytest.raises(BadArgument):
            given(args)
