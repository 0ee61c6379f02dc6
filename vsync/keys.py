"""The cluster key: one secret of 32 bytes in a file, the same on every node.

::

    # vsync cluster key. Keep it secret; every node of the cluster needs this same file, mode 0600.
    vsync-key-1 4k7P…=

Everything else is derived from it, each purpose with its own label, so that no two uses share a key. Who has the
file is a member; there are no individual identities (see ``docs/security.md``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import NoReturn

from vsync.errors import ConfigError

__all__ = ["ClusterKey", "create_key_file", "load_key"]

KEY_BYTES = 32
_TAG = "vsync-key-1"
_COMMENT = "# vsync cluster key. Keep it secret; every node of the cluster needs this same file, mode 0600.\n"
_MAX_FILE = 4096


class ClusterKey:
    """A secret that does not show itself: neither in logs nor in a traceback."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        """Raises ``ConfigError`` unless ``secret`` has 32 bytes."""
        if len(secret) != KEY_BYTES:
            raise ConfigError(f"a cluster key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = bytes(secret)

    @classmethod
    def generate(cls) -> ClusterKey:
        """A new one, from the system's randomness."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits by which people compare two keys; they say nothing about the secret."""
        return self.derive("fingerprint")[:4].hex()

    def derive(self, purpose: str, context: bytes = b"") -> bytes:
        """32 bytes for one purpose (keyed BLAKE2b). ``purpose``: at most 16 ASCII characters."""
        return hashlib.blake2b(context, key=self._secret, person=purpose.encode("ascii"), digest_size=32).digest()

    def text(self) -> str:
        """The contents of a key file. This shows the secret."""
        return f"{_COMMENT}{_TAG} {base64.b64encode(self._secret).decode('ascii')}\n"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterKey) and secrets.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"<ClusterKey {self.fingerprint}>"


def create_key_file(path: str | os.PathLike[str]) -> ClusterKey:
    """Make a new key and write it to ``path``, mode 0600. Raises ``ConfigError`` if the file exists already."""
    key = ClusterKey.generate()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{os.fspath(path)}: exists already and is not overwritten: nodes that run with it would lose the "
            "others; move it away first"
        ) from None
    except OSError as e:
        raise ConfigError(f"{os.fspath(path)}: cannot be written: {e.strerror}") from e
    with os.fdopen(fd, "w", encoding="ascii") as file:
        os.fchmod(fd, 0o600)  # whatever the umask took away
        file.write(key.text())
        file.flush()
        os.fsync(fd)
    return key


def load_key(path: str | os.PathLike[str]) -> ClusterKey:
    """Read a key file. Raises ``ConfigError`` – with what to do – if it is missing, not one of ours, readable by
    other users, or another user's (who could have put any key there).
    """
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        _fail(path, "is missing; copy the cluster's key file there, or make one with: vsync keygen -o FILE")
    except OSError as e:
        _fail(path, f"cannot be read: {e.strerror}; it must belong to the user who runs the node")
    try:
        state = os.fstat(fd)
        if not stat.S_ISREG(state.st_mode):
            _fail(path, "is not a file")
        if state.st_uid not in (0, os.geteuid()):
            _fail(path, f"belongs to user {state.st_uid}, not to the one who runs the node; chown it")
        if state.st_mode & 0o077:
            mode = stat.S_IMODE(state.st_mode)
            _fail(path, f"may be accessed by other users (mode {mode:04o}); do: chmod 600 {path}")
        raw = os.read(fd, _MAX_FILE + 1)
    finally:
        os.close(fd)
    return _parse(path, raw)


def _parse(path: Path, raw: bytes) -> ClusterKey:
    lines = [line for line in raw.splitlines() if line.strip() and not line.startswith(b"#")]
    words = lines[0].split() if len(lines) == 1 else []
    if len(raw) > _MAX_FILE or len(words) != 2 or words[0] != _TAG.encode():
        _fail(path, f"is no key file (one line '{_TAG} …'); make one with: vsync keygen -o FILE")
    try:
        secret = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        _fail(path, f"is damaged: its key has not the {KEY_BYTES} bytes it should have; copy it again")
    return ClusterKey(secret)


def _fail(path: Path, text: str) -> NoReturn:
    raise ConfigError(f"key file {path} {text}")
