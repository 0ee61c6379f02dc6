"""CURVE for ZeroMQ, from the cluster key: one key pair, derived from it, for every server and every client.

A client must know the server's public key to get a word in – it is never sent in the clear, so that alone takes
the cluster key – and the server admits one client key only, the same. The latter is asked of a ZAP handler, which
here is a REP socket polled by the node's loop: no thread.
"""

from __future__ import annotations

import zmq
from zmq.utils import z85

from vsync.keys import ClusterKey

__all__ = ["FAILURES", "Curve", "reason"]

FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
)
_DOMAIN = b"vsync"
_ZAP = "inproc://zeromq.zap.01"
_CRYPTOGRAPHIC = 0x11000001
_MECHANISM = 0x11000002
_COMPARE = "every node needs the same key file: compare the fingerprints (vsync keygen --show FILE)"


class Curve:
    """What a keyed cluster's sockets need."""

    def __init__(self, key: ClusterKey) -> None:
        self.fingerprint = key.fingerprint
        self._secret = z85.encode(key.derive("zmq-curve"))
        self._public = zmq.curve_public(self._secret)

    def guard(self, context: zmq.Context[zmq.Socket[bytes]], server: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        """Make ``server``, before it is bound, admit those with the key only. Returns the socket to ``answer``."""
        door = context.socket(zmq.REP)
        door.setsockopt(zmq.LINGER, 0)
        door.bind(_ZAP)
        server.setsockopt(zmq.CURVE_SERVER, 1)
        server.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        server.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        return door

    def present(self, client: zmq.Socket[bytes]) -> None:
        """Make ``client``, before it connects, prove that it has the key, and the server that it has."""
        client.setsockopt(zmq.CURVE_SERVERKEY, self._public)
        client.setsockopt(zmq.CURVE_PUBLICKEY, self._public)
        client.setsockopt(zmq.CURVE_SECRETKEY, self._secret)

    def answer(self, door: zmq.Socket[bytes]) -> None:
        """Decide on every handshake that waits (RFC 27)."""
        try:
            while True:
                version, number, domain, _, _, mechanism, *credentials = door.recv_multipart(zmq.DONTWAIT)
                good = (domain, mechanism, credentials) == (_DOMAIN, b"CURVE", [z85.decode(self._public)])
                verdict = (b"200", b"") if good else (b"400", b"another key")
                door.send_multipart([version, number, *verdict, b"", b""], zmq.DONTWAIT)
        except zmq.Again:
            return


def reason(kind: int, value: int, curve: Curve | None) -> str:
    """What a failed handshake means, and what to do."""
    if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == _MECHANISM:
        if curve is None:
            return "it uses a cluster key and this node has none: set [cluster] key here, too"
        return "it uses no cluster key, this node does: set [cluster] key there, too"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH or value == _CRYPTOGRAPHIC:
        return f"its cluster key is another one; {_COMPARE}"
    if kind == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        return f"it ended the connection before it knew us: probably its cluster key is another one; {_COMPARE}"
    return f"it does not speak ZMTP as we do (libzmq error {value:#x}): is it a vsync node with transport zmq?"
