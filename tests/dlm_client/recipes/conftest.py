"""Names of their own for the tests of recipes, and nodes that a test may end."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

import dlm
from tests.dlm_client.three import Three
from tests.vsync.support import until


@pytest.fixture
def fragile() -> Iterator[Three]:
    """For tests that do not."""
    with Three.started() as three:
        yield three


_serial = itertools.count()


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"r{next(_serial)}"


@pytest.fixture
def nothing_left() -> Callable[[dlm.Client, str], None]:
    """Checks that nobody holds or waits for anything whose name begins so."""

    def check(client: dlm.Client, name: str) -> None:
        def rows() -> list[dlm.LockInfo]:
            return [row for row in client.ls(name) if row.holders or row.converting or row.waiters]

        until(lambda: not rows(), "the end of all locks")

    return check
