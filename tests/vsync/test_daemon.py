"""``vsyncd`` as a real process: start-up errors are one line, SIGTERM leaves, a restart finds its state."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vsync
from tests.vsync.support import until
from tests.vsync.transport.ports import free_ports
from vsync import daemon
from vsync.errors import NotConnected

TEXT = """
[cluster]
name = "test"
{nodes}
[daemon]
socket = "{folder}/{{node}}.sock"
state_dir = "{folder}/{{node}}.state"
[timing]
token_ms = 300
token_retransmit_ms = 70
hold_ms = 50
join_ms = 20
consensus_ms = 120
merge_ms = 60
lease_ms = 800
"""


class Daemons:
    """A configuration in a folder, and the daemons started from it."""

    def __init__(self, folder: Path, names: str) -> None:
        self.folder = folder
        self.file = folder / "cluster.toml"
        self.ports = free_ports(len(names))
        self.running: dict[str, subprocess.Popen[str]] = {}
        nodes = [
            f'[[nodes]]\nid = {i}\nname = "{name}"\naddress = "127.0.0.1:{self.ports[i - 1]}"\n'
            for i, name in enumerate(names, 1)
        ]
        self.file.write_text(TEXT.format(nodes="".join(nodes), folder=folder))

    def start(self, name: str, *more: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vsync.daemon", "-c", str(self.file), "--node", name, *more]
        self.running[name] = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
        )
        return self.running[name]

    def connect(self, name: str) -> vsync.Client:
        def attempt() -> vsync.Client | None:
            assert self.running[name].poll() is None, self.running[name].communicate()[1]
            try:
                return vsync.connect(str(self.folder / f"{name}.sock"))
            except NotConnected:
                return None

        client: vsync.Client = until(attempt, f"daemon {name}")
        return client

    def stop(self, name: str, number: int = signal.SIGTERM) -> tuple[int, str]:
        process = self.running.pop(name)
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
        return process.returncode, log


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    daemons = Daemons(tmp_path, "ab")
    yield daemons
    for process in daemons.running.values():
        process.kill()
        process.communicate()


def views(client: vsync.Client, count: int) -> vsync.ClusterView:
    return next(v for v in client.views() if len(v.members) == count and not v.transitional)


@pytest.mark.live
def test_two_daemons_a_crash_a_restart_and_a_leave(daemons: Daemons) -> None:
    daemons.start("a")
    daemons.start("b")
    with daemons.connect("a") as client:
        ring = views(client, 2).id
        code, _ = daemons.stop("b", signal.SIGKILL)
        assert code == -signal.SIGKILL
        assert not views(client, 1).primary
        daemons.start("b")
        back = views(client, 2)
        assert int(back.id.split(".")[1], 16) > int(ring.split(".")[1], 16)
        with daemons.connect("b") as other:
            assert views(other, 2).id == back.id  # it may be the last to install it
        code, log = daemons.stop("b")
        assert code == 0
        assert views(client, 1).reason.startswith("a member left")
        events = [json.loads(line)["event"] for line in log.splitlines()]
        assert events[0] == "node_started"
        assert {"ready", "view_installed", "leaving", "node_stopped"} <= set(events)
        code, log = daemons.stop("a", signal.SIGINT)
        assert code == 0
        with pytest.raises(NotConnected):
            client.status()
    assert not (daemons.folder / "a.sock").exists()


@pytest.mark.live
def test_a_state_directory_in_use(daemons: Daemons) -> None:
    first = daemons.start("a")
    daemons.connect("a").close()
    command = ["-c", str(daemons.file), "--node", "a", "--socket", str(daemons.folder / "other.sock")]
    result = run(*command)
    assert result.returncode == 1
    assert f"in use by process {first.pid}; stop it" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.live
def test_a_port_in_use(daemons: Daemons) -> None:
    with socket.create_server(("127.0.0.1", daemons.ports[0])):
        result = run("-c", str(daemons.file), "--node", "a")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("vsyncd: the node's own address 127.0.0.1:")
    assert "is already in use" in line


@pytest.mark.live
def test_systemd_is_told(daemons: Daemons) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(daemons.folder / "notify"))
        s.settimeout(20)
        daemons.start("a", NOTIFY_SOCKET=str(daemons.folder / "notify"))
        assert s.recv(1000).startswith(b"READY=1\n")
        daemons.stop("a")
        assert s.recv(1000) == b"STOPPING=1"


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vsync.daemon", *args], capture_output=True, text=True, timeout=60, check=False
    )


def test_check_config(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(daemons.folder.iterdir())
    assert daemon.main(["--check-config", "-c", str(daemons.file), "--node", "b"]) == 0
    assert "Cluster 'test', node 'b' of 2" in capsys.readouterr().out
    assert sorted(daemons.folder.iterdir()) == before


def test_check_config_finds_a_mistake(daemons: Daemons, capsys: pytest.CaptureFixture[str]) -> None:
    daemons.file.write_text(daemons.file.read_text().replace("token_ms", "tokn_ms", 1))
    assert daemon.main(["--check-config", "-c", str(daemons.file), "--node", "b"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vsyncd: {daemons.file}: timing.tokn_ms: unknown key; did you mean 'token_ms'")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("args", "code"), [(["--version"], 0), (["--help"], 0), (["--bogus"], 2), (["x"], 2)])
def test_usage(args: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        daemon.main(args)
    assert caught.value.code == code
    if args == ["--version"]:
        assert capsys.readouterr().out == f"vsyncd {vsync.__version__}\n"
