"""Clusters of real daemons for the live tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.helpers import view_ids, works
from vsync.testcluster import LocalCluster


@pytest.fixture(scope="module")
def shared() -> Iterator[LocalCluster]:
    """Three nodes for all tests of a module; use ``unharmed``."""
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def unharmed(shared: LocalCluster) -> Iterator[LocalCluster]:
    """The shared cluster, for a test that must leave no trace: same view at all nodes after it, same
    processes, locks work.
    """
    before, pids = view_ids(shared), [node.pid for node in shared.nodes]
    yield shared
    works(shared)
    assert view_ids(shared) == before
    assert [node.pid for node in shared.nodes if node.running] == pids


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Three nodes for one test, which may do to them what it likes."""
    with LocalCluster() as cluster:
        yield cluster
