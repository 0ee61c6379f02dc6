"""``dlm run``: a command that runs while a lock is held (flock(1) for a cluster).

What other runners got wrong is in users.md §3.2; here: no shell, the child's exit code is ours, signals are
passed on from the first instant, to the child's whole process group, the child does not outlive us, and it
is ended when the lock is lost.

Threads: the main thread takes the lock and waits for the child; one thread takes signals with ``sigwait``,
so that no signal handler interrupts anything; one waits for the loss of the lock. ``_guard`` orders them: a
signal either finds no child yet, and then we end, or it finds one, and then it goes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlm.client import Client
    from dlm.held import Held

__all__ = ["LOCK_LOST", "NOT_ACQUIRED", "OWN_FAILURE", "UNREACHABLE", "Options", "Runner"]

UNREACHABLE = 4  #: no daemon to ask
NOT_ACQUIRED = 75  #: EX_TEMPFAIL
LOCK_LOST = 76  #: and the child was killed for it
OWN_FAILURE = 125
CANNOT_EXECUTE = 126
NOT_FOUND = 127

#  What is passed on. Not those that stop us or the terminal's own business, nor those that mean a fault of
# ours.
SIGNALS = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
)
HARMLESS = (signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2)  #: do not end us while we wait for the lock

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What to run under which lock. ``wait_s`` as ``timeout`` of ``Client.acquire``."""

    name: str
    command: tuple[str, ...]
    mode: str = "EX"
    wait_s: float | None = None
    on_lost: str = "kill"  #: kill | warn | ignore
    kill_after_s: float = 5.0
    not_acquired_code: int = NOT_ACQUIRED
    lost_code: int = LOCK_LOST
    verbose: bool = False
    space: str = "default"


