"""How a node talks to the others, apart from who they are; and the one place where transports are chosen."""

from __future__ import annotations

from dataclasses import dataclass

from vsync.errors import ConfigError
from vsync.keys import ClusterKey
from vsync.transport import Transport
from vsync.transport.address import check_loopback, parse_address
from vsync.types import ClusterConfig

__all__ = ["MAX_LINKS", "TRANSPORTS", "TransportConfig", "check_addresses", "open_transport"]

TRANSPORTS = ("zmq", "udp")
MAX_LINKS = 8


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """``kind`` and ``key`` are the same on all nodes, the rest is this node's own."""

    kind: str = "zmq"  #: zmq or udp
    key: ClusterKey | None = None  #: without one only loopback addresses are accepted
    listen: tuple[str, ...] = ()  #: listen here instead of at the node's own addresses, one for each of them
    mtu: int = 0  #: udp: never send larger packets than that, whatever the path allows; 0: no such limit


def check_addresses(config: ClusterConfig, options: TransportConfig) -> None:
    """Raises ``ConfigError`` if the addresses of the nodes do not go with each other or with the options."""
    if options.key is None:
        check_loopback(config.peers)
    counts = {len(peer.addresses) for peer in config.peers}
    if len(counts) > 1 or not 1 <= max(counts) <= MAX_LINKS:
        raise ConfigError(
            f"every node needs the same number of addresses, 1 to {MAX_LINKS}, in the same order of links; there "
            "are "
            + ", ".join(f"{len(peer.addresses)} ({peer.name})" for peer in config.peers)
        )
    if options.listen and len(options.listen) not in counts:
        raise ConfigError(f"listen: {len(options.listen)} addresses for {max(counts)} links; give one for each")
    used: dict[tuple[str, int], str] = {}
    for peer in config.peers:
        for address in peer.addresses:
            host, port = parse_address(address)
            for each in (port, port + 1) if options.kind == "udp" else (port,):
                other = used.setdefault((host, each), address)
                if other != address or each > 65535:
                    raise ConfigError(
                        f"node {peer.name!r}: address {address} has no room"
                        + (f" beside {other}" if other != address else "")
                        + (": udp takes this port and the next one" if options.kind == "udp" else "")
                    )


def open_transport(config: ClusterConfig, options: TransportConfig, incarnation: int) -> Transport:
    """The transport of node ``config.node`` in life ``incarnation``. Raises ``ConfigError``, ``TransportError``."""
    check_addresses(config, options)
    if options.kind == "zmq":
        from vsync.transport.zmq import ZmqTransport

        return ZmqTransport(config, options)
    if options.kind == "udp":
        from vsync.transport.udp import UdpTransport

        return UdpTransport(config, options, incarnation)
    raise ConfigError(f"transport {options.kind!r} is not one of {', '.join(TRANSPORTS)}")
