"""A program's view of the cluster: membership, status, named groups.

``vsync.connect()`` speaks to the local daemon; ``vsync.Node`` offers the same for a node in this process. All
objects may be used from several threads.

Streams are made of the events of ``vsync.events``: a group is **one** ordered stream ``View | Message``,
the same at every member; between two views those who see both have seen the same messages (EVS-E15).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Self

from vsync.arrivals import Arrivals
from vsync.errors import NotConnected, NotMember, RequestFailed, VsyncError
from vsync.events import ClusterView, Message, View, messages_of
from vsync.ipc import Channel
from vsync.ipc import connect as connect_channel
from vsync.outgoing import KINDS, Outgoing

__all__ = ["Client", "ClusterView", "Group", "Message", "View", "connect"]

_RECORD_S = 60.0
_CALL_S = 30.0  # a local question; only a stopped daemon takes so long


def connect(url: str | None = None, name: str | None = None) -> Client:
    """A session with the daemon at ``url`` (default: $VSYNC_URL, else unix:///run/vsync/vsyncd.sock).

    ``name`` is what operators see of this program. Raises ``NotConnected`` naming the URL and the remedy.
    """
    return Client(connect_channel(url, name))


class Client:
    """A session with a node. ``channel`` is the session itself, for other services' libraries."""

    def __init__(self, channel: Channel, *, owned: bool = False) -> None:
        """``owned``: the session belongs to the one group that is joined with it, and ends with it."""
        self.channel = channel
        self._owned = owned
        self._lock = threading.Lock()
        self._watching = False
        self._last_view: ClusterView | None = None
        self._watchers: list[SimpleQueue[ClusterView | NotConnected]] = []
        self._groups: dict[str, Group] = {}
        channel.on_push("node", self._on_node)
        channel.on_push("group", self._on_group, quick=True)
        channel.on_close(self._on_close)

    @property
    def node(self) -> str:
        """The name of the node this session is with."""
        return str(self.channel.welcome["node"]["name"])

    @property
    def cluster(self) -> str:
        """The cluster's name."""
        return str(self.channel.welcome["cluster"])

    def status(self) -> dict[str, Any]:
        """What the node says of itself, its ring and its services. Raises ``NotConnected``, ``TimeoutError``."""
        status: dict[str, Any] = self.channel.call("node", "status", {}, _CALL_S)
        return status

    def members(self) -> list[dict[str, Any]]:
        """One row for every configured node: id, name, address, votes, state, whether it is a member."""
        rows: list[dict[str, Any]] = self.channel.call("node", "members", {}, _CALL_S)
        return rows

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Every named group with its processes."""
        groups: dict[str, list[dict[str, Any]]] = self.channel.call("node", "groups", {}, _CALL_S)
        return groups

    def record(self) -> dict[str, Any]:
        """Have the node write its flight recording: ``{"path", "bytes"}`` on the node's host.

        Raises ``RequestFailed`` with code ``off`` or ``failed``.
        """
        written: dict[str, Any] = self.channel.call("node", "record", {}, _RECORD_S)
        return written

    def bootstrap(self, override: bool = False) -> bool:
        """An operator's word that no other part of the cluster is alive; false if the view is primary already.

        Without ``override``: nodes that have never been in this cluster may vote, so that a new cluster can begin
        before all of its nodes are there; a majority is still needed. With it: the next view is primary whatever
        the votes, which is safe only if every node that is not in it is off, and stays off until it can join.
        Raises ``RequestFailed`` if that is not the user's to do, or the node has been in a primary view already.
        """
        answer = self.channel.call("node", "bootstrap", {"override": override}, _CALL_S)
        return bool(answer["needed"])

    def nodes(self) -> dict[str, Any]:
        """Who belongs to the cluster: ``version``, ``nodes`` (id, name, addresses, votes, since, state)."""
        listing: dict[str, Any] = self.channel.call("nodes", "ls", {}, _CALL_S)
        return listing

    def change_nodes(
        self,
        kind: Literal["add", "remove", "replace", "set"],
        node: str | int | None = None,
        *,
        name: str = "",
        addresses: Sequence[str] = (),
        votes: int | None = None,
        timeout: float = _CALL_S,
    ) -> dict[str, Any]:
        """Change who belongs to the cluster (``docs/nodes.md``); returns, as ``nodes`` does, what is in force then.

        ``node``: id or name; a new one gets the next id. Raises ``RequestFailed`` with code ``invalid`` (the text
        says why and what to do instead), ``overtaken`` or ``lost`` (another change came first, or the view broke:
        nothing has been changed), ``no_quorum``, ``denied``; ``TimeoutError`` if it is not in force in time.
        """
        args = {"node": node, "name": name, "addresses": list(addresses), "votes": votes}
        listing: dict[str, Any] = self.channel.call("nodes", kind, args, timeout)
        return listing

    def views(self) -> Iterator[ClusterView]:
        """The cluster's views: the current one first (once there is one), then every change, for ever.

        Raises ``NotConnected`` when the session ends.
        """
        queue: SimpleQueue[ClusterView | NotConnected] = SimpleQueue()
        with self._lock:
            first = not self._watching
            self._watching = True
            self._watchers.append(queue)
            if self._last_view is not None:
                queue.put(self._last_view)
        if first:
            self.channel.call("node", "watch", {}, _CALL_S)
        return self._iterate(queue)

    def join(self, group: str) -> Group:
        """Join a named group (1..128 bytes). The first event of its stream is the view that contains us.

        Raises ``RequestFailed`` with code ``exists`` if this session is a member already (one session, one
        membership: connect again for a second one), ``NotConnected``.
        """
        joined = Group(self, group)
        with self._lock:
            if group in self._groups:
                raise RequestFailed("exists", f"this session is a member of {group!r} already")
            self._groups[group] = joined
        try:
            self.channel.call("group", "join", {"group": group})
        except BaseException:
            self.forget(joined)
            raise
        return joined

    def forget(self, group: Group) -> None:
        """Take a group that was left out of the dispatch; closes a session that was its own. For ``Group``."""
        with self._lock:
            if self._groups.get(group.name) is group:
                del self._groups[group.name]
        if self._owned:
            self.close()

    def close(self) -> None:
        """End the session: groups are left, iterators raise ``NotConnected``. Idempotent."""
        self.channel.close()

    def _iterate(self, queue: SimpleQueue[ClusterView | NotConnected]) -> Iterator[ClusterView]:
        try:
            while True:
                item = queue.get()
                if isinstance(item, NotConnected):
                    raise item
                yield item
        finally:
            with self._lock:
                if queue in self._watchers:
                    self._watchers.remove(queue)

    def _on_node(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "view":
            view = ClusterView.from_dict(data)
            with self._lock:
                self._last_view = view
                for queue in self._watchers:
                    queue.put(view)

    def _on_group(self, kind: str, data: Mapping[str, Any]) -> None:
        group = self._groups.get(data.get("group", ""))
        if group is not None:
            group.on_push(kind, data)

    def _on_close(self, reason: str) -> None:
        with self._lock:
            groups = list(self._groups.values())
            watchers = list(self._watchers)
        for queue in watchers:
            queue.put(NotConnected(reason))
        for group in groups:
            group.on_close(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Group:
    """Membership in a named group, and its ordered stream.

    Iterate over it in one thread: ``for event in group`` yields ``View`` and ``Message``, ends after
    ``leave``, and raises ``NotConnected`` when the session ends. Events wait, unbounded, for whoever
    joined and does not iterate.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.view: View | None = None  #: the last one that was iterated over
        self._client = client
        self._events: Arrivals[View | Message | Iterator[Message] | NotConnected | None]
        self._events = Arrivals(client.channel.turns)
        self._batch: Iterator[Message] = iter(())  #: what came together, as far as it has not been iterated over
        self._over: NotConnected | None = None
        turns = client.channel.turns
        self._outgoing = Outgoing(self._transmit, len(name.encode()), turns.attend if turns else lambda: None)

    def send(
        self,
        data: bytes,
        *,
        order: Literal["agreed", "safe"] = "agreed",
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Multicast ``data`` to all members, ourselves included, in agreed order.

        ``order="safe"``: nobody delivers it before every node is known to have it (EVS-E22); it costs about one
        turn of the ring more. ``timeout`` in seconds.

        Returns when it is on its way to the node, behind what was sent before, and waits if very much is; with
        ``wait``, when it has been delivered here. What is on its way may still be lost, with this program or the
        node. Raises ``MessageTooLarge``, ``Backpressure`` (no room in ``timeout`` seconds, or, with ``wait``, at
        the node: try again), ``NotMember``, ``NotConnected``, ``TimeoutError``; also for an earlier message.
        """
        if not wait:
            self._outgoing.add(bytes(data), order, timeout)
            return
        self._outgoing.flush(timeout)
        args = {"group": self.name, "data": bytes(data), "wait": wait, "order": order}
        try:
            self._client.channel.call("group", "send", args, timeout)
        except RequestFailed as e:
            if e.code in KINDS:
                raise KINDS[e.code](e.message) from None
            raise

    def leave(self) -> None:
        """Leave the group, in order; the stream ends with the view in which we have left. Idempotent."""
        with contextlib.suppress(VsyncError):
            self._outgoing.flush()
        self._outgoing.end(NotMember(f"this session has left {self.name!r}"))
        try:
            self._client.channel.call("group", "leave", {"group": self.name})
        except RequestFailed as e:
            if e.code != "not_member":
                raise
        except NotConnected:
            return
        self._events.put(None)
        self._client.forget(self)

    def on_push(self, kind: str, data: Mapping[str, Any]) -> None:
        """For ``Client``: an event of this group."""
        frame = self._client.channel.frame
        if kind == "view":
            self._events.put(View.from_dict(data), frame)
        elif kind == "messages":
            self._events.put(messages_of(data), frame)
        elif kind == "message":
            self._events.put(Message.from_dict(data), frame)

    def _transmit(self, batch: bytes, order: str) -> Future[Any]:
        return self._client.channel.start("group", "sends", {"group": self.name, "batch": batch, "order": order})

    def on_close(self, reason: str) -> None:
        """For ``Client``: the session is over."""
        self._outgoing.end(NotConnected(reason))
        self._events.put(NotConnected(reason))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> View | Message:
        for message in self._batch:
            return message
        if self._over is not None:
            raise self._over
        event = self._events.take()
        if event is None:
            self._events.put(None)  # for the next call
            raise StopIteration
        if isinstance(event, NotConnected):
            self._over = event
            raise event
        if isinstance(event, Message):
            return event
        if isinstance(event, View):
            self.view = event
            return event
        self._batch = event
        return next(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
