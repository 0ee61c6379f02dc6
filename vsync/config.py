"""The configuration file: TOML in, ``Settings`` out, or a ``ConfigError`` that names file, key and remedy.

One file can serve every node of a cluster: ``[node]`` (or ``vsyncd --node``) says which of ``[[nodes]]``
this one is, and ``{node}`` in a path of ``[daemon]`` stands for its name. A table named like an installed
service is that service's own (``ClusterConfig.sections``). See ``configs/three-nodes.toml``.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vsync.errors import ConfigError
from vsync.keys import ClusterKey, load_key
from vsync.plugins import service_names
from vsync.section import Section, meant
from vsync.transport.address import parse_address
from vsync.transport.options import TRANSPORTS, TransportConfig, check_addresses
from vsync.types import POLICIES, ClusterConfig, Peer, QuorumConfig, Timing

__all__ = ["DEFAULT_CONFIG", "DEFAULT_SOCKET", "DaemonConfig", "Settings", "load", "with_paths"]

DEFAULT_CONFIG = Path("/etc/vsync/vsyncd.toml")
DEFAULT_SOCKET = Path("/run/vsync/vsyncd.sock")

_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("auto", "json", "text")
_MAX_NODE = 2**32 - 1
_MAX_VOTES = 1000
_MAX_RECORDER_MB = 4096
_MAX_HISTORY = 10_000_000
_MAX_TIMER_MS = 3_600_000
# sockaddr_un holds 108 bytes with the final zero; the kernel's own message does not say so.
_MAX_SOCKET_PATH = 107
_TOO_LONG = f"is longer than the {_MAX_SOCKET_PATH} bytes that a Unix socket's path may have; choose a shorter one"


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """What concerns this host alone."""

    socket: Path = DEFAULT_SOCKET  #: where clients connect
    state_dir: Path = Path("/var/lib/vsync/{node}")  #: ring ids and incarnations across restarts
    runtime_dir: Path | None = None  #: deadline pages; ``None``: beside the socket
    recorder_mb: int = 16  #: memory of the flight recorder; 0 turns it off
    history: int = 10_000  #: events of the past that services keep, for whoever asks
    log_level: str = "info"
    log_format: str = "auto"  #: auto (JSON unless stderr is a terminal), json, text


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole, consistent configuration."""

    cluster: ClusterConfig
    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    transport: TransportConfig = field(default_factory=TransportConfig)


def load(path: str | os.PathLike[str], node: str | int | None = None) -> Settings:
    """Read and check ``path``. ``node`` (name or id) goes before the file's ``[node]``.

    Raises ``ConfigError`` for a file that is missing, no TOML, or wrong in any key.
    """
    where = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{where}: cannot be read: {e.strerror}; give the right file with --config") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{where}: is not UTF-8 text ({e.reason} at byte {e.start})") from e
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{where}: is not valid TOML: {e}") from e
    return _settings(_Table(where, "", data), node)


def _settings(root: _Table, node: str | int | None) -> Settings:
    cluster = root.table("cluster", required=True)
    name = cluster.name("name")
    transport = _transport(cluster)
    cluster.end()
    peers = _peers(root)
    me, listen = _own_peer(root, peers, node)
    timing, quorum = _timing(root.table("timing")), _quorum(root.table("quorum"))
    daemon = _daemon(root.table("daemon"), me.name)
    sections = _sections(root)
    root.end()
    config = ClusterConfig(name, me.node, peers, timing, history=daemon.history, quorum=quorum, sections=sections)
    transport = replace(transport, listen=listen)
    try:
        check_addresses(config, transport)
    except ConfigError as e:
        root.fail("nodes", str(e))
    return Settings(config, daemon, transport)


def _transport(table: _Table) -> TransportConfig:
    kind = table.choice("transport", TRANSPORTS, "zmq")
    mtu = table.integer("mtu", 576, 65535, default=0)
    path = table.text("key", default="")
    key: ClusterKey | None = None
    if path:
        try:
            key = load_key(Path(table.file).parent / Path(path).expanduser())
        except ConfigError as e:
            table.fail("key", str(e))
    return TransportConfig(kind, key, mtu=mtu)


def _peers(root: _Table) -> tuple[Peer, ...]:
    tables = root.tables("nodes")
    if not tables:
        root.fail("nodes", "no node is listed; add a [[nodes]] table with id, name and address for each")
    peers: list[Peer] = []
    taken: dict[tuple[str, object], str] = {}
    for table in tables:
        peer = Peer(
            node=table.integer("id", 1, _MAX_NODE),
            name=table.name("name"),
            addresses=_addresses(table),
            votes=table.integer("votes", 0, _MAX_VOTES, default=1),
        )
        table.end()
        addresses = [("address", parse_address(text), text) for text in peer.addresses]
        for key, value, shown in (("id", peer.node, peer.node), ("name", peer.name, peer.name), *addresses):
            other = taken.setdefault((key, value), table.path)
            if other != table.path:
                table.fail(key, f"{shown!r} is already used by {other}; each node needs its own")
        peers.append(peer)
    if not any(p.votes for p in peers):
        root.fail("nodes", "no node has a vote, so no view could ever be primary; give votes = 1 to some")
    return tuple(sorted(peers, key=lambda p: p.node))


