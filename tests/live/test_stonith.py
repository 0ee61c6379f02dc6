"""Fencing with real daemons and real programs: the agent of docs/stonith.md, and ``fence_dummy`` where it is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import dlm
from tests.live.helpers import holder, log_lines, run, until, works
from vsync.testcluster import LocalCluster

pytestmark = pytest.mark.live

PAGE = Path(__file__).parents[2] / "docs/stonith.md"
NAME = "journal"
#: Does what a file says: hangs until the file is gone, or ends at once with the exit code that is in it.
OBEDIENT = """#!/bin/sh
while IFS='=' read -r key value; do
    case $key in plug) orders=$value ;; esac
done
[ -f "$orders" ] || exit 0
read -r order < "$orders"
[ "$order" = hang ] || { echo "Failed: ordered"; exit "$order"; }
while [ -f "$orders" ]; do sleep 0.05; done
"""


class Range(LocalCluster):
    """A cluster whose nodes can be fenced. ``folder/NODE.plug`` is what the agent of that node looks at."""

    def __init__(
        self, agent: str, nodes: int = 3, policy: str = "majority", fenced: str = "abc", **more: Any
    ) -> None:
        timing = {"token_ms": 500, "token_retransmit_ms": 110, "hold_ms": 90, "lease_ms": 1500}
        super().__init__(nodes, timing=timing)
        program = self.folder / "fence_here"
        program.write_text(agent)
        program.chmod(0o755)
        text = f'\n[quorum]\npolicy = "{policy}"\n'
        text += "[dlm.lockspace.default]\nfencing = true\n" if policy == "majority" else ""
        for name in fenced[:nodes]:
            options = more.get("options", {"plug": str(self.plug(name)), "passwd": "hunter2"})
            words = {"agent": str(more.get("program", program)), "retries": 0, **more.get("settings", {})}
            text += f"[dlm.fencing.{name}]\n{_keys(words)}[dlm.fencing.{name}.options]\n{_keys(options)}"
        for node in self.nodes:
            node.config.write_text(node.config.read_text() + text)

    def plug(self, name: str) -> Path:
        return self.folder / f"{name}.plug"

    def fences(self, name: str) -> list[dict[str, Any]]:
        done = run("dlm", "--url", self[name].url, "fences", "--json")
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)["fences"]
        return rows

    def logs(self) -> str:
        return "".join(node.log.read_text(errors="replace") for node in self.nodes)


def _keys(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


@contextlib.contextmanager
def waiter(cluster: Range, name: str) -> Iterator[list[dlm.Held]]:
    """A request for the lock through this node; gives a list that the grant will be in."""
    found: list[dlm.Held] = []
    with dlm.connect(cluster[name].url) as locks:
        thread = threading.Thread(target=lambda: found.append(locks.acquire(NAME, timeout=60)))
        thread.start()
        yield found
        thread.join(60)
        for held in found:
            held.release()


def example() -> str:
    """The agent that the page shows."""
    [agent] = re.findall(r"^```python\n(#!.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(agent)


def test_a_node_that_stands_still_is_off_before_others_get_its_lock() -> None:
    with Range(example()) as cluster, holder(cluster["c"], NAME) as (_, fence):
        cluster.plug("c").write_text(str(cluster["c"].pid))
        cluster.stop("c")
        with waiter(cluster, "b") as found:
            held = until(lambda: found, "the grant")[0]
            assert not cluster["c"].running
            assert held.fence > fence
        [line] = log_lines(cluster["a"], "dlm.fenced")
        assert "Success: Powered OFF" in line
        assert cluster.fences("b") == []
        cluster.restart("c")
        cluster.wait_view("abc")
        works(cluster)


def test_nobody_gets_it_before() -> None:
    with Range(OBEDIENT) as cluster, holder(cluster["c"], NAME):
        cluster.plug("c").write_text("hang")
        cluster.kill("c")
        with waiter(cluster, "b") as found:
            until(lambda: [row for row in cluster.fences("a") if row["step"] == "runs the agent"], "the agent")

            def past() -> bool:
                services = (cluster.status("b") or {}).get("services", {})
                return bool(services) and services["dlm"]["grants_wait_ms"] == 0 and services["dlm"]["deferred"] > 0

            until(past, "the end of the leases")
            [row] = cluster.fences("b")
            assert (row["name"], row["actor"], row["attempts"]) == ("c", 1, 0)
            assert not found
            with dlm.connect(cluster["b"].url) as locks, locks.lock("unrelated", timeout=20):
                assert not found
            cluster.plug("c").unlink()
            until(lambda: found, "the grant")


def test_an_operator_says_so_when_no_agent_works() -> None:
    with Range(OBEDIENT) as cluster, holder(cluster["c"], NAME):
        cluster.plug("c").write_text("7")
        cluster.kill("c")
        with waiter(cluster, "b") as found:
            until(lambda: [row for row in cluster.fences("b") if row["given_up"] >= 2], "both have tried")
            [row] = cluster.fences("a")
            assert (row["exit"], row["said"]) in [(7, "Failed: ordered"), (None, "")]
            assert not found
            url = cluster["b"].url
            assert run("dlm", "--url", url, "fence-ack", "c").returncode == 2
            done = run("dlm", "--url", url, "fence-ack", "c", "--yes")
            assert (done.returncode, done.stdout) == (0, "node c counts as down\n")
            until(lambda: found, "the grant")
        [line] = log_lines(cluster["b"], "dlm.fence_ack")
        assert f"uid={os.getuid()}" in line
        assert "hunter2" not in cluster.logs()
        assert run("dlm", "--url", url, "fence-ack", "c", "--yes").returncode == 1


def test_it_comes_back_by_itself() -> None:
    with Range("", program="/no/such/agent") as cluster, holder(cluster["c"], NAME):
        cluster.kill("c")
        with waiter(cluster, "b") as found:
            until(lambda: [row for row in cluster.fences("a") if row["given_up"] >= 1], "a failure")
            assert any("No such file or directory" in line for line in log_lines(cluster["a"], "dlm.fence_failed"))
            assert not found
            cluster.restart("c")
            until(lambda: found, "the grant")
        assert cluster.fences("b") == []


def test_two_nodes() -> None:
    with Range(example(), 2, "two_node", "ab") as cluster, holder(cluster["b"], NAME):
        cluster.plug("b").write_text(str(cluster["b"].pid))
        cluster.plug("a").write_text(str(cluster["a"].pid))
        cluster.stop("b")
        with waiter(cluster, "a") as found:
            until(lambda: found, "the grant")
            assert not cluster["b"].running


def test_two_nodes_without_agents_give_out_no_locks() -> None:
    with Range("", 2, "two_node", "a") as cluster, dlm.connect(cluster["a"].url) as locks:
        with pytest.raises(dlm.InvalidRequest, match=r"no agent for b") as caught:
            locks.acquire(NAME, timeout=20)
        assert caught.value.code == "unsafe"


@pytest.mark.skipif(not shutil.which("fence_dummy", path="/usr/sbin:/usr/bin"), reason="no fence-agents here")
def test_a_real_agent(tmp_path: Path) -> None:
    state = tmp_path / "c.status"
    state.write_text("on")
    options = {"type": "file", "status_file": str(state)}
    more: dict[str, Any] = {"program": "fence_dummy", "options": options, "settings": {"action": "off"}}
    with Range("", **more) as cluster, holder(cluster["c"], NAME):
        cluster.kill("c", signal.SIGKILL)
        with waiter(cluster, "b") as found:
            until(lambda: found, "the grant")
        assert state.read_text() == "off"
        assert log_lines(cluster["a"], "dlm.fenced")
