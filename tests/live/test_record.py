"""``dlm record`` and ``dlm replay`` with real daemons; ``dlm history`` and ``dlm show --why`` beside them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import dlm
from vsync.testcluster import LocalCluster

INSTALLED = any(point.value == "dlm.plugin:service" for point in entry_points(group="vsync.services"))
LONG_S = 30.0

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not INSTALLED, reason="vsync is not installed (pip install -e .): no entry points"),
]


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_record_and_replay(tmp_path: Path) -> None:
    file = tmp_path / "a.dlmrec"
    with LocalCluster(3) as cluster:
        url_a, url_b = cluster["a"].url, cluster["b"].url
        with dlm.connect(url_a) as at_a, dlm.connect(url_b) as at_b:
            held = at_a.acquire("nightly")
            command = [sys.executable, "-m", "dlm", "--url", url_a, "record", str(file)]
            recorder = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert recorder.stderr is not None
            assert "recording from position" in recorder.stderr.readline()
            waiter = threading.Thread(target=lambda: at_b.acquire("nightly", timeout=LONG_S).release(wait=True))
            waiter.start()
            deadline = time.monotonic() + LONG_S
            while (seen := at_a.show("nightly")) is None or not seen.waiters:
                assert time.monotonic() < deadline, "node b's request has not come"
            why = program("--url", url_b, "show", "--why", "nightly")
            assert "waits for EX on nightly" in why.stdout
            assert "of node 1 holds EX" in why.stdout
            held.release()
            waiter.join(LONG_S)
            told = at_a.history("nightly").events
            assert [event.what for event in told if event.node == 2 and not event.of_name] == [
                "waiting", "granted", "released",
            ]  # fmt: skip
            recorder.send_signal(signal.SIGINT)
            assert "positions" in recorder.communicate(timeout=30)[1]
            assert recorder.returncode == 0
            assert oct(file.stat().st_mode & 0o777) == "0o600"
            json.loads(program("--url", url_a, "history", "nightly", "--json").stdout)
    done = program("replay", str(file))
    assert done.returncode == 0, done.stderr
    assert "as it was" in done.stderr
    words = [line.split()[3] for line in done.stdout.splitlines()[1:]]
    assert words[0] == "handover"
    assert {"waiting", "granted", "released"} <= set(words)
    assert "as it was" in program("replay", str(file), "--state").stderr
    only = program("replay", str(file), "--name", "nightly", "--until", "1")
    assert only.returncode == 0
    assert len(only.stdout.splitlines()) < len(done.stdout.splitlines())
    file.write_bytes(file.read_bytes()[:-7])
    torn = program("replay", str(file))
    assert torn.returncode == 0
    assert "ends within a record" in torn.stderr
    assert "is not a recorded lock table" in program("replay", __file__).stderr
