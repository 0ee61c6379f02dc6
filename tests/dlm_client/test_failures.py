"""What waits after a failure, as programs see it: ``failures``, ``recoveries``, and the commands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

import dlm
from dlm.cli import main
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.errors import RequestFailed
from vsync.transport.memory import MemoryHub

ROW = {"space": "default", "node": 3, "incarnation": 7, "position": 12, "needs": "fencing, recovery", "names": 2,
       "since_us": 41_000_000}  # fmt: skip
EVERYTHING = {**ROW, "space": "*", "needs": "fencing", "names": None}
RECOVERY = {"space": "default", "node": 3, "incarnation": 7, "position": 12, "names": 2, "ready": True}
WAITING = {
    "for": "fencing", "node": 3, "nodes": [3], "space": None, "since_us": 41_000_000, "until_us": None,
    "text": "waiting for fencing of node 3 since 41 s; actor node 1; agent exit 1",
    "remedy": "repair the agent or its device; or if the node is certainly down: dlm fence-ack c",
}  # fmt: skip


@pytest.fixture
def daemon(channel: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The channel, as what any URL leads to."""
    channel.script["failures"] = lambda args: [ROW, EVERYTHING]
    channel.script["ls"] = lambda args: []
    channel.script["waiting"] = lambda args: [WAITING]
    monkeypatch.setattr(
        dlm, "connect", lambda url=None, **more: dlm.Client.over(channel, clock_us=lambda: channel.now, **more)
    )
    return channel


def test_failures(locks: dlm.Client, channel: Any) -> None:
    channel.script["failures"] = lambda args: [ROW, EVERYTHING]
    first, second = locks.failures()
    assert (first.node, first.needs, first.names, first.since_s) == (3, ("fencing", "recovery"), 2, 41.0)
    assert (second.space, second.names) == ("*", None)
    assert json.loads(json.dumps(first.to_json()))["needs"] == ["fencing", "recovery"]


def test_recoveries(locks: dlm.Client, channel: Any) -> None:
    channel.script["recoveries"] = lambda args: [RECOVERY]
    [found] = locks.recoveries()
    assert found == dlm.Recovery("default", 3, 7, 12, 2)
    locks.recovered(found)
    assert channel.last("recovered") == {"space": "default", "node": 3, "position": 12}
    locks.recovered(4)
    assert channel.last("recovered") == {"space": "default", "node": 4}


@pytest.mark.parametrize("code", ["no_failure", "early"])
def test_it_can_be_refused(locks: dlm.Client, channel: Any, code: str) -> None:
    channel.script["recovered"] = lambda args: RequestFailed(code, "so it is")
    with pytest.raises(dlm.InvalidRequest, match=r"^so it is$") as caught:
        locks.recovered(3)
    assert caught.value.code == code


class TestNextRecovery:
    def test_it_waits(self, locks: dlm.Client, channel: Any, in_thread: Callable[..., Any]) -> None:
        thread = in_thread(locks.next_recovery)
        channel.wait_sent("recover_watch")
        channel.push("recover", **RECOVERY)
        assert thread.outcome().node == 3

    def test_each_is_given_once(self, locks: dlm.Client, channel: Any) -> None:
        channel.push("recover", **RECOVERY)
        channel.push("recover", **{**RECOVERY, "node": 4})
        assert [locks.next_recovery().node for _ in range(2)] == [3, 4]  # type: ignore[union-attr]
        assert locks.next_recovery(timeout=0) is None

    def test_of_this_lockspace(self, locks: dlm.Client, channel: Any) -> None:
        web = locks.space("web")
        channel.push("recover", **RECOVERY)
        assert web.next_recovery(timeout=0) is None
        assert channel.last("recover_watch") == {"space": "web"}
        assert locks.next_recovery(timeout=0) is not None

    def test_the_session_ends(self, locks: dlm.Client, channel: Any, in_thread: Callable[..., Any]) -> None:
        thread = in_thread(locks.next_recovery)
        channel.wait_sent("recover_watch")
        channel.end("gone")
        with pytest.raises(dlm.NotConnected):
            thread.outcome()


def test_asyncio() -> None:
    """Over a node in this process."""
    import vsync

    async def main() -> None:
        async with dlm.AsyncClient(node) as locks:
            assert await locks.failures() == await locks.recoveries() == await locks.waiting() == []
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await locks.next_recovery()
            waiter = asyncio.ensure_future(locks.next_recovery())
            await asyncio.sleep(0)
            locks.session._on_push("recover", RECOVERY)
            assert (await waiter).node == 3
            with pytest.raises(dlm.InvalidRequest):
                await locks.recovered(3)

    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        with dlm.Client(node) as locks:
            locks.acquire("x").release()  # the horizon of the start is over
        asyncio.run(main())


class TestCommands:
    def test_failures(self, daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["failures"]) == 0
        assert capsys.readouterr().out == (
            "SPACE    NODE  NEEDS              NAMES  SINCE\n"
            "default  3     fencing, recovery  2      41s\n"
            "*        3     fencing            all    41s\n"
        )

    def test_failures_in_json(self, daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["failures", "--json"]) == 0
        data = json.loads(capsys.readouterr().out)
        assert (data["v"], [row["space"] for row in data["failures"]]) == (1, ["default", "*"])

    def test_recovered(self, daemon: Any) -> None:
        assert main(["recovered", "web", "3"]) == 0
        assert daemon.last("recovered") == {"space": "web", "node": 3}
        assert "space_create" not in daemon.verbs()

    @pytest.mark.parametrize(("code", "exit_code"), [("no_failure", 1), ("early", 1), ("no_quorum", 3)])
    def test_recovered_refused(
        self, daemon: Any, capsys: pytest.CaptureFixture[str], code: str, exit_code: int
    ) -> None:
        daemon.script["recovered"] = lambda args: RequestFailed(code, "so it is")
        assert main(["recovered", "default", "3"]) == exit_code
        assert capsys.readouterr().err == "dlm: so it is\n"

    def test_ls_says_what_answers_wait_for(self, daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["ls"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-2:] == [WAITING["text"], f"  {WAITING['remedy']}"]

    def test_ls_says_it_in_json(self, daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["ls", "--json"]) == 0
        [row] = json.loads(capsys.readouterr().out)["waiting"]
        assert (row["for"], row["nodes"], row["since_s"], row["left_s"]) == ("fencing", [3], 41.0, None)

    def test_why_says_it_too(self, daemon: Any, capsys: pytest.CaptureFixture[str]) -> None:
        daemon.script["why"] = lambda args: {
            "name": b"x", "space": "default", "position": 5, "state": "shared", "owner": None, "known": True,
            "held": [], "waits": [], "others": 0, "untold": 1, "withheld": [WAITING],
        }  # fmt: skip
        assert main(["show", "x", "--why"]) == 0
        assert capsys.readouterr().out.splitlines()[:3] == [
            WAITING["text"],
            f"  {WAITING['remedy']}",
            "1 answer about this name waits for that",
        ]
