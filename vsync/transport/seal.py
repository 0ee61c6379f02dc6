"""Authenticated encryption of datagrams, and refusal of those that come twice.

::

    magic "vU" or "vu" | lane u8 | sender u32 | incarnation u64 | salt u64 | counter u64 | ciphertext | tag 16

ChaCha20-Poly1305 from ``cryptography`` (OpenSSL's: fast without special instructions, one call a frame; PyNaCl's
goes through cffi and costs more a call). The header is authenticated with the rest.

Each direction – sender's life to receiver – has a key of its own, derived from the cluster key, the receiver and
the header up to the counter. A life is an incarnation *and* 64 random bits, so even a node that lost its state
directory and whose clock was set back does not use a key again; within a life the counter is the nonce and never
repeats. A receiver follows the youngest life of each sender and drops what belongs to an older one.

Without a cluster key (magic ``vu``) the header is the same and nothing is protected: loopback only.
"""

from __future__ import annotations

import secrets
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from vsync.errors import FrameError
from vsync.keys import ClusterKey

__all__ = ["LANE_AT", "OVERHEAD", "AuthenticationFailed", "Opener", "Sealer", "Window", "new_salt"]

SEALED, PLAIN = b"vU", b"vu"
_LIFE = struct.Struct("!IQQ")
_COUNTER = struct.Struct("!Q")
LANE_AT = 2  #: the lane's byte in a datagram
_HEAD = 3  # magic and lane
_BODY = _HEAD + _LIFE.size + _COUNTER.size
_COUNTER_AT = _HEAD + _LIFE.size
_TAG = 16
OVERHEAD = _BODY + _TAG  #: bytes a datagram has besides its frame
WINDOW = 4096
STRANGERS = 16  #: senders that are not nodes of the cluster, at most: what they say is for the engine to refuse
_ZEROS = b"\0\0\0\0"


class AuthenticationFailed(FrameError):
    """A datagram that nobody with this cluster's key has made."""


class Window:
    """Which of the last counters came: each is taken once, in any order, none older than the window."""

    __slots__ = ("_seen", "_top")

    def __init__(self) -> None:
        self._top = -1
        self._seen = bytearray(WINDOW)  # whether it came, by the counter's place in the window

    def fresh(self, counter: int) -> bool:
        """Whether it is neither taken nor too old."""
        age = self._top - counter
        return age < 0 or (age < WINDOW and not self._seen[counter % WINDOW])

    def take(self, counter: int) -> None:
        """It is authentic."""
        ahead = counter - self._top
        if ahead >= WINDOW:
            self._seen = bytearray(WINDOW)
        elif ahead > 1:
            for skipped in range(self._top + 1, counter):
                self._seen[skipped % WINDOW] = 0
        if ahead > 0:
            self._top = counter
        self._seen[counter % WINDOW] = 1


class Sealer:
    """Seals what one life of ``sender`` sends to ``receiver``."""

    __slots__ = ("_aead", "_counter", "_magic", "_prefix")

    def __init__(self, key: ClusterKey | None, sender: int, incarnation: int, salt: int, receiver: int) -> None:
        self._prefix = _LIFE.pack(sender, incarnation, salt)
        self._aead = _aead(key, self._prefix, receiver) if key is not None else None
        self._magic = SEALED if key is not None else PLAIN
        self._counter = 0

    def seal(self, frame: bytes, lane: bytes) -> bytes:
        """A datagram for ``lane`` (one byte, readable by all)."""
        counter = _COUNTER.pack(self._counter)
        self._counter += 1
        header = self._magic + lane + self._prefix + counter
        if self._aead is None:
            return header + frame
        return header + self._aead.encrypt(_ZEROS + counter, frame, header)


class _Life:
    __slots__ = ("aead", "incarnation", "node", "prefix", "window")

    def __init__(self, prefix: bytes, aead: ChaCha20Poly1305 | None) -> None:
        self.prefix = prefix
        self.node, self.incarnation, _ = _LIFE.unpack(prefix)
        self.aead = aead
        self.window = Window()


class Opener:
    """Opens what ``me`` receives from ``senders``, and from a few others that have the cluster's key."""

    def __init__(self, key: ClusterKey | None, me: int, senders: frozenset[int]) -> None:
        self._key = key
        self._me = me
        self._magic = SEALED if key is not None else PLAIN
        self._senders = senders
        self._lives: dict[bytes, _Life] = {}
        self._by_node: dict[int, _Life] = {}

    def admit(self, senders: frozenset[int]) -> None:
        """From now on these are the nodes of the cluster."""
        self._senders = senders

    def open(self, datagram: memoryview) -> tuple[int, bytes] | None:
        """(sender, frame), or ``None`` for one that came twice or is an older life's.

        Raises ``AuthenticationFailed`` with the reason for anything that is not authentic.
        """
        if datagram[:2] != self._magic or len(datagram) < _BODY:
            raise AuthenticationFailed(self._stranger(bytes(datagram[:2])))
        prefix = bytes(datagram[_HEAD:_COUNTER_AT])
        life = self._lives.get(prefix) or self._meet(prefix)
        if life is None:
            return None
        (counter,) = _COUNTER.unpack_from(datagram, _COUNTER_AT)
        if not life.window.fresh(counter):
            return None
        if life.aead is None:
            frame = bytes(datagram[_BODY:])
        else:
            header = bytes(datagram[:_BODY])
            try:
                frame = life.aead.decrypt(_ZEROS + header[_COUNTER_AT:], datagram[_BODY:], header)
            except InvalidTag:
                raise AuthenticationFailed(
                    "it is not sealed with this cluster's key: every node needs the same key file; compare the "
                    "fingerprints (vsync keygen --show FILE)"
                ) from None
        life.window.take(counter)
        if prefix not in self._lives:
            self._follow(life)
        return life.node, frame

    def _meet(self, prefix: bytes) -> _Life | None:
        """A life that is not known: it will be when the datagram turns out to be authentic."""
        node, incarnation, _ = _LIFE.unpack(prefix)
        strangers = len(self._by_node.keys() - self._senders)
        if node == self._me or (node not in self._senders and strangers >= STRANGERS and node not in self._by_node):
            raise AuthenticationFailed(f"it says that it is node {node}, which is not configured here")
        known = self._by_node.get(node)
        if known is not None and incarnation < known.incarnation:
            return None
        return _Life(prefix, _aead(self._key, prefix, self._me) if self._key is not None else None)

    def _follow(self, life: _Life) -> None:
        former = self._by_node.get(life.node)
        if former is not None:
            del self._lives[former.prefix]
        self._by_node[life.node] = self._lives[life.prefix] = life

    def _stranger(self, magic: bytes) -> str:
        if magic == SEALED:
            return "it is sealed with a cluster key, and this node has none: set [cluster] key here, too"
        if magic == PLAIN:
            return "it is not sealed, as the sender has no cluster key: set [cluster] key there, too"
        return "it is not a datagram of vsync's udp transport"


def new_salt() -> int:
    """64 random bits that make a life's keys its own."""
    return secrets.randbits(64)


def _aead(key: ClusterKey, prefix: bytes, receiver: int) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(key.derive("udp-direction", prefix + receiver.to_bytes(4, "big")))
