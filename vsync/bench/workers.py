"""Processes that a bench puts to work. Each of them does over and over again what it is asked over a pipe.

What one does is its *body*: a function of a module, made a context manager, that yields a handler. The handler is
called in that process with what it is asked, and returns the answer; when the block is left, or this process ends,
the process ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Self

from vsync.errors import VsyncError

__all__ = ["Body", "Handler", "Job", "Workers", "cpu_s"]

Handler = Callable[..., Any]
Body = Callable[..., AbstractContextManager[Handler]]
Job = tuple[Body, tuple[Any, ...]]  #: and its arguments; both go to another process

ANSWER_S = 120.0  #: more than it takes to begin, and than anything that is asked
END_S = 5.0


class Workers:
    """A process for each job. ``with`` starts them, waits until all are ready, and ends them.

    Not thread-safe. What fails, there or on the way, is a ``VsyncError`` here.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = list(jobs)
        self._pipes: list[Connection] = []
        self._stack = contextlib.ExitStack()
        self.pids: list[int] = []

    def ask(self, which: int, *command: Any) -> Any:
        """Have one do something; its answer."""
        (answer,) = self.each(*command, which=[which])
        return answer

    def each(self, *command: Any, which: Sequence[int] | None = None) -> list[Any]:
        """Have all, or ``which``, do something at the same time; their answers."""
        pipes = self._pipes if which is None else [self._pipes[index] for index in which]
        for pipe in pipes:
            with contextlib.suppress(ConnectionError):  # whoever has ended does not answer
                pipe.send(command)
        return [_answer(pipe) for pipe in pipes]

    def cpu_s(self) -> float:
        """CPU time of all of them so far."""
        return sum(map(cpu_s, self.pids))

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        with contextlib.ExitStack() as stack:
            stack.callback(self._pipes.clear)
            stack.callback(self.pids.clear)
            for body, arguments in self._jobs:
                ours, theirs = context.Pipe()
                stack.enter_context(ours)
                with theirs:  # it hears of our end only if we do not hold its end, too
                    process = context.Process(target=_work, args=(theirs, body, arguments), daemon=True)
                    process.start()
                stack.callback(_end, process)
                assert process.pid is not None
                self.pids.append(process.pid)
                self._pipes.append(ours)
            for pipe in self._pipes:
                _answer(pipe)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, of all its threads."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answer(pipe: Connection) -> Any:
    try:
        if not pipe.poll(ANSWER_S):
            raise VsyncError(f"a process of the bench has not answered within {ANSWER_S:g} s")
        answer = pipe.recv()
    except (EOFError, ConnectionError):
        raise VsyncError("a process of the bench has ended") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _end(process: SpawnProcess) -> None:
    process.terminate()
    process.join(END_S)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()


def _work(pipe: Connection, body: Body, arguments: tuple[Any, ...]) -> None:
    """What such a process does, until the pipe is closed."""
    with pipe:
        try:
            with body(*arguments) as handle:
                pipe.send(None)
                while True:
                    pipe.send(handle(*pipe.recv()))
        except (EOFError, KeyboardInterrupt):
            pass
        except Exception as e:  # noqa: BLE001 - told to the parent
            with contextlib.suppress(OSError):
                pipe.send(VsyncError(f"a process of the bench failed: {e!r}"))
