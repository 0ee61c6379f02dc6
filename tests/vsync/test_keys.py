"""The key file: what is accepted, and that every refusal says what to do."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vsync.cli import run
from vsync.config import load
from vsync.errors import ConfigError
from vsync.keys import ClusterKey, create_key_file, load_key

CLUSTER = """
[cluster]
name = "x"
key = "{key}"
{more}
[[nodes]]
id = 1
name = "a"
{address}
"""

ONE = 'address = "10.1.2.3:1"'


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "vsync.key"
    create_key_file(path)
    return path


def test_a_new_key_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "k"
    old = os.umask(0)
    try:
        key = create_key_file(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    assert load_key(path).fingerprint == key.fingerprint
    assert ClusterKey.generate() != key


def test_nothing_is_overwritten(key_file: Path) -> None:
    before = key_file.read_bytes()
    with pytest.raises(ConfigError, match="exists already and is not overwritten"):
        create_key_file(key_file)
    assert key_file.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_others_must_not_read_it(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"other users \(mode {mode:04o}\); do: chmod 600"):
        load_key(key_file)


def test_it_must_be_the_users_own(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = key_file.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    if owner == 0:
        assert load_key(key_file)  # root's is fine for everybody who can read it
        if os.getuid() != 0:
            return
        os.chown(key_file, 12345, -1)
        owner = 12345
    with pytest.raises(ConfigError, match=f"belongs to user {owner}, not to the one who runs the node"):
        load_key(key_file)


@pytest.mark.parametrize(
    ("contents", "says"),
    [
        (b"", "is no key file"),
        (b"secret\n", "is no key file"),
        (hashlib.sha256(b"anything").digest(), "is no key file"),
        (b"vsync-key-2 AAAA\n", "is no key file"),
        (b"vsync-key-1 AAAA\n", "is damaged: its key has not the 32 bytes"),
        (b"vsync-key-1 !!!!\n", "is damaged"),
        (b"vsync-key-1 " + b"A" * 42 + b"==\n", "is damaged"),
        (ClusterKey(bytes(32)).text().encode() * 2, "is no key file"),
        (b"#" * 5000, "is no key file"),
    ],
)
def test_contents_that_are_no_key(tmp_path: Path, contents: bytes, says: str) -> None:
    path = tmp_path / "k"
    path.write_bytes(contents)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=says):
        load_key(path)


def test_a_missing_file_and_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is missing; copy .* or make one with: vsync keygen -o FILE"):
        load_key(tmp_path / "k")
    with pytest.raises(ConfigError, match="is not a file"):
        load_key(tmp_path)


def test_a_key_does_not_show_itself() -> None:
    key = ClusterKey(bytes(range(32)))
    assert repr(key) == f"<ClusterKey {key.fingerprint}>"
    assert bytes(range(32)).hex() not in repr(key)


def test_purposes_and_keys_are_apart() -> None:
    one, two = ClusterKey(bytes(32)), ClusterKey(bytes(31) + b"\1")
    derived = {key.derive(purpose, context) for key in (one, two) for purpose in "ab" for context in (b"", b"x")}
    assert len(derived) == 8
    with pytest.raises(ConfigError, match="32 bytes, not 31"):
        ClusterKey(bytes(31))


def test_a_configuration_with_a_key(key_file: Path) -> None:
    """Beside the configuration file by default; then any address may be used, of one link or of several."""
    path = key_file.with_name("c.toml")
    more = 'transport = "udp"\nmtu = 1500'
    path.write_text(CLUSTER.format(key="vsync.key", more=more, address='address = "10.1.2.3:7410"'))
    settings = load(path)
    assert settings.transport.key == load_key(key_file)
    assert (settings.transport.kind, settings.transport.mtu) == ("udp", 1500)
    path.write_text(CLUSTER.format(key=key_file, more="", address='addresses = ["10.1.2.3:7410", "10.2.2.3:7410"]'))
    assert load(path).cluster.peers[0].addresses == ("10.1.2.3:7410", "10.2.2.3:7410")
    assert load(path).transport.kind == "zmq"
    key_file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"c\.toml: cluster\.key: key file .* chmod 600"):
        load(path)


@pytest.mark.parametrize(
    ("address", "more", "says"),
    [
        ('address = "10.1.2.3:1"\naddresses = ["10.1.2.3:1"]', "", r"stands beside addresses"),
        ("addresses = []", "", "must be a list of addresses"),
        ("addresses = [1]", "", "must be a list of addresses"),
        ('addresses = ["10.1.2.3:1", "10.1.2.3:1"]', "", "names an address twice"),
        ('addresses = ["10.1.2.3:1", "10.1.2.3"]', "", "is not host:port"),
        ('addresses = ["10.1.2.3:1", "10.1.2.3:2"]', 'transport = "udp"', "udp takes this port and the next one"),
        ('address = "10.1.2.3:65535"', 'transport = "udp"', "udp takes this port and the next one"),
        ('address = "10.1.2.3:1"', 'transport = "tcp"', "'tcp' is not one of zmq, udp"),
        (f"addresses = {[f'10.1.2.{n}:1' for n in range(9)]}", "", "same number of addresses, 1 to 8"),
        (f"{ONE}\n[[nodes]]\nid=2\nname='b'\naddresses = ['10.1.2.4:1', '10.2.2.4:1']", "", r"1 \(a\), 2 \(b\)"),
        (f"{ONE}\n[node]\nlisten = ['0.0.0.0:1', '0.0.0.0:2']", "", "listen: 2 addresses for 1 links"),
    ],
)
def test_mistakes_in_links(key_file: Path, address: str, more: str, says: str) -> None:
    path = key_file.with_name("c.toml")
    path.write_text(CLUSTER.format(key="vsync.key", more=more, address=address))
    with pytest.raises(ConfigError, match=says):
        load(path, "a")


def test_keygen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "k"
    assert run(["keygen", "-o", str(path)]) == 0
    fingerprint = load_key(path).fingerprint
    assert capsys.readouterr().out == f"{path}: key {fingerprint}\n"
    assert run(["keygen", "--show", str(path)]) == 0
    assert capsys.readouterr().out == f"{fingerprint}\n"
    assert run(["keygen", "-o", str(path)]) == 1
    assert "not overwritten" in capsys.readouterr().err


def test_the_example_for_three_hosts_is_right(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "configs" / "three-hosts.toml"
    path = tmp_path / "vsyncd.toml"
    path.write_text(example.read_text())
    with pytest.raises(ConfigError, match=r"cluster\.key: key file .*cluster\.key is missing"):
        load(path, "a")
    create_key_file(tmp_path / "cluster.key")
    settings = load(path, "a")
    assert settings.transport.kind == "udp"
    assert [len(peer.addresses) for peer in settings.cluster.peers] == [2, 2, 2]
