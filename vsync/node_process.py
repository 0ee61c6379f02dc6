"""A running node in a process of its own, a child of the program that uses it: ``vsync.Node(..., process=True)``.

Then no thread of the program can keep the ring waiting for the interpreter. The child is a daemon for this program
alone: it serves a socket in a private folder, and takes its orders through a connection to its parent. It ends with
its parent, however that ends: the connection breaks, or, should a process that the parent has forked keep it open,
the kernel tells (a pidfd). Then it leaves the ring, as after ``stop``. Signals that end programs mean the parent:
the child ignores them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsync import ipc
from vsync.errors import ConfigError, VsyncError
from vsync.garbage import spare_survivors
from vsync.ipc import Channel
from vsync.logs import configure, get_logger
from vsync.plan import LEAVE_S, STOP_S, Plan
from vsync.transport.options import TransportConfig

if TYPE_CHECKING:
    from vsync.aio import LoopChannel
    from vsync.node import Node

__all__ = ["NodeProcess", "main"]

START_S = 30.0
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from vsync.node_process import main; main(int(sys.argv[1]))"

_log = get_logger("vsync.node")


class NodeProcess:
    """See ``Running``. Made, it runs.

    Raises what ``NodeThread`` does, and ``ConfigError`` for what cannot be in another process.
    """

    def __init__(self, plan: Plan) -> None:
        _check(plan)
        self._lock = threading.Lock()
        self._end: Exception | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="vsync-node-"))
        socket = plan.socket or self._folder / "node.sock"
        self._url = f"unix://{socket.absolute()}"
        plan = replace(plan, socket=socket, runtime_dir=plan.runtime_dir or self._folder)
        self._control, theirs = Pipe()
        try:
            with theirs:
                self._process = _start(theirs.fileno())
                self.pid = self._process.pid
            try:
                self.config = self._started(plan)
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise
        except BaseException:
            self._clean()
            raise

    @property
    def failure(self) -> Exception | None:
        """See ``Running``: what the child has told, or how its process ended."""
        if self._process.poll() is not None:
            self._take_end()
        return self._end

    def leave(self) -> None:
        """See ``Running``."""
        self._order("leave")

    def stop(self, graceful: bool) -> None:
        """See ``Running``."""
        if graceful:
            self.leave()
            if not self.wait(LEAVE_S + STOP_S):
                _log.error("node_does_not_stop", after_s=LEAVE_S + STOP_S)
        self._take_end()
        self._process.kill()
        self._process.wait()
        self._clean()

    def record(self, reason: str) -> None:
        """See ``Running``."""
        self._order("record", reason)

    def wait(self, timeout: float | None) -> bool:
        """See ``Running``."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        self._take_end()
        return True

    def channel(self, name: str) -> Channel:
        """See ``Running``."""
        return ipc.connect(self._url, name)

    async def async_channel(self, name: str) -> LoopChannel:
        """See ``Running``."""
        from vsync.aio import connect

        return await connect(self._url, name)

    def _order(self, *words: str) -> None:
        with self._lock, contextlib.suppress(OSError):  # it has ended
            self._control.send(words)

    def _started(self, plan: Plan) -> Any:
        """The configuration that the node has made of its own. Raises what it failed with."""
        try:
            self._control.send((plan, os.getpid(), str(self._folder), _log_level()))
            if not self._control.poll(START_S):
                raise VsyncError(f"the process of the node has not begun within {START_S:g} s")
            answer = self._control.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            raise VsyncError(f"the process of the node has ended with {code} before it began") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _take_end(self) -> None:
        """What the child said last, if it has ended; how it ended, if it could not say anything."""
        with self._lock:
            if self._control.closed or (code := self._process.poll()) is None:
                return
            told: Exception | None = VsyncError(f"the process of the node has ended with {code}") if code else None
            with contextlib.suppress(EOFError, OSError):
                told = self._control.recv()
            self._control.close()
            self._end = told

    def _clean(self) -> None:
        with self._lock:
            self._control.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _start(control_fd: int) -> subprocess.Popen[bytes]:
    """A Python that finds the same modules. Its log goes to our standard error."""
    command = [sys.executable, "-c", PROGRAM, str(control_fd), *sys.path]
    quiet = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command, stdin=quiet, stdout=quiet, pass_fds=[control_fd], start_new_session=True
        )
    except OSError as e:
        raise VsyncError(f"no process for the node: {sys.executable} cannot be started: {e}") from e


def _check(plan: Plan) -> None:
    if plan.services is not None:
        raise ConfigError("process=True: the services are those that are installed; services= cannot be given")
    if not isinstance(plan.transport, TransportConfig):
        raise ConfigError("process=True: transport= must be a TransportConfig, not an open transport")


def _log_level() -> str:
    return logging.getLevelName(logging.getLogger("vsync").getEffectiveLevel())


# -- in the child


def main(control_fd: int) -> None:
    """The child's program."""
    from vsync.node import Node

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(control_fd, False)
    with Connection(control_fd) as control:
        plan, parent, folder, level = control.recv()
        configure(level)
        spare_survivors()
        try:
            with _parents_end(parent) as gone:
                node = Node(
                    config=plan.config,
                    transport=plan.transport,
                    state_dir=plan.state_dir,
                    socket=plan.socket,
                    runtime_dir=plan.runtime_dir,
                    recorder_bytes=plan.recorder_bytes,
                )
                try:
                    node.start()
                except Exception as e:  # noqa: BLE001 - raised again at the other end
                    _tell(control, _sendable(e))
                    return
                _tell(control, node.config)
                _obey(node, control, gone)
                node.stop()
                _tell(control, _sendable(node.failure))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _parents_end(parent: int) -> Any:
    """Files that can be read when the parent has ended: none where the kernel has no such files."""
    try:
        fd = os.pidfd_open(parent)
    except OSError:
        yield []
        return
    try:
        if os.getppid() != parent:
            sys.exit(1)
        yield [fd]
    finally:
        os.close(fd)


def _obey(node: Node, control: Connection, gone: list[int]) -> None:
    """Until the node or the parent has ended."""
    over, ending = os.pipe()

    def watch() -> None:
        node.wait()
        os.close(ending)

    threading.Thread(target=watch, name="vsync-watch", daemon=True).start()
    while wait([control, over, *gone]) == [control]:
        try:
            order, *how = control.recv()
        except (EOFError, OSError):
            return
        if order == "leave":
            node.leave()
        elif order == "record":
            node.record(*how)


def _tell(control: Connection, what: object) -> None:
    with contextlib.suppress(OSError):  # the parent has ended
        control.send(what)


def _sendable(error: Exception | None) -> Exception | None:
    """The exception itself, if it can travel."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # noqa: BLE001 - whatever pickling may raise
        return VsyncError(repr(error))
