"""`sparkd logs`: what the engine itself wrote, one file for each launch. Needs no daemon."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from sparkd.cli import output
from sparkd.model.errors import SparkdError, UnreachableError, UsageError
from sparkd.model.outside import visible

if TYPE_CHECKING:
    from sparkd.host.paths import Paths

POLL_S = 0.25
BLOCK_BYTES = 64 * 1024
_KEPT = re.compile(r"(\x1b\[[0-9;]{0,20}m|\r)")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines, and with the next launch when there is one.")
@click.option("-n", "count", type=click.IntRange(min=0), default=100, show_default=True, help="How many past lines.")
@click.option("--launch", metavar="ID", help="This launch, not the newest.")
@click.option("--raw", is_flag=True, help="As it was written: with secrets, and what a terminal would obey.")
@output.json_option
def logs(follow: bool, count: int, launch: str | None, raw: bool, as_json: bool) -> None:
    """Show the engine's output on this node: of the current launch, or of the last one that was."""
    from sparkd.host.paths import Paths
    from sparkd.model.redact import redact

    paths = Paths.from_environment()
    directory = paths.engine_logs
    path = directory / f"{_checked(launch)}.log" if launch else _newest(paths)
    if path is None and not follow:
        raise SparkdError("no engine was launched here yet", where=str(directory), hint="see `sparkd status`")
    for name, text in _texts(paths, path, count, follow=follow, pinned=launch is not None):
        text = text if raw else _harmless(redact(text))
        if as_json:
            for line in text.splitlines():
                output.say_json({"launch": name, "line": line}, lines=True)
        else:
            sys.stdout.write(text)
            sys.stdout.flush()


def _harmless(text: str) -> str:
    """Clients can make an engine log what they like. Colours and progress bars stay, other orders to a terminal do not."""
    parts = _KEPT.split(text)
    return "".join(part if number % 2 else visible(part) for number, part in enumerate(parts))


def _checked(launch: str) -> str:
    """A launch id is a name and never leads out of the directory."""
    if not launch or any(not (letter.isascii() and letter.isalnum()) and letter != "-" for letter in launch):
        raise UsageError(
            f"{launch!r} is not a launch id", where="--launch", hint="`sparkd logs` names the files it knows"
        )
    return launch


def _newest(paths: Paths) -> Path | None:
    """The file of the newest launch: of this boot's last one where that is known, for a clock may have been set back; by
    their times otherwise. UnreachableError where it may not be looked at."""
    from sparkd.host.launch_file import last_launch

    directory = paths.engine_logs
    last = last_launch(paths.launch_file)
    if last is not None and (directory / f"{last}.log").is_file():
        return directory / f"{last}.log"
    try:
        files = [
            (entry.stat().st_mtime, Path(entry.path)) for entry in os.scandir(directory) if entry.name.endswith(".log")
        ]
    except FileNotFoundError:
        return None
    except PermissionError:
        raise UnreachableError("may not be read", where=str(directory), hint="try `sudo sparkd logs`") from None
    return max(files)[1] if files else None


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.log"))) or "none"
        raise SparkdError("there is no log of this launch", where=str(path), hint=f"kept are: {known}") from None
    except OSError as error:
        raise UnreachableError(
            f"cannot be read: {error.strerror}", where=str(path), hint="try `sudo sparkd logs`"
        ) from None


def _texts(paths: Paths, path: Path | None, count: int, *, follow: bool, pinned: bool) -> Iterator[tuple[str, str]]:
    """(launch id, text) pairs. While following, a newer launch takes over unless one was asked for by name."""
    while path is None:
        time.sleep(POLL_S)
        path, count = _newest(paths), 0
    file = _open(path)
    try:
        _seek_last_lines(file, count)
        while True:
            if text := _read(file, whole_lines=follow):
                yield path.stem, text
                continue
            if not follow:
                return
            newest = path if pinned else _newest(paths)
            if newest is not None and newest != path:
                if rest := _read(file, whole_lines=False):
                    yield path.stem, rest
                file.close()
                path, file = newest, _open(newest)
                output.note(f"launch {path.stem} begins")
                continue
            time.sleep(POLL_S)
    finally:
        file.close()


def _read(file: BinaryIO, *, whole_lines: bool) -> str:
    """What is new; with `whole_lines` a line that is still being written waits for its end."""
    if whole_lines and file.tell() > os.fstat(file.fileno()).st_size:
        file.seek(0, os.SEEK_END)  # shortened since: what stands in it now was shown before (agent/engine_log.py)
    data = file.read(BLOCK_BYTES)
    is_full = len(data) == BLOCK_BYTES
    keep = data.rfind(b"\n") + 1
    if (whole_lines and not is_full) or (is_full and keep):  # a line is shown in one piece: a secret in it is one too
        file.seek(keep - len(data), os.SEEK_CUR)
        data = data[:keep]
    return data.decode("utf-8", "replace")


def _seek_last_lines(file: BinaryIO, count: int) -> None:
    """Stand where the last `count` lines begin, without reading the megabytes before them."""
    position = file.seek(0, os.SEEK_END)
    lines, found = -1, position  # the newline at the very end closes a line, it begins none
    while position > 0 and lines < count:
        step = min(BLOCK_BYTES, position)
        position = file.seek(position - step)
        block = file.read(step)
        at = len(block)
        if lines == -1:
            lines = 0
            at -= block.endswith(b"\n")
        while lines < count and (at := block.rfind(b"\n", 0, at)) >= 0:
            lines += 1
            found = position + at + 1
    file.seek(found if lines >= count else 0)
