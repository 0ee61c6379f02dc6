"""``dlm run``: exit codes, the environment, signals, the loss of the lock. Real processes, a scripted lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "fake_run.py"
ROOT = PROGRAM.parents[2]
SHELL = "/bin/sh"


class Runs:
    """Starts runs; ``fake`` says how the lock behaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **fake: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **{f"FAKE_{k}": v for k, v in fake.items()}}
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **fake: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **fake)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid_in(path: Path) -> int:
    until(lambda: path.exists() and path.read_text().endswith("\n"), f"{path.name} was not written")
    return int(path.read_text())


# -- exit codes and surroundings


@pytest.mark.parametrize("code", [0, 1, 75, 255])
def test_the_exit_code_is_passed_on(runs: Runs, code: int) -> None:
    assert runs.run("job", "--", SHELL, "-c", f"exit {code}")[0] == code


def test_death_by_a_signal_is_128_plus_its_number(runs: Runs) -> None:
    assert runs.run("job", "--", SHELL, "-c", "kill -KILL $$")[0] == 128 + 9


def test_the_lock_is_released_after_the_command(runs: Runs) -> None:
    verbs = runs.path("verbs")
    assert runs.run("job", "--", "true", VERBS=str(verbs))[0] == 0
    assert verbs.read_text() == "lock unlock"


def test_the_environment_names_lock_mode_and_fence(runs: Runs) -> None:
    code, out, _ = runs.run("--shared", "job/1", "--", SHELL, "-c", "echo $DLM_LOCK $DLM_MODE $DLM_FENCE")
    assert (code, out) == (0, f"job/1 PR {1 << 32}\n")


def test_standard_input_goes_to_the_command(runs: Runs) -> None:
    process = runs.start("job", "--", "cat")
    assert process.communicate("through\n", timeout=30)[0] == "through\n"


def test_arguments_are_not_given_to_a_shell(runs: Runs) -> None:
    assert runs.run("job", "--", "echo", "$HOME;", "--wait", "*")[1] == "$HOME; --wait *\n"


def test_the_two_dashes_may_be_left_out(runs: Runs) -> None:
    assert runs.run("-v", "job", "echo", "-n", "x")[1] == "x"


def test_a_command_that_is_not_there(runs: Runs) -> None:
    verbs = runs.path("verbs")
    code, _, err = runs.run("job", "--", "no-such-command-here", VERBS=str(verbs))
    assert code == 127
    assert "no-such-command-here: command not found" in err
    assert verbs.read_text() == "lock unlock"


def test_a_command_that_cannot_be_executed(runs: Runs) -> None:
    runs.path("text").write_text("no program")
    assert runs.run("job", "--", "./text")[0] == 126


def test_not_acquired_is_75_or_what_was_asked_for(runs: Runs) -> None:
    code, _, err = runs.run("--no-wait", "job", "--", "true", LOCK="again")
    assert code == 75
    assert "'job' is not free" in err
    assert runs.run("-n", "-E", "3", "job", "--", "true", LOCK="again")[0] == 3
    assert runs.run("-n", "job", "--", "true", LOCK="no_quorum")[0] == 75


def test_a_wait_that_is_limited(runs: Runs) -> None:
    code, _, err = runs.run("--wait", "0.05", "job", "--", "true", LOCK="never")
    assert code == 75
    assert "not granted within 0.05 s" in err


def test_an_unreachable_daemon_is_4_and_named(runs: Runs) -> None:
    code, _, err = runs.run("job", "--", "true", LOCK="unreachable")
    assert code == 4
    assert "unix:///nowhere" in err


