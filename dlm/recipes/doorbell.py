"""A doorbell: wakes those who wait for something that locks cannot make them wait for.

What is so – who leads, which generation a barrier is in – stands in locks and their value blocks, where the dead
leave no trace and a minority cannot write. The bell only says *look again*. It is a process group on the same
session (``vsync.groups``): whoever has changed something sends a message, and if the one who should have rung has
died, the group's view says so in the same ordered stream. So no wake-up is lost, and nobody polls.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from dlm import answers
from dlm.errors import DLMError, LockTimeout, NotConnected
from dlm.session import TRY_PATIENCE_S
from vsync import errors as vsync_errors

if TYPE_CHECKING:
    from typing import Self

    from dlm.recipes.deadline import Deadline
    from dlm.session import Session

__all__ = ["FULL_POLL_S", "SERVICE", "Doorbell", "Doorbells", "Heard", "group_of"]

SERVICE = "group"
MAX_GROUP = 128  #: bytes
FULL_POLL_S = 0.01  #: the node's send queue is full: flow control, there is nothing to be told by


class Heard:
    """What is heard of one bell, by threads or tasks.

    ``rings`` counts what was heard, ``losses`` what said that a process has died; ``primary`` is false in a
    minority; ``members`` are the (node, session) that have the bell open.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self.rings = 0
        self.losses = 0
        self.primary = True
        self.members: frozenset[tuple[int, int]] = frozenset()
        self.users = 0  #: in this session
        self.joined: Future[Any] | None = None  #: what join has said

    def on_push(self, kind: str, data: Mapping[str, Any]) -> None:
        """An event of the group; under ``session.changed``."""
        if kind == "view":
            reasons = {process["reason"] for process in (*data["joined"], *data["left"])}
            # Comings and goings of the living change nothing; who must be told of them rings.
            self.rings += not reasons or not reasons <= {"join", "leave"}
            self.losses += bool(reasons & {"procdown", "nodedown"})
            self.primary = bool((data.get("view") or {}).get("primary"))
            self.members = frozenset((member["node"], member["session"]) for member in data["members"])
        else:
            self.rings += 1


class Doorbell(Heard):
    """One bell, as long as it is open: ``with doorbells.open(name) as bell``. Thread-safe; what is heard changes
    under ``session.changed``.
    """

    def __init__(self, owner: Doorbells, group: str) -> None:
        super().__init__(group)
        self._owner = owner

    def ring(self, wait: bool = True) -> None:
        """Wake everybody. Returns when the node has accepted it; without ``wait`` at once, and it may be dropped.

        Raises ``NotConnected``: then the group's view wakes them.
        """
        self._owner.send(self.group, wait)

    def wait(self, seen: int, deadline: Deadline, stop: Callable[[], bool] = lambda: False) -> bool:
        """Wait until there are more than ``seen`` rings (``True``), or ``stop()``, or the time is up (``False``).

        Raises ``NotConnected`` when the session ends.
        """
        session = self._owner.session
        with session.changed:
            while self.rings == seen:
                if session.closed is not None:
                    raise NotConnected(f"the session has ended ({session.closed})")
                if stop() or deadline.over:
                    return False
                session.changed.wait(deadline.rest())
        return True

    def close(self) -> None:
        """Listen no longer; once for each ``open``."""
        self._owner.close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Doorbells:
    """All bells of a session. Takes the channel's ``group`` events for itself from the first ``open`` on.

    A session is a member of a group at most once: users of one bell in one session share it. Thread-safe.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._guard = threading.Lock()  # never held while waiting
        self._bells: dict[str, Doorbell] = {}
        self._leaving: dict[str, Future[Any]] = {}
        session.channel.on_push(SERVICE, self._on_push)

    def open(self, name: str, deadline: Deadline) -> Doorbell:
        """The bell ``name``; returns when it can be heard: that waits for one message, so a deadline of 0 is given
        some patience. Raises ``NotConnected``, ``LockTimeout``, ``ForkedProcess``.
        """
        limit = TRY_PATIENCE_S if deadline.timeout == 0 else deadline.rest()
        self.session.check_process()
        while True:
            with self._guard:
                leaving = self._leaving.get(name)
                if leaving is None or leaving.done():
                    self._leaving.pop(name, None)
                    bell = self._bells.setdefault(name, Doorbell(self, name))
                    bell.users += 1
                    if bell.joined is None:
                        bell.joined = self._start("join", name)
                    break
            self._answer(leaving, limit)  # a member cannot join
        try:
            self._answer(bell.joined, limit)
        except vsync_errors.RequestFailed as refused:
            self.close(bell)
            raise DLMError(f"the bell {name!r} cannot be heard: {refused}") from None
        except BaseException:
            self.close(bell)
            raise
        return bell

    def close(self, bell: Doorbell) -> None:
        """One user less; the last one leaves the group."""
        with self._guard:
            bell.users -= 1
            if bell.users == 0 and self._bells.get(bell.group) is bell:
                del self._bells[bell.group]
                self._leaving[bell.group] = self._leave(bell)

    def send(self, group: str, wait: bool) -> None:
        """Ring the bell of ``group``, which is open."""
        while True:
            sent = self._start("send", group, data=b"")
            if not wait:
                return
            try:
                self._answer(sent)
                return
            except vsync_errors.RequestFailed as refused:
                if refused.code != "backpressure":
                    raise DLMError(f"the bell {group!r} cannot be rung: {refused}") from None
            time.sleep(FULL_POLL_S)

    def _leave(self, bell: Doorbell) -> Future[Any]:
        """Leave once the join is through: a leave that came before it would be refused."""
        left: Future[Any] = Future()

        def leave(_: Future[Any]) -> None:
            self._start("leave", bell.group).add_done_callback(lambda _: left.set_result(None))

        assert bell.joined is not None
        bell.joined.add_done_callback(leave)
        return left

    def _start(self, verb: str, group: str, **more: Any) -> Future[Any]:
        try:
            return self.session.channel.start(SERVICE, verb, {"group": group, **more})
        except vsync_errors.NotConnected as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    @staticmethod
    def _answer(future: Future[Any], limit: float | None = None) -> None:
        try:
            future.result(limit)
        except vsync_errors.NotConnected as error:
            raise NotConnected(str(error)) from error
        except TimeoutError:
            raise LockTimeout(f"the node did not order a message within {limit:.3g} s", timeout=limit) from None

    def _on_push(self, kind: str, data: Any) -> None:
        bell = self._bells.get(data.get("group", ""))
        if bell is None:
            return
        with self.session.changed:
            bell.on_push(kind, data)
            self.session.changed.notify_all()


def group_of(space: str, kind: str, key: bytes) -> str:
    """The group of a recipe ``kind`` called ``key`` in a lockspace; a long name is replaced by its digest."""
    text = f"dlm:{space}:{kind}:{answers.name_text(key)}"
    return text if len(text.encode()) <= MAX_GROUP else f"dlm:{hashlib.sha256(text.encode()).hexdigest()}"
