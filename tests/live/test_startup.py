"""What keeps a daemon from starting: one line on stderr with file, key and remedy, and exit code 1."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.live.helpers import configuration, run, until, vsyncd
from vsync import client, daemon
from vsync.storage import StateDirectory
from vsync.testcluster import free_ports

pytestmark = pytest.mark.live

GOOD = """
[cluster]
name = "local"
[node]
name = "a"
[[nodes]]
id = 1
name = "a"
address = "127.0.0.1:7411"
[[nodes]]
id = 2
name = "b"
address = "127.0.0.1:7412"
[timing]
token_ms = 1000
"""

#: what is replaced by what, the key that must be named, and what else must be said
MISTAKES = {
    "unknown key": ("token_ms", "tokken_ms", "timing.tokken_ms", "did you mean 'token_ms'?"),
    "unknown table": ("[timing]", "[timings]", "timings", "unknown key"),
    "wrong type": ("token_ms = 1000", 'token_ms = "1 s"', "timing.token_ms", "must be a number"),
    "truth for a number": ("id = 2", "id = true", "nodes[2].id", "must be a whole number"),
    "no cluster name": ('name = "local"', "", "cluster.name", "is missing"),
    "own node not listed": ('[node]\nname = "a"', '[node]\nname = "c"', "node", "not among [[nodes]] (a, b)"),
    "own node not named": ('[node]\nname = "a"', "[node]", "node", "give --node NAME"),
    "id twice": ("id = 2", "id = 1", "nodes[2].id", "each node needs its own"),
    "name twice": ('name = "b"', 'name = "a"', "nodes[2].name", "each node needs its own"),
    "address twice": ("127.0.0.1:7412", "127.0.0.1:7411", "nodes[2].address", "each node needs its own"),
    "no address": ("127.0.0.1:7412", "127.0.0.1", "nodes[2].address", "host:port"),
    "not loopback": ("127.0.0.1:7412", "10.0.0.2:7412", "nodes", "without a key only loopback"),
    "all interfaces": ("127.0.0.1:7412", "0.0.0.0:7412", "nodes", "without a key only loopback"),
    "timers": ("token_ms = 1000", "token_ms = 300", "timing", "token_retransmit must be below half of token"),
    "not TOML": ("[cluster]", "[cluster", "", "not valid TOML"),
    "socket too long": ("[timing]", f'[daemon]\nsocket = "{"x" * 108}"\n[timing]', "daemon.socket", "107 bytes"),
}


@pytest.mark.parametrize(("old", "new", "key", "said"), MISTAKES.values(), ids=MISTAKES)
def test_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, key: str, said: str
) -> None:
    file = tmp_path / "node.toml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))
    assert daemon.main(["--config", str(file), "--check-config"]) == 1
    checked = capsys.readouterr()
    assert daemon.main(["--config", str(file)]) == 1
    started = capsys.readouterr()
    assert checked == started
    assert started.out == ""
    (line,) = started.err.splitlines()
    assert line.startswith(f"vsyncd: {file}: {key}")
    assert said in line
    assert list(tmp_path.iterdir()) == [file]  # nothing was made, opened or locked


def test_a_wrong_configuration_as_a_process(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(GOOD.replace("token_ms", "tokken_ms"))
    assert "timing.tokken_ms: unknown key" in refused(file)
    assert refused(file) == refused(file, "--check-config")


def test_a_good_configuration_is_called_good(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(GOOD)
    result = run("vsync.daemon", "--config", file, "--check-config")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{file}: good." in result.stdout


def test_no_configuration(tmp_path: Path) -> None:
    result = run("vsync.daemon", "--config", tmp_path / "none.toml")
    assert result.returncode == 1
    assert f"{tmp_path}/none.toml: cannot be read" in result.stderr
    assert "--config" in result.stderr


# ---------------------------------------------------------------- what the machine refuses


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration of a single node, whose paths lie beside it."""
    (port,) = free_ports(1)
    return configuration(tmp_path / "a", [(1, "a", f"127.0.0.1:{port}")], "a")


