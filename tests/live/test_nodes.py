"""``vsync nodes`` with real daemons: a cluster grows, shrinks, and gets another machine, while a lock is held."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import dlm
from tests.live.helpers import log_lines, status, until, works
from vsync.testcluster import LocalCluster

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


def vsync(cluster: LocalCluster, at: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vsync", *words, "--url", cluster[at].url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def nodes(cluster: LocalCluster, at: str, *words: str) -> dict[str, Any]:
    """The command is in force when this returns."""
    done = vsync(cluster, at, "nodes", *words, "--json")
    assert done.returncode == 0, done.stderr
    listing: dict[str, Any] = json.loads(done.stdout)
    return listing


@pytest.mark.parametrize(
    ("transport", "links"),
    [("zmq", 2), ("udp", 1)] + [pytest.param(*way, marks=pytest.mark.long) for way in (("zmq", 1), ("udp", 2))],
)
def test_grows_shrinks_and_is_repaired_while_a_lock_is_held(transport: str, links: int) -> None:
    with (
        LocalCluster(settings={"transport": transport}, links=links) as cluster,
        dlm.connect(cluster["a"].url) as locks,
        locks.acquire("held") as held,
    ):
        fence = held.fence

        def still_held() -> None:
            assert held.valid
            assert held.fence == fence
            with dlm.connect(cluster[cluster.running[-1]].url) as other, pytest.raises(dlm.LockTimeout):
                other.acquire("held", timeout=0.2)

        d = cluster.enlist()
        cluster.restart("d")
        until(lambda: log_lines(cluster["a"], "run vsync nodes add"), "d is refused, and it is said why")
        listing = nodes(cluster, "b", "add", "d", *d.addresses)
        assert [(row["id"], row["votes"]) for row in listing["nodes"]] == [(1, 1), (2, 1), (3, 1), (4, 1)]
        cluster.wait_view("abcd")
        still_held()

        assert cluster.leave("b") == 0
        nodes(cluster, "c", "remove", "b", "--yes")
        cluster.wait_view("acd")
        still_held()
        cluster.restart("b")
        until(lambda: (status_of(cluster, "b") or {}).get("outside"), "b is told that it was removed")
        until(lambda: status(cluster, "b")["view"], "b is alone")
        assert not status(cluster, "b")["view"]["primary"]
        assert cluster.leave("b") == 0

        cluster.kill("c")
        cluster.wait_view("ad")
        c = cluster.move("c")
        assert vsync(cluster, "a", "nodes", "replace", "a", "--votes", "1").stderr.count("stop its vsyncd") == 1
        nodes(cluster, "a", "replace", "c", *c.addresses)
        cluster.restart("c")
        cluster.wait_view("acd")
        still_held()

        for name in "cd":  # as if for an upgrade: what counts is what is stored
            assert cluster.leave(name) == 0
            cluster.restart(name)
            cluster.wait_view("acd")
        still_held()
        assert status(cluster, "c")["expected_votes"] == 3
        works(cluster)


def status_of(cluster: LocalCluster, name: str) -> dict[str, Any] | None:
    answer = cluster.status(name)
    return answer and answer["services"]["nodes"]


def test_what_a_file_says_otherwise_is_told(cluster: LocalCluster) -> None:
    nodes(cluster, "a", "set", "a", "--votes", "2")
    assert cluster.leave("b") == 0
    cluster.wait_view("ac")
    cluster.restart("b")
    cluster.wait_view("abc")
    (line,) = log_lines(cluster["b"], "nodes_differ")
    assert "node 1 has votes 1, not 2" in line
    shown = vsync(cluster, "b", "status")
    assert "Nodes   this host's file: node 1 has votes 1, not 2; the cluster's own word goes first" in shown.stdout
    assert shown.returncode == 0

    exported = vsync(cluster, "b", "nodes", "export").stdout
    file = cluster["b"].config
    text = file.read_text()
    start, end = text.index("[[nodes]]"), text.index("[daemon]")
    file.write_text(f"{text[:start]}{exported}\n{text[end:]}")
    assert cluster.leave("b") == 0
    cluster.restart("b")
    cluster.wait_view("abc")
    assert len(log_lines(cluster["b"], "nodes_differ")) == 1
    assert "Nodes" not in vsync(cluster, "b", "status").stdout


def test_files_that_differ_make_no_cluster() -> None:
    cluster = LocalCluster(2)
    try:
        file = cluster["b"].config
        file.write_text(file.read_text().replace('name = "a"\n', 'name = "a"\nvotes = 3\n'))
        for name in "ab":
            cluster.restart(name)
        why = "the [[nodes]] of these nodes' files differ from node 1's: that of node 2: node 1 has votes 3, not 1"
        until(lambda: why in vsync(cluster, "a", "status").stdout, "status says whose file differs in what")
        assert vsync(cluster, "b", "status").returncode == 3
        until(lambda: any(why in line for line in log_lines(cluster["b"], "view_installed")), "so does the log")
        assert "vsync: the view is not primary" in vsync(cluster, "a", "nodes", "remove", "b", "--yes").stderr
    finally:
        cluster.close()
