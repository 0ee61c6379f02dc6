"""Traffic: a service that multicasts numbered messages and reports what it sees, and who makes it do so.

The reports travel as ``Note`` outputs (``host.event``), that is: in the core's one ordered list, so that a
crash between two outputs also cuts what the checkers get to see.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from vsync.errors import Backpressure
from vsync.service import Credentials, Host
from vsync.testing.trace import Delivered, Sent, Viewed, Withdrawn
from vsync.types import Member, View

__all__ = ["NOTE", "TAG", "Recorder"]

TAG = 250  #: the recorder's tag in ordered payloads
NOTE = "sim-trace"  #: name of the notes that carry trace events
_HEADER = struct.Struct(">BIQQ")  # tag, node, incarnation, number


class Recorder:
    """The service of the simulator: verb ``send`` (``{"size": n}`` or ``{"data": bytes}``, ``{"safe": True}``)
    multicasts a message, and with ``{"chat": n}`` so many more, each when the last one has been delivered here.

    It keeps nothing but its counter. ``delivered`` is for users' tests: (origin node, data) in order.
    """

    name = "sim"
    tag = TAG

    def __init__(self) -> None:
        self.number = 0
        self._chat = 0  #: messages that follow ..
        self._awaited = 0  #: .. each when that one has been delivered
        self.delivered: list[tuple[int, bytes]] = []
        self.views: list[View] = []
        self._host: Host

    def attach(self, host: Host, now: int) -> None:
        self._host = host

    def request(self, session: int, rid: int, verb: str, args: Mapping[str, Any], now: int) -> None:
        data = args.get("data")
        if data is None:
            data = _pattern(self.number + 1, args.get("size", 0))
        self._send(data, bool(args.get("safe")))
        if args.get("chat") and not self._chat:
            self._chat, self._awaited = args["chat"], self.number
        self._host.reply(session, rid, {"number": self.number})

    def _send(self, data: bytes, safe: bool) -> None:
        self.number += 1
        me = self._host.me
        payload = _HEADER.pack(TAG, me.node, me.incarnation, self.number) + data
        self._host.event(NOTE, event=Sent(me, self.number, zlib.crc32(payload), safe))
        try:
            self._host.submit(payload, safe=safe)
        except Backpressure:
            self._host.event(NOTE, event=Withdrawn(me, self.number))
            self._chat = 0

    def hush(self) -> None:
        """The conversation that goes on is over."""
        self._chat = 0

    def deliver(self, origin: Member, position: int, payload: bytes, installing: bool, now: int) -> None:
        _, node, incarnation, number = _HEADER.unpack_from(payload)
        author = Member(node, incarnation)
        digest = zlib.crc32(payload)
        me = self._host.me
        self._host.event(NOTE, event=Delivered(me, origin, author, number, digest, position, installing))
        self.delivered.append((origin.node, payload[_HEADER.size :]))
        if self._chat and author == me and number == self._awaited:
            self._chat -= 1
            self._awaited = self.number + 1
            self._send(b"", False)

    def view(self, view: View, now: int) -> None:
        self._host.event(NOTE, event=Viewed(self._host.me, view))
        self.views.append(view)

    def announce(self, attempts: Sequence[View] = ()) -> bytes:
        return b""

    def open(self, session: int, who: Credentials, now: int) -> None:
        pass

    def close(self, session: int, now: int) -> None:
        pass

    def token(self, now: int) -> None:
        pass

    def fire(self, now: int) -> None:
        pass

    def next_deadline(self) -> int | None:
        return None

    def leaving(self, now: int) -> None:
        pass

    def may_leave(self) -> bool:
        return True

    def status(self) -> dict[str, Any]:
        return {"sent": self.number}


def _pattern(number: int, size: int) -> bytes:
    """Bytes of which no stretch could stand in another message unnoticed."""
    word = b"%d." % number
    return (word * (size // len(word) + 1))[:size]
