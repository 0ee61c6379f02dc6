"""``host:port`` addresses."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any

from vsync.errors import ConfigError
from vsync.types import Peer

__all__ = ["Target", "check_loopback", "is_loopback", "parse_address", "resolve", "resolve_aside"]

Target = tuple[socket.AddressFamily, tuple[Any, ...]]  #: what ``socket.connect`` wants


def parse_address(text: str) -> tuple[str, int]:
    """``"10.0.0.1:7410"`` or ``"[::1]:7410"`` as (host, port). Raises ``ConfigError``."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {text!r}: put an IPv6 address in brackets, as in [::1]:7410")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ConfigError(f"address {text!r} is not host:port, as in 127.0.0.1:7410")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is certain to stay on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def resolve(address: str, kind: socket.SocketKind) -> Target | None:
    """Where ``address`` is now; ``None`` if nobody knows its host name. Blocks while it is looked up."""
    host, port = parse_address(address)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=kind)[0]
    except OSError:
        return None
    return family, target


def resolve_aside(address: str, kind: socket.SocketKind, done: Callable[[Target | None], None]) -> None:
    """As ``resolve``, but never blocks: a host name is looked up by a thread, which calls ``done`` then."""
    host, _ = parse_address(address)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        threading.Thread(target=lambda: done(resolve(address, kind)), name="vsync-resolve", daemon=True).start()
    else:
        done(resolve(address, kind))


def check_loopback(peers: Iterable[Peer]) -> None:
    """Raises ``ConfigError`` if an address could be reached from outside.

    Frames are not authenticated without a key: whoever reaches the port could speak for a member.
    """
    for peer in peers:
        for address in peer.addresses:
            if not is_loopback(parse_address(address)[0]):
                raise ConfigError(
                    f"node {peer.name!r}: address {address} is not a loopback address; without a key only "
                    "loopback addresses are accepted, because frames are not authenticated: make a key with "
                    "vsync keygen and set [cluster] key, or use 127.0.0.1:PORT or [::1]:PORT"
                )
