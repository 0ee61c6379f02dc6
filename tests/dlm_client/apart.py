"""A lockspace in which every lock has an owner of its own, for tests that are not about who waits for whom."""

from __future__ import annotations

import itertools
from typing import Any

from dlm import Lksb, Lockspace

__all__ = ["Apart"]

_xids = itertools.count(1)


class Apart(Lockspace):
    """By default all locks of a session belong to one owner, which must not wait for itself."""

    def lock(self, *args: Any, **more: Any) -> Lksb:
        more.setdefault("xid", next(_xids))
        return super().lock(*args, **more)
