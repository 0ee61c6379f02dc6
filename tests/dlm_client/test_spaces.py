"""Lockspaces through the client: over a node in this process, and over a scripted channel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import dlm
import vsync
from dlm import Mode
from dlm.plugin import service
from tests.vsync.support import ALONE
from vsync.transport.memory import MemoryHub


@pytest.fixture(scope="module")
def running() -> Iterator[vsync.Node]:
    with vsync.Node(config=ALONE, transport=MemoryHub().transport(1), services=[service(ALONE)]) as node:
        yield node


@pytest.fixture
def node(running: vsync.Node) -> Iterator[vsync.Node]:
    """Without lockspaces but the default one."""
    yield running
    with dlm.Client(running) as locks:
        for space in locks.spaces():
            if space.name != "default":
                locks.release_space(space.name, force=2)


def test_a_client_of_a_space_makes_it(node: vsync.Node) -> None:
    with dlm.Client(node, space="web") as web, dlm.Client(node) as plain:
        assert web.space_name == "web"
        assert [space.name for space in plain.spaces()] == ["default", "web"]
        made = plain.spaces()[1]
        assert (made.permissions, made.value_limit) == (0o660, 1024)
        with web.acquire("x"), plain.acquire("x", timeout=0) as held:
            assert held.space == "default"
            assert plain.ls()[0].holders != web.ls()[0].holders
        assert "lockspace 'web'" in repr(web)


def test_one_that_is_not_there_and_shall_not_be_made(node: vsync.Node) -> None:
    with pytest.raises(dlm.NoSuchSpace, match="dlm space create") as caught:
        dlm.Client(node, space="web", create=False)
    assert caught.value.rule == "E11"
    with dlm.Client(node) as locks, pytest.raises(dlm.NoSuchSpace):
        locks.space("web", create=False)


def test_several_at_once_over_one_session(node: vsync.Node) -> None:
    with dlm.Client(node) as locks:
        a, b = locks.space("a"), locks.space("b")
        with a.acquire("x") as in_a, b.acquire("x", timeout=0) as in_b, locks.acquire("x", timeout=0):
            assert (in_a.space, in_b.space) == ("a", "b")
            assert a.try_lock("x") is None
        assert a.closed is b.closed is False
        a.close()
        with pytest.raises(dlm.NoSuchSpace, match="not open"):
            a.acquire("x")
        with b.acquire("x", timeout=0):
            pass
    assert b.closed


def test_closing_a_space_gives_back_its_locks_and_no_others(node: vsync.Node) -> None:
    with dlm.Client(node) as locks, dlm.Client(node, space="web") as other:
        kept = locks.acquire("x")
        with locks.space("web") as web:
            held = web.acquire("x")
        assert held.lost.reason == "space_closed"
        assert not held.valid
        with other.acquire("x", timeout=10):
            assert kept.valid
        kept.release()


def test_a_transaction_covers_all_spaces_of_the_session(node: vsync.Node) -> None:
    with dlm.Client(node) as locks:
        web = locks.space("web")
        with web.transaction() as tx:
            assert web.session.identity(None)["xid"] == locks.session.identity(None)["xid"] == tx.xid


def test_exclusive_creation(node: vsync.Node) -> None:
    with dlm.Client(node) as locks:
        made = locks.create_space("web", permissions=0o600, value_limit=5000)
        assert made.value_limit == 5000
        with pytest.raises(dlm.SpaceExists) as caught:
            locks.create_space("web")
        assert caught.value.space == "web"
        assert locks.create_space("web", exclusive=False) == made


def test_the_value_limit(node: vsync.Node) -> None:
    with dlm.Client(node) as locks:
        locks.create_space("web", value_limit=5000)
        web = locks.space("web")
        keeper = web.acquire("x", Mode.NL)
        held = web.acquire("x")
        with pytest.raises(dlm.InvalidRequest, match="5000 bytes") as caught:
            held.convert(Mode.PR, value=b"v" * 5001)
        assert caught.value.rule == "E7"
        assert held.mode is Mode.EX
        held.convert(Mode.PR, value=b"v" * 5000)
        keeper.convert(Mode.CR)
        assert keeper.value == b"v" * 5000
        keeper.convert(Mode.NL)
        held.convert(Mode.EX, timeout=10)
        with pytest.raises(dlm.InvalidRequest, match="5000 bytes"):
            held.value = b"v" * 5001
        held.release(wait=True)
        keeper.convert(Mode.EX, timeout=10)  # nothing has stayed behind
        with locks.acquire("x") as small, pytest.raises(dlm.InvalidRequest, match="1024 bytes"):
            small.convert(Mode.PR, value=b"v" * 1025)
        keeper.release()


def test_release(node: vsync.Node) -> None:
    told: list[str] = []
    with dlm.Client(node, space="web") as web, dlm.Client(node, space="web") as other:
        heard = threading.Event()

        def on_lost(_: dlm.Held, reason: str) -> None:
            told.append(reason)
            heard.set()

        held = web.acquire("x", on_lost=on_lost)
        failure: list[BaseException] = []

        def wait() -> None:
            try:
                other.acquire("x")
            except dlm.DLMError as error:
                failure.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        while not (web.show("x") or held).waiters:  # type: ignore[union-attr]
            heard.wait(0.01)
        for force in (0, 1):
            with pytest.raises(dlm.SpaceBusy):
                other.release_space("web", force)
        other.release_space("web", force=2)
        thread.join(20)
        assert heard.wait(20)
        assert told == [held.lost.reason] == ["released"]
        assert isinstance(failure[0], dlm.NoSuchSpace)
        with pytest.raises(dlm.LockLost, match="lockspace was released"):
            held.release()
        with pytest.raises(dlm.NoSuchSpace):
            web.acquire("x")
        with pytest.raises(dlm.NoSuchSpace):
            web.release_space("web")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("no_space", dlm.NoSuchSpace),
        ("closing", dlm.SpaceBusy),
        ("space_busy", dlm.SpaceBusy),
        ("space_exists", dlm.SpaceExists),
        ("permission", dlm.PermissionDenied),
        ("too_many", dlm.InvalidRequest),
        ("no_quorum", dlm.NoQuorum),
        ("lost", dlm.NotConnected),
    ],
)
def test_every_refusal_is_a_typed_error(
    channel: Any, locks: dlm.Client, refused: Any, code: str, error: type[Exception]
) -> None:
    channel.script["space_release"] = lambda args: refused(code, "so it is", {"space": "web"})
    with pytest.raises(error, match="so it is") as caught:
        locks.release_space("web")
    assert getattr(caught.value, "space", "web") == "web"


def test_a_session_whose_space_cannot_be_opened_is_closed(channel: Any, refused: Any) -> None:
    channel.script["space_create"] = lambda args: refused("permission", "no permission")
    with pytest.raises(PermissionError):
        dlm.Client.over(channel, space="web")
    assert channel.closed


def test_the_default_space_needs_no_opening(channel: Any, locks: dlm.Client) -> None:
    locks.acquire("x").release()
    assert channel.verbs() == ["lock", "unlock"]


def test_the_node_counts_the_time_out(node: vsync.Node) -> None:
    """And withdraws the request by itself, also if the client stands still."""
    with dlm.Client(node) as one, dlm.Client(node) as two, one.acquire("x"):
        request = {"h": 900, "name": b"x", "mode": 5, "timeout_us": 50_000, "owner": 1}
        future = two.session.start("lock", request)
        with pytest.raises(dlm.LockTimeout):
            two.session.result(future, b"x", 0.05)
        info = one.show("x")
        assert info is not None
        assert info.waiters == ()


def test_a_conversion_that_times_out_keeps_its_mode(node: vsync.Node) -> None:
    with dlm.Client(node) as one, dlm.Client(node) as two:
        held, other = one.acquire("x", Mode.PR), two.acquire("x", Mode.PR)
        with pytest.raises(dlm.LockTimeout):
            held.convert(Mode.EX, timeout=0.05)
        assert held.mode is Mode.PR
        other.convert(Mode.CR)
        held.convert(Mode.PR)
        held.release()
        other.release()


def test_options_of_a_space(node: vsync.Node) -> None:
    with dlm.Client(node) as locks:
        made = locks.create_space("disks", fencing=True, lock_delay=1.5)
        assert (made.answer, made.lock_delay_ms, made.fencing, made.recovery) == ("stable", 1500, True, False)
        assert locks.set_space("disks", fencing=False, lock_delay=0).answer == "delivery"
        assert [space.fencing for space in locks.spaces()] == [False, False]
        assert locks.spaces()[1].to_json()["answer"] == "delivery"
        with pytest.raises(dlm.NoSuchSpace):
            locks.set_space("dsiks", fencing=True)
        with pytest.raises(dlm.InvalidRequest, match="lock_delay_ms"):
            locks.set_space("disks", lock_delay=-1)
