"""What the live tests share: asking nodes, reading logs, programs beside the test, waiting without luck."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dlm
from vsync.testcluster import LocalCluster, LocalNode, die_with_parent

__all__ = [
    "configuration",
    "counters",
    "holder",
    "log_lines",
    "run",
    "start",
    "status",
    "until",
    "view_ids",
    "vsyncd",
    "works",
]

#: A program that takes a lock, says so with its fence, and holds it until it is killed.
HOLDER = """
import sys, dlm
locks = dlm.connect(sys.argv[1], name="holder")
held = locks.acquire(sys.argv[2])
print(held.fence, flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Poll ``condition`` until it holds and return its value; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.005)
    return value


def status(cluster: LocalCluster, name: str) -> dict[str, Any]:
    """The status of a node that is there."""
    answer = cluster.status(name)
    assert answer is not None, f"node {name} does not answer"
    return answer


def counters(cluster: LocalCluster, name: str) -> Mapping[str, int]:
    """The counters of a node's ring; 0 for those that were never counted."""
    found: dict[str, int] = status(cluster, name)["ring"]["counters"]
    return _Zero(found)


class _Zero(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def view_ids(cluster: LocalCluster) -> list[str]:
    """The view of every node that runs."""
    return [status(cluster, name)["view"]["id"] for name in cluster.running]


def log_lines(node: LocalNode, word: str) -> list[str]:
    """The lines of a node's log that contain ``word``."""
    return [line for line in node.log.read_text(errors="replace").splitlines() if word in line]


def works(cluster: LocalCluster, name: str = "proof") -> None:
    """Every node that runs can take the same lock, one after the other, with growing fences."""
    fences = []
    for node in cluster.running:
        with dlm.connect(cluster[node].url) as locks, locks.lock(name, timeout=10) as held:
            fences.append(held.fence)
    assert fences == sorted(set(fences))


@contextlib.contextmanager
def holder(node: LocalNode, name: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Another process that holds lock ``name`` through ``node``; gives it and its fence."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, node.url, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def start(*words: str | os.PathLike[str]) -> subprocess.Popen[str]:
    """Start ``python -m words…``, its output piped."""
    command = [sys.executable, "-m", *(os.fspath(word) for word in words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*words: str | os.PathLike[str], seconds: float = 30) -> subprocess.CompletedProcess[str]:
    """Run ``python -m words…`` to its end."""
    command = [sys.executable, "-m", *(os.fspath(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


@contextlib.contextmanager
def vsyncd(config: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """One more daemon, ended with the block; gives it and its log."""
    log = config.with_suffix(f".{os.urandom(4).hex()}.log")
    with open(log, "wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "vsync.daemon", "--config", str(config), *options],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            preexec_fn=die_with_parent(),
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def configuration(
    path: Path,
    nodes: Sequence[tuple[int, str, str]],
    me: str,
    cluster: str = "local",
    more: str = "",
) -> Path:
    """Write a configuration file for node ``me`` of ``nodes`` (id, name, address); its paths lie beside it."""
    lines = [f'[cluster]\nname = "{cluster}"\n[node]\nname = "{me}"']
    for number, name, address in nodes:
        lines.append(f'[[nodes]]\nid = {number}\nname = "{name}"\naddress = "{address}"')
    lines += [f'[daemon]\nsocket = "{path}.sock"\nstate_dir = "{path}.state"\nlog_format = "text"', more]
    path.write_text("\n".join(lines) + "\n")
    return path
