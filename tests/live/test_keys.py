"""Real daemons and cluster keys: a node with another key, or none, stays outside, and both sides say why."""

from __future__ import annotations

import pytest

from tests.live.helpers import log_lines, run, status, until, works
from vsync.keys import create_key_file
from vsync.testcluster import KEY_FILE, LocalCluster

pytestmark = pytest.mark.live


@pytest.mark.parametrize("theirs", ["other", "none"])
@pytest.mark.parametrize("kind", ["zmq", "udp"])
def test_a_node_with_another_key_stays_outside_until_it_has_the_right_one(kind: str, theirs: str) -> None:
    with LocalCluster(3, settings={"transport": kind}) as cluster:
        c = cluster["c"]
        good = c.config.read_text()
        cluster.leave("c")
        cluster.wait_view("ab")
        create_key_file(cluster.folder / "other.key")
        line = 'key = "other.key"' if theirs == "other" else ""
        assert f'key = "{KEY_FILE}"' in good
        c.config.write_text(good.replace(f'key = "{KEY_FILE}"', line))
        cluster.restart("c")
        for name in "abc":
            until(lambda name=name: log_lines(cluster[name], "_refused"), f"{name} says why")
        view = until(lambda: status(cluster, "c")["view"], "c is in a ring of its own")
        assert [member["name"] for member in view["members"]] == ["c"]
        assert not view["primary"]
        cluster.wait_view("ab")
        assert status(cluster, "a")["transport"]["links"][1]["state"] == "down"
        cluster.leave("c")
        c.config.write_text(good)
        cluster.restart("c")
        cluster.wait_view("abc")
        works(cluster)


@pytest.mark.parametrize("kind", ["zmq", "udp"])
@pytest.mark.parametrize("key", [True, False])
def test_a_dead_process_is_known_by_its_connection(kind: str, key: bool) -> None:
    """kill -9: no timer has to run out before the others form a ring."""
    with LocalCluster(3, settings={"transport": kind}, key=key) as cluster:
        for victim in "cab":
            rest = [name for name in cluster.names if name != victim]
            cluster.kill(victim)
            cluster.wait_view(rest)
            for name in rest:
                change = status(cluster, name)["ring"]["last_change"]
                assert "the connection to a member broke" in change["reason"]
                assert "token lost" not in change["reason"]
            cluster.restart(victim)
            cluster.wait_view(cluster.names)
        works(cluster)


def test_a_key_file_that_others_can_read_is_refused() -> None:
    cluster = LocalCluster(1)
    try:
        (cluster.folder / KEY_FILE).chmod(0o644)
        done = run("vsync.daemon", "--config", cluster["a"].config)
        assert done.returncode == 1
        assert "cluster.key: key file" in done.stderr
        assert "chmod 600" in done.stderr
        assert done.stderr.count("\n") == 1
    finally:
        cluster.close()
