"""Programs that services have run (``Host.spawn``), each waited for by a thread of its own.

A program gets a session and a process group of its own, its input on stdin, and a time; when that is over the whole
group is killed. What it writes, on stdout or stderr, is kept up to ``OUTPUT_LIMIT`` bytes; the rest is read and
dropped, so that it never stands still for that. Whatever goes wrong is a result, not an exception: a program that
cannot be started, that is killed, or that has to be, has no exit code, and the last line of its output says why.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from vsync.service import Spawn

__all__ = ["OUTPUT_LIMIT", "Programs", "run"]

OUTPUT_LIMIT = 64 << 10  #: bytes
PIECE = 16 << 10
CLOSE_S = 1.0  #: how long ``close`` waits for programs to be gone
#: Where programs for administrators lie; the PATH of a daemon that a user started may lack them.
MORE_PATH = ("/usr/sbin", "/sbin", "/usr/local/sbin")

Result = tuple[int | None, bytes]  #: exit code, output
Done = Callable[[Spawn, int | None, bytes], None]


class Programs:
    """The running programs of one node. Its methods are called by the node's thread, ``done`` by others."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], int] = {}  #: an eventfd each; written to: kill it
        self._threads: set[threading.Thread] = set()

    def start(self, wanted: Spawn) -> None:
        """Start a program; ``done(wanted, exit code, output)`` is called once, by another thread."""
        stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        thread = threading.Thread(target=self._work, args=(wanted, stop), name="vsync-program", daemon=True)
        with self._lock:
            self._running[wanted.service, wanted.ticket] = stop
            self._threads.add(thread)
        thread.start()

    def kill(self, service: str, ticket: int) -> None:
        """Kill a program and its children; it is done as any other, without an exit code."""
        with self._lock:
            stop = self._running.get((service, ticket))
            if stop is not None:
                os.eventfd_write(stop, 1)

    def close(self) -> None:
        """Kill all of them, and wait a moment for that. Their results are still told."""
        with self._lock:
            for stop in self._running.values():
                os.eventfd_write(stop, 1)
            threads = list(self._threads)
        for thread in threads:
            thread.join(CLOSE_S)

    def _work(self, wanted: Spawn, stop: int) -> None:
        code, output = run(wanted.argv, wanted.stdin, wanted.timeout, stop)
        with self._lock:
            del self._running[wanted.service, wanted.ticket]
            self._threads.discard(threading.current_thread())
            os.close(stop)
        self._done(wanted, code, output)


def run(argv: Sequence[str], stdin: bytes, timeout: int, stop: int) -> Result:
    """Run a program to its end, for at most ``timeout`` µs and until ``stop``, an eventfd, is written to."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            env=_environment(),
        )
    except OSError as error:
        return None, f"{argv[0]} cannot be started: {error.strerror}".encode()
    except (ValueError, subprocess.SubprocessError) as error:
        return None, f"{argv[0]} cannot be started: {error}".encode()
    with process:  # closes the pipes and waits
        talk = _Talk(process, stdin)
        try:
            why = talk.until_end(time.monotonic() + timeout / 1_000_000, stop)
        finally:
            if not talk.ended:  # nobody has waited for it: the number is still that of the group
                os.killpg(process.pid, signal.SIGKILL)
    if not why and process.returncode >= 0:
        return process.returncode, bytes(talk.output)
    why = why or f"killed by signal {-process.returncode}"
    return None, bytes(talk.output[: OUTPUT_LIMIT - 1000]) + f"\n{argv[0]}: {why}".encode()


class _Talk:
    """What goes into a program and comes out of it, until it ends. What its children do later does not matter."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.output = bytearray()
        self.ended = False  #: it has ended by itself
        self._pid = process.pid
        self._stdin, self._stdout = process.stdin, process.stdout
        self._left = memoryview(stdin)
        self._poll = select.poll()
        for pipe, event in ((self._stdin, select.POLLOUT), (self._stdout, select.POLLIN)):
            os.set_blocking(pipe.fileno(), False)
            self._poll.register(pipe, event)

    def until_end(self, limit: float, stop: int) -> str:
        """Empty when the program has ended; else why it has to be killed. ``limit`` is on the monotonic clock."""
        end = os.pidfd_open(self._pid)
        try:
            self._poll.register(end, select.POLLIN)
            self._poll.register(stop, select.POLLIN)
            while (rest := limit - time.monotonic()) > 0:
                ready = {fd for fd, _ in self._poll.poll(rest * 1000 + 1)}
                self._feed(ready)
                self._read(ready)
                if end in ready:
                    self._drain()
                    self.ended = True
                    return ""
                if stop in ready:
                    return "not wanted any more, killed"
            return "no end in time, killed"
        finally:
            os.close(end)

    def _feed(self, ready: set[int]) -> None:
        if self._stdin.closed or self._stdin.fileno() not in ready:
            return
        try:
            self._left = self._left[self._stdin.write(self._left) or 0 :]
        except OSError:  # it does not listen
            self._left = self._left[:0]
        if not self._left:
            self._poll.unregister(self._stdin)
            self._stdin.close()

    def _read(self, ready: set[int]) -> bool:
        """Take a piece of output; whether there was one."""
        if self._stdout.closed or self._stdout.fileno() not in ready:
            return False
        piece = self._stdout.read(PIECE)
        if piece == b"":
            self._poll.unregister(self._stdout)
            self._stdout.close()
        self.output += (piece or b"")[: OUTPUT_LIMIT - len(self.output)]
        return bool(piece)

    def _drain(self) -> None:
        """It has ended: take what it has left in the pipe, which others may still write to."""
        for _ in range(OUTPUT_LIMIT // PIECE):
            if self._stdout.closed or not self._read({self._stdout.fileno()}):
                return


def _environment() -> dict[str, str]:
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return {**os.environ, "PATH": os.pathsep.join([*path, *(place for place in MORE_PATH if place not in path)])}
