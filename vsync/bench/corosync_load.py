"""What an installed corosync does under load: the C program beside this file, one at each of three nodes.

Compiled when it is needed, as a peer measured through Python would be measured with Python's brakes on.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from vsync.bench import corosync
from vsync.bench.rows import Sample, sample
from vsync.errors import VsyncError
from vsync.testcluster import die_with_parent

__all__ = ["CorosyncLoad", "missing"]

SOURCE = Path(__file__).with_name("cpg_load.c")


def missing() -> str:
    """Why it cannot be measured here; empty if it can."""
    if _compiler() is None:
        return "there is no C compiler (package gcc)"
    return corosync.missing()


class CorosyncLoad:
    """Three daemons and their members. ``with`` starts and ends them. The first sends, all receive."""

    def __init__(self, *, encrypted: bool = False) -> None:
        self.name = "corosync, aes256 sha256" if encrypted else "corosync"
        self._subject = corosync.CorosyncSubject(encrypted=encrypted)
        self._members: list[subprocess.Popen[str]] = []
        self._stack = contextlib.ExitStack()

    def latency(self, size: int, count: int) -> Sample:
        """From submission to own delivery, one message at a time."""
        return sample([float(word) for word in self._ask(f"lat {size} {count}")])

    def throughput(self, size: int, seconds: float) -> Sample:
        """Messages per second, delivered to their sender."""
        count, spent = self._ask(f"thr {size} {seconds}")
        return Sample(int(count) / float(spent))

    def _ask(self, line: str) -> list[str]:
        sender = self._members[0]
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdin.write(line + "\n")
        sender.stdin.flush()
        words = sender.stdout.readline().split()
        if not words:
            raise VsyncError(f"the load of corosync has ended with code {sender.wait()}")
        return words

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._subject)
            program = _compile(self._subject.folder)
            for name in self._subject.names:
                inside = self._subject.network.inside(int(name))
                run = f'mount --bind "$0" /run && exec {program}'
                member = subprocess.Popen(
                    [*inside, "unshare", "-m", "sh", "-c", run, str(self._subject.folder / name / "run")],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent(),
                )  # fmt: skip
                stack.callback(_end, member)
                assert member.stdout is not None
                if member.stdout.readline() != "ready\n":
                    raise VsyncError(f"the load of corosync has ended with code {member.wait()}")
                self._members.append(member)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._members.clear()


def _end(member: subprocess.Popen[str]) -> None:
    member.kill()
    member.wait()
    for pipe in (member.stdin, member.stdout):
        assert pipe is not None
        pipe.close()


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def _compile(folder: Path) -> Path:
    compiler, program = _compiler(), folder / "cpg_load"
    assert compiler is not None
    done = subprocess.run(
        [compiler, "-O2", "-o", str(program), str(SOURCE), "-l:libcpg.so.4"],
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise VsyncError(f"{SOURCE.name} was not compiled: {compiler} has ended with {done.returncode}")
    return program
