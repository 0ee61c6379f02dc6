"""Storms that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlm.testing.linear import Verdict
from dlm.testing.storm.run import Plan, Storm
from vsync.bench.netns import missing

__all__ = ["Arena", "needs_network", "short"]

MISSING = missing()
needs_network = pytest.mark.skipif(bool(MISSING), reason=f"network namespaces: {MISSING}")


class Arena:
    """One storm for all faults of a kind of cluster; a new one after each failure."""

    def __init__(self, plan: Plan, factory: pytest.TempPathFactory) -> None:
        self._plan = plan
        self._factory = factory
        self._storm: Storm | None = None

    def strike(self, fault: str) -> None:
        """Do it, and judge everything so far."""
        storm = self._running()
        try:
            storm.strike(fault)
            self._require(storm, storm.verdict())
        except BaseException:
            self.drop()
            raise

    def finish(self) -> None:
        """Everything must be free, and in order."""
        storm, verdict = self._storm, None
        try:
            if storm is not None:
                verdict = storm.finish()
        finally:
            self.drop()
        if storm is not None and verdict is not None:
            self._require(storm, verdict)

    def drop(self) -> None:
        """End it."""
        if self._storm is not None:
            self._storm.close()
            self._storm = None

    def _running(self) -> Storm:
        if self._storm is None:
            storm = Storm(self._plan, short(self._factory.mktemp("storm")))
            storm.__enter__()
            self._storm = storm
        return self._storm

    @staticmethod
    def _require(storm: Storm, verdict: Verdict) -> None:
        assert verdict.good, f"{verdict.report()}\nevidence: {storm.folder}"
        assert verdict.grants > 0


def short(folder: Path) -> Path:
    """Unix sockets lie in it, and their paths are short."""
    assert len(os.fsencode(folder)) < 95, f"{folder} is too long for sockets; use pytest --basetemp"
    return folder
