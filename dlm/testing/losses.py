"""What may be lost, and how its client hears of it.

LOSS    A handle that its client believes in is in the table, in that mode and with that fence; or the client has
        been told that it is lost (API-R5, C12). Its lease may have run out meanwhile: that is no loss.
FREEZE  Who was cut off and froze goes on with its locks, if no primary view has intervened (K4, C1): its life goes
        on in the next primary view, unless a member of that one knows of a newer primary, or may know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dlm.folded import contents
from dlm.lock import State
from dlm.messages import key_of
from dlm.modes import NAMES
from dlm.names import Form
from dlm.recovery import announcements
from dlm.testing.clients import Client, Handle
from vsync.quorum import judge, newest_mark
from vsync.testing.violation import Violation
from vsync.types import NO_RING, RingId, View

if TYPE_CHECKING:
    from dlm.service import DlmService

__all__ = ["FreezeRules", "LossRules"]


class LossRules:
    """LOSS. Looks at the clients of one node whose table is in a state that counts."""

    @staticmethod
    def check(node: int, service: DlmService, clients: Iterable[Client]) -> None:
        """All that they believe in is there. Raises ``Violation``."""
        if service.leaving_now:
            return
        for client in clients:
            if client.node.id != node or not client.connected or client.inbox:
                continue
            for handle in client.handles.values():
                if handle.held and handle.operation is None and not handle.canceling:
                    LossRules._look(node, service, handle)

    @staticmethod
    def _look(node: int, service: DlmService, handle: Handle) -> None:
        key = key_of("default", handle.name)
        name = service.table.names.get(key)
        if name is not None and name.form is Form.HANDOVER:
            return  # its contents are on their way to all
        resource, lock = contents(key, name) if name is not None else None, None
        if resource is not None:
            lock = resource.locks.get((node, handle.client.session, handle.h))
        if lock is None or lock.state is State.WAITING:
            raise Violation("LOSS", f"{handle} believes in {_held(handle)}, which is gone, and was not told so")
        if lock.mode != handle.granted or lock.fence != handle.first:
            raise Violation(
                "LOSS",
                f"{handle} believes in {_held(handle)}, and the table has {NAMES[lock.mode]} with fence "
                f"{lock.fence >> 32}.{lock.fence & 0xFFFF_FFFF}",
            )


class FreezeRules:
    """FREEZE. Looks at every primary view that a lock manager enters."""

    def __init__(self) -> None:
        self.gone_on = 0  #: lives that have gone on after a freeze, for tests of the rule

    def watch(self, node: int, locker: DlmService) -> None:
        """Put an eye on the views that this service is given."""
        inner = locker.view
        primary = NO_RING  # the last one in which it had a complete table
        frozen = False

        def view(view: View, now: int) -> None:
            nonlocal primary, frozen
            if view.transitional:
                inner(view, now)
                return
            if locker.complete and not frozen and announcements(view)[node][1].complete:
                primary = locker.table.ring  # else it was whole only after the word in the commit token
            life = locker.home.outbox.ring
            inner(view, now)
            if view.primary and primary != NO_RING:
                self.judge(node, primary, view, locker.home.outbox.ring == life)
                self.gone_on += frozen
            frozen = not view.primary
            primary = NO_RING if view.primary else primary

        locker.view = view  # type: ignore[method-assign]

    @staticmethod
    def judge(node: int, last: RingId, view: View, goes_on: bool) -> None:
        """``last``: the primary view in which the node was before. Raises ``Violation``."""
        newest = max(newest_mark(view.entries.values()), max(entry.mark for entry in view.entries.values()))
        if not goes_on and newest <= last and judge(view.entries).chained:
            raise Violation(
                "FREEZE",
                f"node {node} begins a new life in {view.id}, although no primary view has intervened since {last}",
            )


def _held(handle: Handle) -> str:
    fence = f"{handle.fence >> 32}.{handle.fence & 0xFFFF_FFFF}"
    return f"{NAMES[handle.granted]} on {handle.name!r} with fence {fence}"
