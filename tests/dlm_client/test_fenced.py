"""``dlm.FencedResource``: who is let in, who is refused, and that all processes see the same."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest

import dlm
import vsync
from dlm import Mode
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub


@pytest.fixture(params=["memory", "file"])
def resource(request: pytest.FixtureRequest, tmp_path: Path) -> dlm.FencedResource:
    return dlm.FencedResource(tmp_path / "r" if request.param == "file" else None)


def test_a_smaller_token_than_the_last_writers_is_refused(resource: dlm.FencedResource) -> None:
    assert (resource.fence, resource.data) == (0, b"")
    resource.write(5, b"five")
    resource.write(5, b"five again")
    resource.write(7, b"seven")
    with pytest.raises(dlm.StaleFence) as caught:
        resource.write(6, b"six")
    assert (caught.value.token, caught.value.newest) == (6, 7)
    assert (resource.fence, resource.data) == (7, b"seven")
    assert [(one.kind, one.token, one.data) for one in resource.refused] == [("write", 6, b"six")]
    assert [one.token for one in resource.accepted] == [5, 5, 7]
    assert [(one.newest, one.pid) for one in resource.accesses] == [(n, os.getpid()) for n in (0, 5, 5, 7)]


def test_readers_do_not_shut_out_each_other(resource: dlm.FencedResource) -> None:
    """Pitfalls B5: a resource that remembered the highest token *seen* would refuse the older of two readers."""
    resource.write(4, b"four")
    assert resource.read(6) == b"four"
    assert resource.read(5) == b"four"
    resource.write(7, b"seven")
    with pytest.raises(dlm.StaleFence, match="this read comes too late"):
        resource.read(6)
    assert resource.read(7) == b"seven"


def test_a_claim_shuts_out_those_before_it(resource: dlm.FencedResource) -> None:
    resource.write(5, b"1")
    assert resource.claim(7) == b"1"
    with pytest.raises(dlm.StaleFence):
        resource.write(5, b"lost")
    resource.write(7, b"2")
    assert resource.data == b"2"
    with pytest.raises(dlm.StaleFence):
        resource.claim(6)


@pytest.mark.parametrize("token", [0, -1, True, "7", None, 1.0])
def test_what_is_no_token(resource: dlm.FencedResource, token: Any) -> None:
    with pytest.raises(ValueError, match="fencing token"):
        resource.write(token, b"")
    assert resource.accesses == ()


def test_two_objects_of_one_file_see_the_same(tmp_path: Path) -> None:
    one, two = dlm.FencedResource(tmp_path / "r"), dlm.FencedResource(str(tmp_path / "r"))
    one.write(3, b"three")
    with pytest.raises(dlm.StaleFence):
        two.write(2, b"two")
    assert one.accesses == two.accesses
    assert len(one.refused) == 1
    copy = pickle.loads(pickle.dumps(one))
    assert copy.accesses == one.accesses
    assert "fence=3, 2 accesses" in repr(copy)
    with pytest.raises(TypeError, match="belongs to its process"):
        pickle.dumps(dlm.FencedResource())


def test_a_process_that_dies_while_it_writes_has_not_written(tmp_path: Path) -> None:
    one = dlm.FencedResource(tmp_path / "r")
    one.write(3, b"three")
    with open(tmp_path / "r", "ab") as file:
        file.write(b'{"kind": "write", "tok')
    assert dlm.FencedResource(tmp_path / "r").fence == 3
    one.write(4, b"four")
    assert dlm.FencedResource(tmp_path / "r").data == b"four"


def count(resource: dlm.FencedResource, tokens: list[int]) -> None:
    for token in tokens:
        try:
            resource.write(token, b"%d" % token)
        except dlm.StaleFence:
            pass


def accepted_in_order(resource: dlm.FencedResource, total: int) -> None:
    tokens = [one.token for one in resource.accepted]
    assert tokens == sorted(tokens)
    assert len(resource.accesses) == total
    for one in resource.refused:
        assert one.token < one.newest
    assert resource.data == b"%d" % tokens[-1]


def test_threads(resource: dlm.FencedResource) -> None:
    threads = [threading.Thread(target=count, args=(resource, list(range(1 + n, 200, 4)))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    accepted_in_order(resource, 199)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(tmp_path: Path, method: str) -> None:
    resource = dlm.FencedResource(tmp_path / "r")
    resource.write(1, b"")
    context: Any = multiprocessing.get_context(method)
    children = [context.Process(target=count, args=(resource, list(range(2 + n, 200, 2)))) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    accepted_in_order(resource, 199)


def test_with_real_locks(resource: dlm.FencedResource) -> None:
    """A holder that slept through the end of its lock: the next one writes, and it is refused."""
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        sleeper, awake = dlm.Client(node), dlm.Client(node)
        old = sleeper.acquire("x")
        resource.write(old.fence, b"first")
        sleeper.close()  # as if it were dead; it is not
        with awake.lock("x") as new:
            assert resource.claim(new.fence) == b"first"
            with pytest.raises(dlm.StaleFence):
                resource.write(old.fence, b"too late")
            resource.write(new.fence, b"second")
            new.convert(Mode.PR)
            assert resource.read(new.fence) == b"second"
        awake.close()