class Runner:
    """Runs one command. Must be made and run by the main thread, before any other thread has been started.

    ``connect`` opens the client; it is called with the signals taken care of already.
    """

    def __init__(self, options: Options, connect: Callable[[], Client]) -> None:
        self._options = options
        self._connect = connect
        self._guard = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False  #: the child's leader has exited; it is not reaped before this is set
        self._over = threading.Event()
        self._killed_for_loss = False
        # What is ignored from the outside (nohup, a shell's background job) stays so, for us and the child.
        self._signals = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]
        self._old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        threading.Thread(target=self._pass_signals, name="signals", daemon=True).start()

    def run(self) -> int:
        """Take the lock, run the command, give the lock back; the exit code of all that."""
        from dlm import errors

        try:
            with self._connect() as locks:
                return self._run_with(locks)
        except (errors.LockTimeout, errors.LockLost, errors.NoQuorum) as error:
            self._say(str(error))
            return self._options.not_acquired_code
        except errors.NotConnected as error:
            self._say(f"{error}")
            return UNREACHABLE
        except errors.DLMError as error:
            self._say(str(error))
            return OWN_FAILURE

    # -- the main thread

    def _run_with(self, locks: Client) -> int:
        from dlm.info import Mode

        options = self._options
        began = time.monotonic()
        held = locks.acquire(options.name, Mode.parse(options.mode), options.wait_s)
        if options.verbose:
            self._say(f"got {options.name!r}, fence {held.fence}, after {time.monotonic() - began:.3f} s")
        try:
            try:
                self._spawn(self._environment(held))
            except (FileNotFoundError, NotADirectoryError):
                self._say(f"{options.command[0]}: command not found")
                return NOT_FOUND
            except OSError as error:
                self._say(f"{options.command[0]}: {error.strerror}")
                return CANNOT_EXECUTE
            threading.Thread(target=self._watch_loss, args=(held,), name="loss", daemon=True).start()
            code = self._wait_for_child()
        finally:
            held_to_the_end = self._give_back(held)
        if self._killed_for_loss or (not held_to_the_end and options.on_lost == "kill"):
            return options.lost_code
        return code

    def _spawn(self, environment: dict[str, str]) -> None:
        prctl = ctypes.CDLL(None).prctl  # looked up here: little may be done between fork and exec
        mask, parent, foreground = self._old_mask, os.getpid(), _in_foreground()

        def in_child() -> None:
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(OWN_FAILURE)
            if foreground:
                # A command that reads the terminal must be its foreground process group, as in a shell.
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
                os.tcsetpgrp(0, os.getpid())
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        with self._guard:
            # The other threads hold no lock that in_child could need: it allocates next to nothing.
            self._child = subprocess.Popen(
                self._options.command,
                env=environment,
                process_group=0,
                preexec_fn=in_child,
            )

    def _environment(self, held: Held) -> dict[str, str]:
        own = {"DLM_LOCK": self._options.name, "DLM_SPACE": self._options.space}
        own |= {"DLM_MODE": held.mode.name, "DLM_FENCE": str(held.fence)}
        return {**os.environ, **own}

    def _wait_for_child(self) -> int:
        child = self._child
        assert child is not None
        while _end_or_stop(child.pid) == os.CLD_STOPPED:
            os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            self._stop_with_child(child.pid)
        with self._guard:
            self._ended = True
            if self._killed_for_loss:
                _kill_group(child.pid, signal.SIGKILL)  # what the leader has left behind
        self._over.set()
        code = child.wait()
        self._take_terminal_back(child.pid)
        return 128 - code if code < 0 else code

    def _give_back(self, held: Held) -> bool:
        """Release; whether the lock was held until now."""
        from dlm import errors

        self._over.set()
        try:
            held.release()
        except errors.LockLost as lost:
            if not self._killed_for_loss and self._options.on_lost != "ignore":
                self._say(str(lost))
            return False
        return True

    def _take_terminal_back(self, child: int) -> bool:
        with contextlib.suppress(OSError):
            if os.isatty(0) and os.tcgetpgrp(0) == child:
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we are in the background for this one call
                os.tcsetpgrp(0, os.getpgrp())
                signal.signal(signal.SIGTTOU, signal.SIG_DFL)
                return True
        return False

    def _stop_with_child(self, child: int) -> None:
        """Ctrl-Z stops the command; the shell must see us stop, and wakes us alone."""
        if self._take_terminal_back(child):
            os.kill(os.getpid(), signal.SIGSTOP)
            if _in_foreground():
                os.tcsetpgrp(0, child)
            _kill_group(child, signal.SIGCONT)

    # -- the other threads

    def _pass_signals(self) -> None:
        while True:
            number = signal.sigwait(self._signals)
            with self._guard:
                if self._child is None:
                    if number in HARMLESS:
                        continue
                    # Ends the session: the node withdraws the request, or releases a lock just granted.
                    sys.stderr.flush()
                    os._exit(128 + number)
                if not self._ended:
                    _kill_group(self._child.pid, number)

    def _watch_loss(self, held: Held) -> None:
        options = self._options
        if not held.lost.wait() or options.on_lost == "ignore":
            return
        if options.on_lost == "warn":
            self._say(f"lock {options.name!r} is lost ({held.lost.reason}); the command goes on")
            return
        with self._guard:
            if self._ended:
                return
            self._killed_for_loss = True
            assert self._child is not None
            self._say(f"lock {options.name!r} is lost ({held.lost.reason}): ending the command")
            _kill_group(self._child.pid, signal.SIGTERM)
            _kill_group(self._child.pid, signal.SIGCONT)
        if not self._over.wait(options.kill_after_s):
            with self._guard:
                if not self._ended:
                    _kill_group(self._child.pid, signal.SIGKILL)

    def _say(self, text: str) -> None:
        print(f"dlm run: {text}", file=sys.stderr, flush=True)


def _in_foreground() -> bool:
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # not our controlling terminal
        return False


def _kill_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _end_or_stop(child: int) -> int:
    """Wait; ``CLD_STOPPED`` or how the child has ended. It is not reaped: its group's number stays its own.
    """
    state = os.waitid(os.P_PID, child, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    assert state is not None
    return state.si_code
