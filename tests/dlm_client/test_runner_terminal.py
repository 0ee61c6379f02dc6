"""``dlm run`` on a terminal: the command is its foreground job, as a shell would have it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "fake_run.py"
ROOT = PROGRAM.parents[2]


class Terminal:
    """A pseudo terminal whose session leader is a run."""

    def __init__(self, script: str) -> None:
        self._master, slave = os.openpty()
        self.run = subprocess.Popen(
            [sys.executable, str(PROGRAM), "job", "--", "/bin/sh", "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: self._log_in(slave),
        )
        os.close(slave)
        self.seen = ""

    @staticmethod
    def _log_in(slave: int) -> None:
        os.login_tty(slave)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # these tests may be run where a shell has it ignored

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str) -> None:
        limit = time.monotonic() + 20
        while not re.search(pattern, self.seen):
            assert time.monotonic() < limit, f"no {pattern!r} in {self.seen!r}"
            try:
                self.seen += os.read(self._master, 1000).decode()
            except OSError:  # the last one has closed it
                assert re.search(pattern, self.seen), f"no {pattern!r} in {self.seen!r}"

    def expect_stop(self) -> None:
        limit = time.monotonic() + 20
        pid, status = 0, 0
        while pid == 0:
            assert time.monotonic() < limit, "the run does not stop"
            pid, status = os.waitpid(self.run.pid, os.WUNTRACED | os.WNOHANG)
            time.sleep(0.005)
        assert os.WIFSTOPPED(status)

    def close(self) -> None:
        self.run.kill()
        self.run.wait()
        os.close(self._master)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_the_command_may_read_the_terminal(terminals: list[Terminal]) -> None:
    terminal = Terminal("echo ready; read x; echo got $x")
    terminals.append(terminal)
    terminal.expect("ready")
    terminal.type("this\n")
    terminal.expect("got this")
    assert terminal.run.wait(20) == 0


def test_ctrl_c_reaches_the_command(terminals: list[Terminal]) -> None:
    terminal = Terminal("trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.01; done")
    terminals.append(terminal)
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("interrupted")
    assert terminal.run.wait(20) == 3


def test_ctrl_z_stops_both_and_continuing_the_run_continues_both(terminals: list[Terminal]) -> None:
    terminal = Terminal("echo ready; read x; echo got $x")
    terminals.append(terminal)
    terminal.expect("ready")
    terminal.type("\x1a")
    terminal.expect_stop()
    terminal.run.send_signal(signal.SIGCONT)
    terminal.type("more\n")
    terminal.expect("got more")
    assert terminal.run.wait(20) == 0
