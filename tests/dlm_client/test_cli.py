"""The program ``dlm``: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dlm
from dlm.cli import main
from dlm.cli.table import printable
from vsync.errors import RequestFailed

ROOT = Path(__file__).parents[2]


def lock(session: int, mode: str | None, asked: str, fence: int = 0) -> dict[str, Any]:
    return {
        "node": 1, "session": session, "h": 3, "mode": mode, "asked": asked, "pid": 4000 + session,
        "name": "backup", "fence": fence, "since_us": 17,
    }  # fmt: skip


SHARED = {
    "name": b"job/1",
    "space": "default",
    "state": "shared",
    "owner": None,
    "mode": "PR",
    "holders": [lock(1, "PR", "PR", 81), lock(2, "PR", "PR", 82)],
    "converting": [lock(3, "PR", "EX", 80)],
    "waiters": [lock(4, None, "EX")],
    "fence": 82,
    "value_valid": True,
}
PRIVATE = {
    "name": b"cache/\xff\x1b", "space": "default", "state": "private", "owner": 2, "mode": None, "holders": None,
    "converting": None, "waiters": None, "fence": None, "value_valid": None,
}  # fmt: skip


TABLE = """\
RESOURCE        MODE  HOLDERS        WAITERS              FENCE  VALUE  STATE    OWNER
cache/\\xff\\x1b  -     ?              ?                    -      -      private  2
job/1           PR    1/4001 1/4002  1/4003:EX 1/4004:EX  82     valid  shared   -
"""


@pytest.fixture
def daemon(channel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The channel, as what any URL leads to."""
    channel.script["ls"] = lambda args: [SHARED, PRIVATE]
    channel.script["show"] = lambda args: (
        SHARED if args["name"] == b"job/1" else PRIVATE if args["name"] == b"cache" else RequestFailed("unknown")
    )

    def connect(url: str | None = None, **more: Any) -> dlm.Client:
        channel.url = url
        return dlm.Client.over(channel, clock_us=lambda: channel.now, **more)

    monkeypatch.setattr(dlm, "connect", connect)
    return channel


def test_ls_is_a_table_sorted_by_name(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    assert capsys.readouterr().out == TABLE
    first, last = [args for verb, args in daemon.sent if verb == "ls"]
    assert first == {"space": "default", "prefix": b"", "limit": 10_000}
    assert last["after"]  # a long list comes in several answers: it asks until one brings nothing new
    assert daemon.closed


def test_ls_in_json_has_all_of_the_table(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "unix:///there", "ls", "--json", "jo"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["v"] == 1
    assert [row["name"] for row in data["locks"]] == ["cache/\\xff\x1b", "job/1"]
    assert data["locks"][0]["holders"] is None
    job = data["locks"][1]
    assert [one["fence"] for one in job["holders"]] == [81, 82]
    assert [(one["mode"], one["asked"]) for one in job["converting"] + job["waiters"]] == [
        ("PR", "EX"),
        (None, "EX"),
    ]
    assert (daemon.url, daemon.last("ls")["prefix"]) == ("unix:///there", b"jo")


def test_show_lists_the_queues_in_order(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "job/1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "fence:     82" in lines
    assert [line.split()[0] for line in lines[-4:]] == ["held", "held", "converting", "waiting"]
    assert lines[-1].split() == ["waiting", "1", "4004", "backup", "-", "EX", "-"]


def test_show_says_when_only_the_owner_knows(daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "cache"]) == 0
    assert "known to node 2 alone" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_show_of_a_name_without_locks_is_1(
    daemon: Any, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "nothing", *flags]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["lock"] is None if flags else "nobody holds" in err


def test_holders_and_contenders(daemon: Any) -> None:
    locks = dlm.connect()
    assert [str(one) for one in locks.holders("job/1") or ()] == ["1/4001", "1/4002"]
    assert [str(one) for one in locks.lock("job/1").contenders() or ()] == ["1/4003:EX", "1/4004:EX"]
    assert locks.holders("cache") is None
    assert locks.lock("cache").contenders() is None
    assert locks.holders("nothing") == ()
    locks.close()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (dlm.NotConnected("the daemon at unix:///x is not there"), 4),
        (dlm.NoQuorum("alone"), 3),
        (dlm.InvalidRequest("name too long"), 1),
    ],
)
def test_errors_have_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def connect(url: str | None, **_: Any) -> dlm.Client:
        raise error

    monkeypatch.setattr(dlm, "connect", connect)
    assert main(["ls"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert str(error) in err


@pytest.mark.parametrize("arguments", [["no-such-command"], ["show"], ["ls", "--no-such-option"]])
def test_usage_errors_are_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("ls", "show", "run"))


def test_nothing_that_a_terminal_could_obey_is_printed() -> None:
    assert printable("a\x1b[2Jä\n") == "a\\x1b[2Jä\\n"


def test_run_imports_neither_click_nor_rich(tmp_path: Path) -> None:
    script = (
        "import sys; from dlm.cli import main\n"
        f"code = main(['--url', '{tmp_path}/none', 'run', 'x', '--', 'true'])\n"
        "print(code, sorted({'click', 'rich', 'zmq', 'structlog', 'asyncio'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "4 []\n"
    assert f"{tmp_path}/none" in done.stderr
