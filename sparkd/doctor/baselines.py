"""Baselines: the boundary of this node as it was when a launch had proven itself and held. The newest five are kept.

One file each, `epoch-18-2026-11-21T10:53:04Z.json`, for root alone: it holds the environment and the units of the node.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from sparkd.host.files import opened, write_atomically
from sparkd.host.paths import Paths
from sparkd.model.diagnosis import BaselineName, Boundary
from sparkd.model.errors import SparkdError, UnreachableError, UsageError

log = logging.getLogger(__name__)

KEPT = 5
FILE_MAX_BYTES = 4 << 20  # a boundary is some 20 KB: a larger file is none of ours
_NAME = re.compile(r"epoch-(\d{1,18})-(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")

Complain = Callable[[str], None]


def directory(paths: Paths) -> Path:
    return paths.state / "baselines"


def parse_name(text: str) -> BaselineName | None:
    """ "epoch-18-2026-11-21T10:53:04Z", with or without ".json"; None for what is no baseline's name."""
    match = _NAME.fullmatch(text.removesuffix(".json"))
    return BaselineName(epoch=int(match[1]), at=match[2]) if match else None


def write(paths: Paths, boundary: Boundary, epoch: int) -> BaselineName:
    """Either the whole file or none, then the oldest go. Raises OSError (a full disk, say) with nothing changed."""
    name = BaselineName(epoch=epoch, at=boundary.at)
    folder = directory(paths)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / f"{name.name}.json"
    write_atomically(file, boundary.model_dump_json(indent=1))
    # A clock that was wrong may have dated this one before all others: what was just proven is never the one to go.
    others = [each for each in all(paths) if each != name]
    for old in others[KEPT - 1 :]:
        with contextlib.suppress(OSError):  # what was written counts, not what could not be removed
            (folder / f"{old.name}.json").unlink(missing_ok=True)
    return name


def all(paths: Paths, complain: Complain = log.warning) -> list[BaselineName]:
    """Newest first, by their names alone. Raises UnreachableError where they may not be read."""
    try:
        files = sorted(os.listdir(directory(paths)))  # noqa: PTH208
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(directory(paths), error) from None
    found = []
    for file in files:
        name = parse_name(file) if file.endswith(".json") else None
        if name is not None:
            found.append(name)
        elif not file.startswith("."):  # one that was being written when the power went
            complain(f"{directory(paths) / file} is not a baseline: left alone")
    return sorted(found, key=lambda name: (name.at, name.epoch), reverse=True)


def load(paths: Paths, name: BaselineName | str) -> Boundary:
    """Raises SparkdError where there is none of that name, or it cannot be used."""
    text = name if isinstance(name, str) else name.name
    known = parse_name(text)
    if known is None:
        raise UsageError(f"{text!r} is not the name of a baseline", hint="sparkd drift --list")
    file = directory(paths) / f"{known.name}.json"
    try:
        with opened(file) as stream:
            content = stream.read(FILE_MAX_BYTES + 1)
        if len(content) > FILE_MAX_BYTES:
            raise SparkdError(f"is no baseline: larger than {FILE_MAX_BYTES} bytes", where=str(file))
        return Boundary.model_validate_json(content)
    except FileNotFoundError:
        raise SparkdError(f"there is no baseline {known.name}", hint="sparkd drift --list") from None
    except PermissionError as error:
        raise _unreadable(file, error) from None
    except OSError as error:
        raise SparkdError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except ValidationError as error:
        first = str(error).splitlines()[0]
        raise SparkdError(f"cannot be used as a baseline: {first}", where=str(file)) from None


def newest(paths: Paths, complain: Complain = log.warning) -> tuple[BaselineName, Boundary] | None:
    """The newest that can be used; None where there is none. Raises UnreachableError where they may not be read."""
    for name in all(paths, complain):
        try:
            return name, load(paths, name)
        except UnreachableError:
            raise
        except SparkdError as error:
            complain(f"{error.where or name.name}: {error.message}; an older one is taken")
    return None


def _unreadable(path: Path, error: OSError) -> UnreachableError:
    hint = "sudo sparkd drift" if isinstance(error, PermissionError) else f"ls -l {path}"
    return UnreachableError(f"the baselines cannot be read: {error.strerror}", where=str(path), hint=hint)
