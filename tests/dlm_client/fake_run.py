"""``dlm run`` over a scripted channel: a program for test_runner.py.

Environment: FAKE_LOCK = granted | refused | never | unreachable | no_quorum; FAKE_LOSE = a file: the lock
is lost when it appears; FAKE_VERBS = a file that gets what was sent, when the run is over; FAKE_READY = a
file that is made when the lock has been asked for.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from dlm.cli import run
from dlm.runner import Runner

HERE = Path(__file__).parent


def main() -> int:
    options, _ = run.parse(sys.argv[1:])
    made: list[Any] = []

    def connect() -> Any:
        import dlm
        from vsync.errors import RequestFailed

        how = os.environ.get("FAKE_LOCK", "granted")
        if how == "unreachable":
            raise dlm.NotConnected("the daemon at unix:///nowhere is not there; start vsyncd")
        channel = _fake_channel()
        made.append(channel)

        def lock(args: dict[str, Any]) -> Any:
            if ready := os.environ.get("FAKE_READY"):
                Path(ready).touch()
            if how == "never":
                return channel.PENDING
            return channel.grant(args) if how == "granted" else RequestFailed(how, f"so it is: {how}")

        channel.script["lock"] = lock
        if lose := os.environ.get("FAKE_LOSE"):
            threading.Thread(target=_lose, args=(channel, Path(lose)), daemon=True).start()
        return dlm.Client.over(channel, clock_us=lambda: channel.now)

    code = Runner(options, connect).run()
    if verbs := os.environ.get("FAKE_VERBS"):
        Path(verbs).write_text(" ".join(made[0].verbs()))
    return code


def _lose(channel: Any, when: Path) -> None:
    while not when.exists():
        time.sleep(0.005)
    channel.push("lost", h=1, reason="no_quorum")


def _fake_channel() -> Any:
    spec = importlib.util.spec_from_file_location("fakes", HERE / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeChannel()


if __name__ == "__main__":
    sys.exit(main())
