"""The cluster's keys: the file, its rotation, and which of them the other nodes have shown that they hold.

A rotation has two states besides the ordinary one, and any two neighbours of the row understand each other, in any order
and for any time, because a node with two keys signs with both and takes either:

    old          old + new          new
     │  rotate, copy  │   drop       │
     ├───────────────▶├─────────────▶│
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from sparkd.host.clock import monotonic
from sparkd.host.files import opened, write_atomically
from sparkd.model.errors import ConfigError, SparkdError

KEY_MIN_DIGITS = 32  # hexadecimal: 128 bits
KEYS_MAX = 2
KEY_FILE_MAX_BYTES = 4096
FINGERPRINT_DIGITS = 12
KEY_MODE = 0o600
DIRECTORY_MODE = 0o755  # of /etc/sparkd: everyone may read the configuration, and must not write it


def new_key() -> str:
    """A fresh cluster key of 256 bits, as a line for the key file."""
    return secrets.token_hex(32)


def fingerprint(key: bytes) -> str:
    """What may be shown of a key, to compare it with another node's."""
    return hashlib.sha256(b"sparkd-fingerprint-1" + key).hexdigest()[:FINGERPRINT_DIGITS]


# --- the file ------------------------------------------------------------------------------------


def load_keys(path: Path) -> tuple[bytes, ...]:
    """The cluster's keys, one or, while one is rotated, the old and the new one. All sign, all verify.

    Empty lines and lines that begin with # are left out. Raises ConfigError where the file cannot be used; no message
    shows any of its content.
    """
    text = _read_private(path)
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        digits = line.strip()
        if not digits or digits.startswith("#"):
            continue
        where = f"{path}:{number}"
        if not re.fullmatch(r"[0-9A-Fa-f]+", digits) or len(digits) % 2:
            raise ConfigError("a cluster key is an even number of hexadecimal digits", where=where, hint=_how_to())
        if len(digits) < KEY_MIN_DIGITS:
            raise ConfigError(
                f"the cluster key is too short: it needs {KEY_MIN_DIGITS} hexadecimal digits or more",
                where=where,
                hint=_how_to(),
            )
        keys.append(bytes.fromhex(digits))
    if not 1 <= len(keys) <= KEYS_MAX:
        held = f"{len(keys)} keys" if keys else "no key"
        raise ConfigError(
            f"one key is needed, or two while one is rotated; the file has {held}", where=str(path), hint=_how_to()
        )
    return tuple(keys)


def _read_private(path: Path) -> str:
    try:
        with opened(path) as file:
            about = os.fstat(file.fileno())
            if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(
                    f"the cluster key can be read by others (mode {stat.S_IMODE(about.st_mode):04o})",
                    where=str(path),
                    hint=f"chmod 0600 {path}; if others may have read it: sparkd key rotate",
                )
            if about.st_uid not in (0, os.geteuid()):
                raise ConfigError(
                    f"the cluster key belongs to user {about.st_uid}",
                    where=str(path),
                    hint=f"chown root:root {path}; if that user may have read it: sparkd key rotate",
                )
            return file.read(KEY_FILE_MAX_BYTES).decode("ascii")
    except OSError as error:
        hint = "it is root's alone: sudo sparkd ..." if isinstance(error, PermissionError) else _how_to()
        raise ConfigError(f"the cluster key cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    except UnicodeDecodeError:
        raise ConfigError("the cluster key is not hexadecimal text", where=str(path), hint=_how_to()) from None


def _how_to() -> str:
    return "sparkd init makes one; every node of the cluster needs the same file"


def make(path: Path) -> bytes:
    """A new file with a new key. Raises SparkdError where one is there, whatever is in it, or it cannot be made."""
    key = new_key()
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            path.parent.chmod(DIRECTORY_MODE)
        write_atomically(beside, f"{key}\n", mode=KEY_MODE)
        beside.chmod(KEY_MODE)  # whatever the umask
        try:
            os.link(beside, path)  # unlike a rename, it takes no other file's place
        finally:
            beside.unlink()
    except FileExistsError:
        raise SparkdError(
            "there is a cluster key already; it was left as it is",
            where=str(path),
            hint="to replace it: sparkd key rotate; to see which it is: sparkd key status",
        ) from None
    except OSError as error:
        raise _unwritten(path, error) from error
    return bytes.fromhex(key)


def write(path: Path, keys: Sequence[bytes]) -> None:
    """Put these keys into the file, whole or not at all. Raises SparkdError."""
    lines = [key.hex() for key in keys]
    if len(keys) == KEYS_MAX:
        lines[1:1] = ["# the new one; `sparkd key drop` ends the rotation"]
    try:
        write_atomically(path, "\n".join(lines) + "\n", mode=KEY_MODE)
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> SparkdError:
    return SparkdError(
        f"the cluster key cannot be written: {error.strerror}", where=str(path), hint="run it as root: sudo sparkd ..."
    )


# --- what the daemon knows -----------------------------------------------------------------------


class Keyring:
    """The keys as the daemon has them, and which of them each peer's last authentic message was signed with."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.keys = tuple(keys)
        self._shown: dict[str, tuple[float, tuple[bytes, ...]]] = {}

    def shown(self, peer: str, keys: Iterable[bytes]) -> None:
        """An authentic message of the peer's proved these."""
        self._shown[peer] = (monotonic(), tuple(keys))

    def toward(self, peer: str) -> tuple[bytes, ...]:
        """Our keys, those first that the peer has shown: for what can be proven with one key only."""
        shown = self._shown.get(peer, (0.0, ()))[1]
        return tuple(sorted(self.keys, key=lambda key: key not in shown))

    def told(self, peers: Iterable[str]) -> dict[str, object]:
        """Fingerprints alone, for `sparkd key`."""
        now = monotonic()
        shown = {
            name: None if (seen := self._shown.get(name)) is None
            else {"keys": [fingerprint(key) for key in seen[1]], "seconds_ago": round(now - seen[0], 1)}
            for name in peers
        }  # fmt: skip
        return {"keys": [fingerprint(key) for key in self.keys], "peers": shown}