def test_a_request_that_makes_no_sense_is_125(runs: Runs) -> None:
    assert runs.run("job", "--", "true", LOCK="invalid")[0] == 125


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["job"],
        ["job", "--"],
        ["job", "more", "--", "true"],
        ["--mode", "XX", "job", "--", "true"],
        ["--wait", "-1", "job", "--", "true"],
        ["--wait", "nan", "job", "--", "true"],
        ["--wait", "1", "--no-wait", "job", "--", "true"],
        ["--shared", "--mode", "EX", "job", "--", "true"],
        ["-E", "256", "job", "--", "true"],
    ],
)
def test_usage_errors_are_2(runs: Runs, arguments: list[str]) -> None:
    code, _, err = runs.run(*arguments)
    assert code == 2
    assert "usage: dlm run" in err


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(runs: Runs, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got; exit 7' {name}; echo $$ >pid; while :; do sleep 0.01; done"
    process = runs.start("job", "--", SHELL, "-c", script)
    pid_in(runs.path("pid"))
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == "got\n"
    assert process.returncode == 7


def test_signals_reach_the_whole_process_group(runs: Runs) -> None:
    process = runs.start("job", "--", SHELL, "-c", "sleep 1000 & echo $! >pid; wait")
    grandchild = pid_in(runs.path("pid"))
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    until(lambda: not alive(grandchild), "the grandchild has outlived the signal")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait_for_the_lock(runs: Runs, number: signal.Signals) -> None:
    ready = runs.path("ready")
    process = runs.start("job", "--", "touch", "ran", LOCK="never", READY=str(ready))
    until(ready.exists, "the lock was not asked for")
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert not runs.path("ran").exists()


def test_a_harmless_signal_does_not_end_the_wait(runs: Runs) -> None:
    ready = runs.path("ready")
    process = runs.start("job", "--", "true", LOCK="never", READY=str(ready))
    until(ready.exists, "the lock was not asked for")
    process.send_signal(signal.SIGWINCH)
    process.send_signal(signal.SIGTERM)  # taken in order
    assert process.wait(30) == 128 + signal.SIGTERM


def test_the_command_starts_with_the_signals_open(runs: Runs) -> None:
    _, out, _ = runs.run("job", "--", "grep", "SigBlk", "/proc/self/status")
    assert int(out.split()[1], 16) == 0


def test_the_command_does_not_outlive_the_runner(runs: Runs) -> None:
    process = runs.start("job", "--", SHELL, "-c", "echo $$ >pid; exec sleep 1000")
    child = pid_in(runs.path("pid"))
    process.kill()
    until(lambda: not alive(child), "the command has outlived its runner")


# -- losing the lock


def test_a_lost_lock_ends_the_command(runs: Runs) -> None:
    lose = runs.path("lose")
    code, _, err = runs.run("job", "--", SHELL, "-c", f"touch {lose}; exec sleep 1000", LOSE=str(lose))
    assert code == 76
    assert "lost (no_quorum)" in err


def test_a_command_that_ignores_the_end_is_killed_with_its_group(runs: Runs) -> None:
    lose = runs.path("lose")
    script = f"trap '' TERM; sleep 1000 & echo $! >pid; touch {lose}; while :; do sleep 0.01; done"
    process = runs.start("--kill-after", "0.1", "job", "--", SHELL, "-c", script, LOSE=str(lose))
    grandchild = pid_in(runs.path("pid"))
    assert process.wait(30) == 76
    until(lambda: not alive(grandchild), "the grandchild has outlived the lock")


def test_what_the_command_leaves_behind_is_killed_too(runs: Runs) -> None:
    lose = runs.path("lose")
    script = f"(trap '' TERM; exec sleep 1000) & echo $! >pid; touch {lose}; wait"
    process = runs.start("job", "--", SHELL, "-c", script, LOSE=str(lose))
    grandchild = pid_in(runs.path("pid"))
    assert process.wait(30) == 76
    until(lambda: not alive(grandchild), "the grandchild has outlived the lock")


def test_the_exit_code_for_a_lost_lock_can_be_chosen(runs: Runs) -> None:
    lose = runs.path("lose")
    script = f"trap 'exit 0' TERM; touch {lose}; while :; do sleep 0.01; done"
    assert runs.run("--lost-exit-code", "9", "job", "--", SHELL, "-c", script, LOSE=str(lose))[0] == 9


@pytest.mark.parametrize(("policy", "told"), [("warn", True), ("ignore", False)])
def test_a_lost_lock_may_be_survived(runs: Runs, policy: str, told: bool) -> None:
    lose = runs.path("lose")
    process = runs.start(
        "--on-lost", policy, "job", "--", SHELL, "-c", f"touch {lose}; read x; exit 5", LOSE=str(lose)
    )
    if told:
        assert process.stderr is not None
        assert "the command goes on" in process.stderr.readline()
    until(lose.exists, "the command did not run")
    _, err = process.communicate("go\n", timeout=30)
    assert process.returncode == 5
    assert ("lost" in err) <= told