def refused(file: Path, *options: str) -> str:
    """The one line that the daemon says before it gives up."""
    result = run("vsync.daemon", "--config", file, *options)
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("vsyncd: ")]
    assert "Traceback" not in result.stderr
    return line


def runs(file: Path) -> None:
    """A daemon starts with this file and serves clients."""
    with vsyncd(file) as (process, log):
        serving(file, log)
        process.terminate()
        assert process.wait(20) == 0


def serving(file: Path, log: Path) -> None:
    """Wait until the daemon serves its socket."""
    until(lambda: " ready " in log.read_text(), "a daemon that is ready")
    with client.connect(f"{file}.sock") as session:
        assert session.node == "a"


def test_a_port_in_use(file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        other = configuration(file.with_name("b"), [(1, "a", f"127.0.0.1:{port}")], "a")
        line = refused(other)
        assert f"127.0.0.1:{port} is already in use; stop who listens there" in line
    runs(other)  # and nothing was left behind


def test_a_state_directory_in_use(file: Path) -> None:
    with vsyncd(file) as (process, log):
        serving(file, log)
        (port,) = free_ports(1)
        twin = configuration(file.with_name("b"), [(1, "a", f"127.0.0.1:{port}")], "a")
        line = refused(twin, "--state-dir", f"{file}.state")
        assert f"{file}.state is in use by process {process.pid}; stop it or set another state_dir" in line
        serving(file, log)


def test_a_state_directory_that_cannot_be_used(file: Path) -> None:
    file.with_suffix(".state").write_text("a file")
    line = refused(file)
    assert f"state directory {file}.state cannot be used" in line
    assert "make it writable or set another state_dir" in line


@pytest.mark.parametrize("name", ["record", "incarnation"])
def test_a_torn_record(file: Path, name: str) -> None:
    runs(file)
    record = Path(f"{file}.state", name)
    whole = record.read_bytes()
    for torn in (whole[:10], b"", whole[:-1]):
        record.write_bytes(torn)
        assert f"state directory {file}.state {name} is damaged" in (line := refused(file))
        assert "restore it, or remove the whole directory" in line
        assert record.read_bytes() == torn  # it was not touched
    record.write_bytes(whole)
    runs(file)


@pytest.mark.parametrize("owner", [("other", 1), ("local", 2)], ids=["cluster", "node"])
def test_another_owners_record(file: Path, owner: tuple[str, int]) -> None:
    StateDirectory(f"{file}.state", *owner).close()
    line = refused(file)
    assert f"belongs to node {owner[1]} of cluster {owner[0]!r}, not to node 1 of cluster 'local'" in line
    assert "set another state_dir" in line


def test_a_socket_path_that_is_too_long(file: Path) -> None:
    path = "/tmp/" + "x" * 108
    for options in ([], ["--check-config"]):
        assert f"--socket: {path} is longer than the 107 bytes" in refused(file, "--socket", path, *options)


def test_a_socket_in_use(file: Path) -> None:
    with vsyncd(file) as (_, log):
        serving(file, log)
        (port,) = free_ports(1)
        other = configuration(file.with_name("b"), [(1, "a", f"127.0.0.1:{port}")], "a")
        line = refused(other, "--socket", f"{file}.sock")
        assert f"the socket {file}.sock is in use by another daemon; stop it or set another one" in line
        serving(file, log)


def test_a_stale_socket_is_taken_over(file: Path) -> None:
    with vsyncd(file) as (process, log):
        serving(file, log)
        process.kill()
        process.wait()
    assert os.path.exists(f"{file}.sock")
    runs(file)


def test_a_file_in_the_sockets_place_is_left_alone(file: Path) -> None:
    precious = Path(f"{file}.sock")
    precious.write_text("precious")
    assert f"{precious} exists and is not a socket; remove it or set another socket" in refused(file)
    assert precious.read_text() == "precious"
    precious.unlink()
    runs(file)


def test_a_socket_that_cannot_be_made(file: Path) -> None:
    assert f"the socket {file}/x.sock cannot be made" in refused(file, "--socket", f"{file}/x.sock")


def test_one_wish_may_come_as_two_signals(file: Path) -> None:
    with vsyncd(file) as (process, log):
        serving(file, log)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "stopped_at_once" not in log.read_text()
