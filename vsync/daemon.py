"""``vsyncd``: one node of the cluster, in the foreground, serving the programs of its host.

Start-up errors – configuration, state directory, port, socket – are one line on stderr and exit code 1. SIGTERM and
SIGINT leave the ring gracefully; a second one does not wait. SIGUSR2 has the flight recorder write what it has.
Exit codes: 0 left, 1 error, 2 usage.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

import vsync
from vsync.config import DEFAULT_CONFIG, Settings, load, with_paths
from vsync.errors import VsyncError
from vsync.garbage import spare_survivors
from vsync.logs import configure, get_logger
from vsync.node import Node
from vsync.plugins import load_services

__all__ = ["main"]

ENDED = "ended"
RECORD = "SIGUSR2"  #: asks for a dump of the flight recorder
SAME_WISH_S = 0.5  #: a second signal within this time is the first one once more

_log = get_logger("vsync.daemon")


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        settings = with_paths(load(args.config, args.node), args.socket, args.state_dir)
        if args.check_config:
            return _check(args.config, settings)
        configure(args.log_level or settings.daemon.log_level, settings.daemon.log_format)
        return _serve(settings)
    except VsyncError as e:
        print(f"vsyncd: {e}", file=sys.stderr)
        return 1


def notify(text: str) -> None:
    """Tell systemd (``READY=1``, ``STATUS=...``); nothing happens without ``$NOTIFY_SOCKET``."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.connect(address)
            s.sendall(text.encode())
    except OSError as e:
        _log.warning("notify_failed", error=str(e))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vsyncd",
        description="Run one node of a vsync cluster in the foreground.",
        epilog="Exit codes: 0 left the cluster, 1 error, 2 usage.",
    )
    parser.add_argument(
        "-c", "--config", metavar="FILE", default=os.environ.get("VSYNC_CONFIG", str(DEFAULT_CONFIG)),
        help=f"configuration (default: $VSYNC_CONFIG, else {DEFAULT_CONFIG})",
    )  # fmt: skip
    parser.add_argument("-n", "--node", metavar="NAME", help="which of the file's nodes this is (name or id)")
    parser.add_argument("--socket", metavar="PATH", help="serve clients here instead of [daemon] socket")
    parser.add_argument("--state-dir", metavar="PATH", help="use this instead of [daemon] state_dir")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    parser.add_argument("--version", action="version", version=f"vsyncd {vsync.__version__}")
    return parser


def _check(file: str, settings: Settings) -> int:
    """Everything that can be known without opening anything."""
    cluster, daemon = settings.cluster, settings.daemon
    services = ", ".join(s.name for s in load_services(cluster)) or "none"
    key = settings.transport.key
    print(
        f"{file}: good. Cluster {cluster.cluster!r}, node {cluster.name(cluster.node)!r} of {len(cluster.peers)}, "
        f"transport {settings.transport.kind}, key {key.fingerprint if key else 'none'}, "
        f"socket {daemon.socket}, state {daemon.state_dir}, services: {services}"
    )
    return 0


def _serve(settings: Settings) -> int:
    spare_survivors()
    events = _Events()
    daemon = settings.daemon
    node = Node(
        config=settings.cluster,
        transport=settings.transport,
        state_dir=daemon.state_dir,
        socket=daemon.socket,
        runtime_dir=daemon.runtime_dir,
        recorder_bytes=daemon.recorder_mb << 20,
    )
    node.start()
    _log.info("ready", version=vsync.__version__, node=node.name, socket=str(daemon.socket), pid=os.getpid())
    notify(f"READY=1\nSTATUS=node {node.name} of cluster {settings.cluster.cluster}")
    _on_end(node, events)
    while (cause := events.get()) == RECORD:
        node.record(RECORD)
    if cause != ENDED:
        _log.info("leaving", signal=cause)
        node.leave()  # before anything that may take time: the others wait for it
        notify("STOPPING=1")
        _on_second_signal(events)
        node.stop()
    events.ignore()
    if node.failure is not None:
        print(f"vsyncd: {node.failure}", file=sys.stderr)
        return 1
    return 0


class _Events:
    """Signals and the node's end, one after the other. Made by the main thread, read by any.

    The signals come through a pipe that the C handler writes to. A Python handler would not do: a signal that comes
    just before the main thread blocks is noted, but runs no Python code until something else wakes the thread.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)

    def get(self) -> str:
        """Wait for the next one: a signal's name, or ``ENDED``."""
        number = os.read(self._read, 1)[0]
        return signal.Signals(number).name if number else ENDED

    def ignore(self) -> None:
        """The node has gone: one more signal must not change the exit code while the interpreter shuts down."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)

    def end(self) -> None:
        """The node has ended."""
        os.write(self._write, b"\0")


def _on_end(node: Node, events: _Events) -> None:
    def watch() -> None:
        node.wait()
        events.end()

    threading.Thread(target=watch, name="vsync-watch", daemon=True).start()


def _on_second_signal(events: _Events) -> None:
    first = time.monotonic()

    def watch() -> None:
        # One wish can come as two signals: Ctrl-C and `timeout` send them to the process and to its group.
        while events.get() in (ENDED, RECORD) or time.monotonic() - first < SAME_WISH_S:
            pass
        _log.warning("stopped_at_once", reason="a second signal came while leaving")
        os._exit(1)

    threading.Thread(target=watch, name="vsync-second-signal", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
