"""``synchronized``: calls under locks that are named after their arguments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import dlm
from dlm import Mode
from tests.vsync.support import until

InThread = Callable[[Callable[[], Any]], Any]


class Volume:
    def __init__(self, number: int) -> None:
        self.id = number


def names(locks: dlm.Client) -> list[tuple[bytes, Mode]]:
    return [(row.name, holder.mode) for row in locks.ls() for holder in row.holders or () if holder.mode]


def test_the_name_comes_from_the_arguments(three: Any, name: str) -> None:
    locks = three.client("a")

    @locks.synchronized(name + "/{vol.id}/{how[0]}/{0.id}/{again}")
    def detach(vol: Volume, how: list[str], again: bool = False) -> list[tuple[bytes, Mode]]:
        """Doc."""
        return names(locks)

    assert detach(Volume(7), ["soft"]) == [(f"{name}/7/soft/7/False".encode(), Mode.EX)]
    assert detach.__name__ == "detach"
    assert detach.__doc__ == "Doc."
    until(lambda: not names(locks))


def test_a_method_and_a_mode(three: Any, name: str) -> None:
    locks = three.client("a")

    class Store:
        def __init__(self) -> None:
            self.key = "s"

        @locks.synchronized(name + "/{self.key}/{row:03d}", Mode.PR, timeout=20)
        def read(self, *, row: int) -> list[tuple[bytes, Mode]]:
            return names(locks)

    assert Store().read(row=5) == [(f"{name}/s/005".encode(), Mode.PR)]


def test_the_handle_on_request(three: Any, name: str) -> None:
    @three.client("a").synchronized(name, held_as="held")
    def write(value: int, held: dlm.Held | None = None) -> tuple[int, int]:
        assert held is not None
        held.check()
        return value, held.fence

    value, fence = write(5)
    assert value == 5
    assert write(value=6)[1] > fence


def test_calls_exclude_each_other_and_may_nest(three: Any, name: str, in_thread: InThread) -> None:
    locks = three.client("a")

    @locks.synchronized(name + "/{key}", timeout=0, reentrant=True)
    def enter(key: int, call: Callable[[], Any]) -> Any:
        return call()

    assert enter(1, lambda: enter(1, lambda: enter(2, lambda: "in"))) == "in"
    with pytest.raises(dlm.LockTimeout):
        enter(1, lambda: in_thread(lambda: enter(1, lambda: "in")).outcome())


def test_exceptions_pass_and_a_loss_is_raised(three: Any, name: str) -> None:
    locks = three.client("a")

    @locks.synchronized(name)
    def run(call: Callable[[], Any]) -> None:
        call()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(fail)
    until(lambda: not names(locks))
    with pytest.raises(dlm.LockLost):
        run(locks.close)


def test_mistakes_are_told_when_decorating(three: Any) -> None:
    locks = three.client("a")
    with pytest.raises(dlm.ConfigError, match=r"\{volume.id\}"):
        locks.synchronized("x/{volume.id}")(lambda vol: None)
    with pytest.raises(dlm.ConfigError, match="held"):
        locks.synchronized("x", held_as="held")(lambda vol: None)
    with pytest.raises(ValueError):
        locks.synchronized("x", timeout=-1)

    async def coroutine() -> None: ...

    def generator() -> Iterator[int]:
        yield 1

    async def both() -> AsyncIterator[int]:
        yield 1

    for late in (coroutine, generator, both):
        with pytest.raises(TypeError, match="after its lock"):
            locks.synchronized("x")(late)
