"""``dlm space``, and ``--space`` of the other commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

import dlm
from dlm.cli import main
from dlm.cli.run import parse
from vsync.errors import RequestFailed

ROWS = [
    {"name": "default", "uid": 0, "gid": 0, "permissions": 0o666, "value_limit": 1024, "created": 0,
     "closing": False, "names": 3},
    {"name": "web\x1b", "uid": 4711, "gid": 4712, "permissions": 0o60, "value_limit": 65536, "created": 9,
     "closing": True, "names": 0, "answer": "stable", "lock_delay_ms": 1500, "fencing": True, "recovery": False},
]  # fmt: skip
PLAIN = {"answer": "delivery", "lock_delay_ms": 0, "fencing": False, "recovery": False}

TABLE = """\
SPACE    OWNER  GROUP  MODE  VALUE  NAMES  STATE    OPTIONS
default  root   root   0666  1024   3      open     -
web\\x1b  4711   4712   0060  65536  0      closing  stable,fencing,lock_delay=1.5s
"""


@pytest.fixture
def daemon(channel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The channel, as what any URL leads to."""
    channel.script["space_ls"] = lambda args: ROWS
    channel.script["space_create"] = lambda args: {**ROWS[1], "name": args["space"]}
    channel.script["space_set"] = lambda args: ROWS[1]
    channel.script["ls"] = lambda args: []

    def connect(url: str | None = None, *, name: str | None = None, **more: Any) -> dlm.Client:
        channel.url = url
        return dlm.Client.over(channel, clock_us=lambda: channel.now, **more)

    monkeypatch.setattr(dlm, "connect", connect)
    return channel


def test_ls_is_a_table(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "ls"]) == 0
    assert capsys.readouterr().out == TABLE
    assert daemon.closed


def test_ls_in_json(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "unix:///there", "space", "ls", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["v"] == 1
    assert data["spaces"] == [
        {**ROWS[0], **PLAIN, "permissions": "0666"},
        {**ROWS[1], "permissions": "0060"},
    ]
    assert daemon.url == "unix:///there"


def test_create(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "create", "web"]) == 0
    assert daemon.last("space_create") == {
        "space": "web", "permissions": 0o660, "value_limit": 1024, "exclusive": True,
    }  # fmt: skip
    assert capsys.readouterr().out == ""


def test_create_with_all_options(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--mode", "600", "--value-limit", "65536", "--exist-ok", "--json"]
    assert main(["space", "create", "web", *more]) == 0
    assert daemon.last("space_create") == {
        "space": "web", "permissions": 0o600, "value_limit": 65536, "exclusive": False,
    }  # fmt: skip
    assert json.loads(capsys.readouterr().out)["space"]["name"] == "web"


OPTIONS = [
    (["--answer", "stable"], {"answer": "stable"}),
    (["--lock-delay", "5s"], {"lock_delay_ms": 5000}),
    (["--lock-delay", "2"], {"lock_delay_ms": 2000}),
    (["--lock-delay", "1.5m"], {"lock_delay_ms": 90_000}),
    (["--lock-delay", "250ms", "--fencing"], {"lock_delay_ms": 250, "fencing": True}),
    (["--no-fencing", "--recovery"], {"fencing": False, "recovery": True}),
]


@pytest.mark.parametrize(("arguments", "said"), OPTIONS)
def test_create_with_options(daemon: Any, arguments: list[str], said: dict[str, Any]) -> None:
    assert main(["space", "create", "web", *arguments]) == 0
    made = daemon.last("space_create")
    assert {key: made[key] for key in PLAIN if key in made} == said


@pytest.mark.parametrize(("arguments", "said"), OPTIONS)
def test_set_options(
    daemon: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], said: dict[str, Any]
) -> None:
    assert main(["space", "set", "default", *arguments, "--json"]) == 0
    assert daemon.last("space_set") == {"space": "default", **said}
    assert json.loads(capsys.readouterr().out)["space"]["answer"] == "stable"


@pytest.mark.parametrize("flags", [[], ["-f"], ["-ff"], ["--force", "--force", "--force"]])
def test_release(daemon: Any, flags: list[str]) -> None:
    assert main(["space", "release", "web", *flags]) == 0
    force = sum(flag.count("f") if flag.startswith("-f") else 1 for flag in flags)
    assert daemon.last("space_release") == {"space": "web", "force": min(force, 2)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["create"],
        ["create", "x", "--mode", "9"],
        ["create", "x", "--value-limit", "0"],
        ["create", "x", "--answer", "soon"],
        ["set", "x"],
        ["set", "x", "--lock-delay", "soon"],
        ["set", "x", "--lock-delay", "5h"],
        ["set", "x", "--lock-delay", "61m"],
        ["set", "x", "--lock-delay", "-1s"],
    ],
)
def test_usage_errors_are_2(daemon: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", *arguments]) == 2
    assert "Usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "exit_code"), [("space_busy", 1), ("closing", 1), ("permission", 1), ("no_quorum", 3)]
)
def test_errors_have_exit_codes(
    daemon: Any, capsys: pytest.CaptureFixture[str], code: str, exit_code: int
) -> None:
    daemon.script["space_release"] = lambda args: RequestFailed(code, "so it is", {"space": "web"})
    assert main(["space", "release", "web"]) == exit_code
    assert "so it is" in capsys.readouterr().err


def test_looking_makes_no_lockspace(daemon: Any) -> None:
    assert main(["ls", "--space", "web"]) == 0
    assert daemon.last("space_open") == {"space": "web", "no_quorum": "fail"}
    assert daemon.last("ls")["space"] == "web"
    assert "space_create" not in daemon.verbs()


def test_show_in_a_space_that_is_not_there(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.script["space_open"] = lambda args: RequestFailed("no_space", "there is no lockspace 'web'")
    assert main(["show", "x", "--space", "web"]) == 1
    assert "no lockspace 'web'" in capsys.readouterr().err
    assert daemon.closed


def test_run_has_one_too() -> None:
    options, _ = parse(["--space", "web", "x", "--", "true"])
    assert options.space == "web"
    assert parse(["x", "--", "true"])[0].space == "default"
