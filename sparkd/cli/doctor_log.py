"""`sparkd doctor --log FILE`: which incidents a log tells of. Needs no node: any log, from anywhere."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sparkd.cli import output
from sparkd.model.errors import EXIT_FAILED, EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS

if TYPE_CHECKING:
    from sparkd.model.diagnosis import Incident

READ_MAX_BYTES = 64 * 1024 * 1024  # of a longer log its end: that is where it broke
BLOCK_BYTES = 1024 * 1024
GZIP_MAGIC = b"\x1f\x8b"
OTHERS_MAX = 5  # more than one incident in a file is told shortly
BINARY_SHARE = 0.1  # of bytes that stand in no log: a core dump, a picture, weights


@dataclass(frozen=True)
class Classified:
    """One file. `problem`: why it, or a part of it, could not be read; `readable` is False where nothing could."""

    file: str
    incidents: tuple[Incident, ...] = ()
    problem: str = ""
    readable: bool = True


def classify_files(files: Sequence[str], source: str | None, *, verbose: bool, as_json: bool) -> int:
    """Each file by itself. 2 where one tells of an incident, 1 of a warning only, 3 where one could not be read."""
    found = [classify_file(file, source, noise=verbose) for file in files]
    if as_json:
        output.say_json({"schema_version": 1, "files": [_json(each) for each in found]})
    else:
        for number, each in enumerate(found):
            if number:
                output.say()
            for line in _lines(each, verbose=verbose, named=len(found) > 1):
                output.say(line)
    return max(map(_status, found), key=(EXIT_GOOD, EXIT_WARNINGS, EXIT_UNKNOWN, EXIT_FAILED).index)


def classify_file(file: str, source: str | None, *, noise: bool = False) -> Classified:
    from sparkd.doctor.signatures import Text, classify
    from sparkd.model.diagnosis import Source

    try:
        data, problem = _read(file)
    except OSError as error:
        return Classified(file, problem=f"cannot be read: {error.strerror or error}", readable=False)
    if _is_binary(data):
        return Classified(file, problem="is not a text", readable=False)
    where = "stdin" if file == "-" else file
    text = data.decode(_encoding(data), "replace")
    incidents = classify([Text(Source(source) if source else None, text, where=where)], noise=noise)
    return Classified(file, tuple(incidents), problem)


# --- reading -----------------------------------------------------------------------------------------


def _read(file: str) -> tuple[bytes, str]:
    """The log, unpacked, its end where it is too long; and what was wrong with it. Raises OSError."""
    if file == "-":
        return _unpacked(sys.stdin.buffer)
    path = Path(file)
    with path.open("rb") as stream:
        packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC if path.is_file() else False
        if not path.is_file():
            return _unpacked(stream)
        size = stream.seek(0, 2)
        stream.seek(0 if packed else max(0, size - READ_MAX_BYTES))
        data, problem = _unpacked(stream)
    if size > READ_MAX_BYTES and not packed:
        problem = _too_long()
    return data, problem


def _too_long() -> str:
    return f"longer than {READ_MAX_BYTES >> 20} MiB: only its end was searched"


def _unpacked(stream: BinaryIO) -> tuple[bytes, str]:
    """The end of a stream, gunzipped where it is packed. A packed log that breaks off is read as far as it goes."""
    data, problem = bytearray(), ""
    block = stream.read(BLOCK_BYTES)
    unpack = zlib.decompressobj(wbits=31) if block.startswith(GZIP_MAGIC) else None
    while block:
        try:
            data += block if unpack is None else unpack.decompress(block)
        except zlib.error as error:
            problem = f"broken off or damaged: {error}"
            break
        while (
            unpack is not None and unpack.eof and unpack.unused_data.startswith(GZIP_MAGIC)
        ):  # logs appended while packed
            rest, unpack = unpack.unused_data, zlib.decompressobj(wbits=31)
            data += unpack.decompress(rest)
        if len(data) > 2 * READ_MAX_BYTES:
            del data[:-READ_MAX_BYTES]
            problem = _too_long()
        block = stream.read(BLOCK_BYTES)
    if unpack is not None and not unpack.eof and not problem:
        problem = "broken off in the middle"
    return bytes(data[-READ_MAX_BYTES:]), problem


def _encoding(data: bytes) -> str:
    """PowerShell and some web pages save UTF-16."""
    return "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _is_binary(data: bytes) -> bool:
    if _encoding(data) == "utf-16":
        return False
    sample = data[:65536]
    strange = sum(sample.count(byte) for byte in range(32) if byte not in b"\t\n\r\x1b\x08\x0c")
    return strange > BINARY_SHARE * len(sample)


# --- telling -----------------------------------------------------------------------------------------


def _status(each: Classified) -> int:
    if not each.readable:
        return EXIT_UNKNOWN
    standing = [incident for incident in each.incidents if incident.kind.value != "noise"]
    if any(incident.verdict.value == "bad" for incident in standing):
        return EXIT_FAILED
    return EXIT_WARNINGS if standing else EXIT_GOOD


def _json(each: Classified) -> dict[str, Any]:
    incidents = [incident.model_dump(mode="json") for incident in each.incidents]
    return {"file": each.file, "readable": each.readable, "problem": each.problem, "incidents": incidents}


def _lines(each: Classified, *, verbose: bool, named: bool) -> list[str]:
    """The incident in the first line, then how we know and what to do."""
    paint = output.painter(output.colours_wanted())
    name = f"{'stdin' if each.file == '-' else each.file}: " if named or not each.readable else ""
    if not each.readable:
        return [paint(f"{name}{each.problem}", "yellow")]
    notes = [f"  note:   {each.problem}"] if each.problem else []
    if not each.incidents:
        return [paint(f"{name}nothing wrong was recognised", "green"), *notes]
    first, *others = each.incidents
    lines = [paint(f"{name}{first.id}: {first.says}", "red" if first.verdict.value == "bad" else "yellow")]
    times = f", {first.count} times" if first.count > 1 else ""
    lines.append(f"          in {first.where}{', ' + first.at if first.at else ''}{times}:")
    lines += [f"  seen:   {line}" for line in first.evidence]
    if first.remedy:
        lines.append(f"  do:     {first.remedy}")
    lines.append(f"  who:    {first.who.value}; more: sparkd explain {first.id}")
    lines += notes
    shown = others if verbose else others[:OTHERS_MAX]
    for other in shown:
        kind = "" if other.kind.value == "root" else f" ({other.kind.value})"
        lines.append(f"  also:   {other.id}{kind}: {other.says} [{other.where}]")
    if len(others) > len(shown):
        lines.append(f"  also:   {len(others) - len(shown)} more (-v)")
    return lines