def _addresses(table: _Table) -> tuple[str, ...]:
    """``address = "…"`` for one link, or ``addresses = ["…", …]``, one for each."""
    if "addresses" not in table.values:
        return table.addresses("address")
    if "address" in table.values:
        table.fail("address", "stands beside addresses; give only one of the two")
    return table.addresses("addresses")


def _own_peer(root: _Table, peers: tuple[Peer, ...], node: str | int | None) -> tuple[Peer, tuple[str, ...]]:
    """Which one this is, and where it listens if that is not at its address."""
    table = root.table("node")
    listen = table.addresses("listen") if "listen" in table.values else ()
    by_id = table.integer("id", 1, _MAX_NODE, default=0)
    by_name = table.text("name", default="")
    table.know("listen")
    table.end()
    wanted = [str(w) for w in (node, by_id or None, by_name or None) if w is not None]
    if node is not None:
        wanted = wanted[:1]
    if not wanted:
        if len(peers) == 1:
            return peers[0], listen
        root.fail("node", "which of [[nodes]] is this one? Set name under [node], or give --node NAME")
    found = [next((p for p in peers if w in (p.name, str(p.node))), None) for w in wanted]
    names = [p.name for p in peers]
    for text, peer in zip(wanted, found, strict=True):
        if peer is None:
            root.fail("node", f"{text!r} is not among [[nodes]] ({', '.join(names)}){meant(text, names)}")
    if len({p.node for p in found if p}) > 1:
        root.fail("node", f"id {by_id} and name {by_name!r} are two different nodes; give only one of them")
    assert found[0] is not None
    return found[0], listen


def _timing(table: _Table) -> Timing:
    default = Timing()
    chosen = {
        name: round(1000 * table.number(f"{name}_ms", 1, _MAX_TIMER_MS, getattr(default, name) / 1000))
        for name in (timer.name for timer in fields(Timing))
    }
    table.end()
    try:
        return Timing(**chosen)
    except ValueError as e:
        words = str(e).split()
        values = ", ".join(f"{name}_ms = {us / 1000:g}" for name, us in chosen.items() if name in words)
        table.fail("", f"{e} (here: {values})")


def _quorum(table: _Table) -> QuorumConfig:
    policy = table.choice("policy", POLICIES, "majority")
    answers = [table.yes_or_no(key) for key in ("wait_for_all", "auto_tie_breaker", "unsafe")]
    table.end()
    try:
        return QuorumConfig(policy, *answers)
    except ValueError as e:
        table.fail("", str(e))


def _daemon(table: _Table, node: str) -> DaemonConfig:
    default = DaemonConfig()
    runtime = table.text("runtime_dir", default="")
    config = DaemonConfig(
        socket=_expand(table.text("socket", default=str(default.socket)), node),
        state_dir=_expand(table.text("state_dir", default=str(default.state_dir)), node),
        runtime_dir=_expand(runtime, node) if runtime else None,
        recorder_mb=table.integer("recorder_mb", 0, _MAX_RECORDER_MB, default.recorder_mb),
        history=table.integer("history", 1, _MAX_HISTORY, default.history),
        log_level=table.choice("log_level", _LOG_LEVELS, default.log_level),
        log_format=table.choice("log_format", _LOG_FORMATS, default.log_format),
    )
    table.end()
    if len(os.fsencode(config.socket)) > _MAX_SOCKET_PATH:
        table.fail("socket", _TOO_LONG)
    return config


def _sections(root: _Table) -> dict[str, dict[str, Any]]:
    """The tables that are named like a service, as they are: the service checks its own."""
    if not set(root.values) - set(root.known):
        return {}  # to look for services takes time
    names = [name for name in service_names() if name not in root.known]
    root.know(*names)
    return {name: root.table(name).values for name in names if name in root.values}


def _expand(text: str, node: str) -> Path:
    return Path(text.replace("{node}", node)).expanduser()


def with_paths(settings: Settings, socket: str | None = None, state_dir: str | None = None) -> Settings:
    """The same settings with paths from the command line. Raises ``ConfigError`` if ``socket`` is too long."""
    daemon, node = settings.daemon, settings.cluster.name(settings.cluster.node)
    if socket:
        daemon = replace(daemon, socket=_expand(socket, node))
        if len(os.fsencode(daemon.socket)) > _MAX_SOCKET_PATH:
            raise ConfigError(f"--socket: {daemon.socket} {_TOO_LONG}")
    if state_dir:
        daemon = replace(daemon, state_dir=_expand(state_dir, node))
    return replace(settings, daemon=daemon)


class _Table(Section):
    """One table of the file."""

    def addresses(self, key: str) -> tuple[str, ...]:
        """A ``host:port``, or a list of them."""
        value = self._get(key, (str, list), "an address like 127.0.0.1:7410, or a list of them", None)
        texts = [value] if isinstance(value, str) else value
        if not texts or not all(isinstance(text, str) for text in texts):
            self.fail(key, f"must be a list of addresses like 127.0.0.1:7410, not {value!r}")
        if len(set(texts)) < len(texts):
            self.fail(key, "names an address twice; each link needs its own")
        try:
            for text in texts:
                parse_address(text)
        except ConfigError as e:
            self.fail(key, str(e))
        return tuple(texts)
