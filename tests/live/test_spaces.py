"""Lockspaces of three daemons: made here, used there, known to who joins, closed to other users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlm
from tests.live.helpers import run, until
from vsync.testcluster import LocalCluster, LocalNode

pytestmark = pytest.mark.live

SOMEBODY = 65501  #: a user and group that owns nothing

#: A program that becomes somebody else, then does something and says how it went.
AS = """
import os, sys
import dlm, vsync.ipc  # all that is needed, while it can be read
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[3]))
try:
    with dlm.connect(sys.argv[1]) as locks:
        print(eval(sys.argv[4], {"locks": locks, "dlm": dlm}))
except dlm.DLMError as error:
    print(type(error).__name__)
"""


def as_user(node: LocalNode, uid: int, gid: int, expression: str) -> str:
    """What ``expression`` gives to a process of that user at ``node``: its text, or the name of its exception."""
    command = [sys.executable, "-c", AS, node.url, str(gid), str(uid), expression]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as cluster:
        Path(cluster.folder).chmod(0o755)  # as /run/vsync is: who may connect is not the question here
        yield cluster


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """Without lockspaces but the default one."""
    yield shared_cluster
    with dlm.connect(shared_cluster["a"].url) as locks:
        for space in locks.spaces():
            if space.name != "default":
                locks.release_space(space.name, force=2)


def names(node: LocalNode) -> list[str]:
    with dlm.connect(node.url) as locks:
        return [space.name for space in locks.spaces()]


def test_made_here_used_there(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url, space="web") as at_a, dlm.connect(cluster["b"].url) as plain:
        at_b = plain.space("web", create=False)
        with at_a.acquire("x", timeout=10) as held, plain.acquire("x", timeout=10):
            assert at_b.try_lock("x") is None
            fence = held.fence
        with at_b.acquire("x", timeout=10) as again:
            assert again.fence > fence
        with pytest.raises(dlm.SpaceExists):
            plain.create_space("web")


def test_release_asks_the_owners_and_takes_locks_away_if_it_must(cluster: LocalCluster) -> None:
    at_a = dlm.connect(cluster["a"].url, space="web")
    at_b = dlm.connect(cluster["b"].url, space="web")
    held = at_b.acquire("x", timeout=10)  # private to b: a does not know whether it has locks
    with pytest.raises(dlm.SpaceBusy):
        at_a.release_space("web")
    held.release(wait=True)
    at_a.release_space("web")
    until(lambda: names(cluster["c"]) == ["default"], "the release at c")
    with pytest.raises(dlm.NoSuchSpace):
        at_b.acquire("x")
    at_b.close()

    at_b = dlm.connect(cluster["b"].url, space="web")
    held = at_b.acquire("x", timeout=10)
    at_a.release_space("web", force=1)
    assert held.lost.wait(20)
    assert held.lost.reason == "released"
    at_a.close()
    at_b.close()


def test_a_joiner_gets_the_registry(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as locks:
        made = locks.create_space("web", permissions=0o640, value_limit=2000)
        cluster.kill("c")
        cluster.wait_view(["a", "b"])
        later = locks.create_space("db")
    cluster.restart("c")
    cluster.wait_view(cluster.names)

    def known() -> list[dlm.SpaceInfo]:
        with dlm.connect(cluster["c"].url) as at_c:
            return [space for space in at_c.spaces() if space.name != "default"]

    until(lambda: known() == [later, made], "the registry at c")
    with dlm.connect(cluster["c"].url, space="web", create=False) as at_c, at_c.acquire("x", timeout=10):
        pass


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_permissions_are_the_kernels_word(cluster: LocalCluster) -> None:
    with dlm.connect(cluster["a"].url) as root:
        root.create_space("roots", permissions=0o660)
        root.create_space("groups", permissions=0o606)
        root.create_space("all", permissions=0o666)
    at_b = cluster["b"]
    until(lambda: len(names(at_b)) == 4, "the lockspaces at b")
    expected = {"roots": "PermissionDenied", "groups": "groups", "all": "all", "default": "default"}
    for space, answer in expected.items():
        assert as_user(at_b, SOMEBODY, SOMEBODY, f"locks.space({space!r}).space_name") == answer
    assert as_user(at_b, SOMEBODY, 0, "locks.space('roots').space_name") == "roots"  # of root's group
    assert as_user(at_b, SOMEBODY, 0, "locks.space('groups').space_name") == "PermissionDenied"
    assert as_user(at_b, SOMEBODY, SOMEBODY, "locks.release_space('all')") == "PermissionDenied"
    own = "locks.create_space('own').uid, locks.space('own').acquire('x', timeout=10).fence > 0"
    assert as_user(at_b, SOMEBODY, SOMEBODY, own) == f"({SOMEBODY}, True)"
    at_c = cluster["c"]
    until(lambda: "own" in names(at_c), "the lockspace at c")
    assert as_user(at_c, SOMEBODY + 1, SOMEBODY + 1, "locks.space('own')") == "PermissionDenied"
    assert as_user(at_c, SOMEBODY, SOMEBODY, "locks.release_space('own')") == "None"


def test_the_program(cluster: LocalCluster) -> None:
    url = cluster["a"].url
    assert run("dlm", "--url", url, "space", "create", "web", "--mode", "600").returncode == 0
    again = run("dlm", "--url", url, "space", "create", "web")
    assert (again.returncode, "already" in again.stderr) == (1, True)
    listed = json.loads(run("dlm", "--url", url, "space", "ls", "--json").stdout)["spaces"]
    assert [(one["name"], one["permissions"]) for one in listed] == [("default", "0666"), ("web", "0600")]
    inner = [sys.executable, "-m", "dlm", "--url", url]
    show = run("dlm", "--url", url, "run", "--space", "web", "x", "--", *inner, "show", "x", "--space", "web")
    assert show.returncode == 0
    assert "EX" in show.stdout
    assert run("dlm", "--url", url, "show", "x", "--space", "nowhere").returncode == 1
    assert run("dlm", "--url", url, "space", "release", "web").returncode == 0
    assert names(cluster["a"]) == ["default"]
