"""The support bundle: what somebody else needs to understand an incident, in one archive without a secret in it."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sparkd.doctor.checks import unit
from sparkd.doctor.facts import Facts, container, unit_state
from sparkd.doctor.signatures import Text
from sparkd.host.files import tail, whole
from sparkd.model.diagnosis import Diagnosis, Examination
from sparkd.model.errors import SparkdError
from sparkd.model.redact import HIDDEN, redact

FILE_MAX_BYTES = 2 << 20  # of each, its end
READ_MAX_FACTOR = 2  # so much is cleaned before it is cut: what begins before the cut (a private key) is seen whole
BUNDLE_MAX_BYTES = 64 << 20  # of all together, before compression
EVENTS_MAX_LINES = 2000
SECRET_MIN_CHARS = 6  # shorter ones would take ordinary words with them
HOST_FILES = (
    "/proc/meminfo",
    "/proc/pressure/memory",
    "/proc/vmstat",
    "/proc/buddyinfo",
    "/proc/cmdline",
    "/proc/version",
    "/proc/driver/nvidia/version",
    "/proc/net/bonding/bond0",
    "/proc/mounts",
    "/etc/os-release",
    "/etc/dgx-release",
)


@dataclass(frozen=True)
class Packed:
    """What was written: names and bytes of the files as they are in the archive, and what could not be had."""

    path: Path
    files: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]


def contents(
    facts: Facts, examination: Examination, screen: Iterable[str], texts: Iterable[Text]
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Name and maker of each file. A maker that fails costs its own file only."""
    yield "doctor.txt", lambda: "\n".join(screen) + "\n"
    yield "doctor.json", lambda: examination.model_dump_json(indent=2)
    for diagnosis in examination.nodes:
        yield f"drift-{diagnosis.node}.json", partial(_drift, diagnosis)
    if facts.status is not None:
        yield "status.json", lambda: json.dumps(facts.status, indent=2)
    yield "events.jsonl", lambda: _last_lines(facts.paths.events, EVENTS_MAX_LINES)
    for file in sorted(facts.paths.state.glob("samples*")):
        yield f"state/{file.name}", partial(tail, file, READ_MAX_FACTOR * FILE_MAX_BYTES)
    for file in sorted((facts.paths.state / "baselines").glob("*.json")):
        yield f"state/baselines/{file.name}", partial(tail, file, READ_MAX_FACTOR * FILE_MAX_BYTES)
    for number, text in enumerate(texts):
        yield f"logs/{number:02d}-{_file_name(text.where)}.txt", partial(str, text.text)
    for name in unit.unit_names(facts):
        yield f"units/{name}.txt", partial(_unit_files, facts, name)
    if facts.settings is not None:
        yield "plan/script.sh", lambda: facts.plan.script
        yield "plan/plan.json", lambda: facts.plan.model_dump_json(indent=2)
    yield "container.json", lambda: json.dumps(_container(facts), indent=2, default=str)
    yield "host.txt", _host


def keys(facts: Facts) -> list[str]:
    """This node's own secrets, to be taken out by their very text: the endpoint's key and the cluster's."""
    files = [facts.paths.key]
    if facts.cluster_plan is not None and facts.rank is not None and facts.plan.api_key_file:
        files.append(Path(facts.plan.api_key_file))
    found = []
    for file in files:
        try:
            found += whole(file).decode("utf-8", "replace").split()
        except OSError:
            continue  # whoever cannot read it has not packed it either
    return found


def pack(
    path: Path,
    files: Iterable[tuple[str, Callable[[], str]]],
    *,
    secrets: Iterable[str] = (),
    file_max_bytes: int = FILE_MAX_BYTES,
    max_bytes: int = BUNDLE_MAX_BYTES,
) -> Packed:
    """Writes the archive (mode 0600), each file redacted and cut to its end; what does not fit into the whole is missing.
    Never over an existing file. Raises SparkdError."""
    exact = [secret for secret in secrets if len(secret) >= SECRET_MIN_CHARS]
    written: list[tuple[str, int]] = []
    missing: list[str] = []
    try:
        raw = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise SparkdError(f"cannot write {path}: {error.strerror}", hint="name another file with -o") from None
    left_bytes = max_bytes
    try:
        with os.fdopen(raw, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            folder = path.name.partition(".")[0]
            for name, make in files:
                try:
                    data = _clean(make()[-READ_MAX_FACTOR * file_max_bytes :], exact).encode("utf-8", "replace")
                    data = data[-file_max_bytes:]
                except (SparkdError, OSError, ValueError, LookupError, TypeError) as error:  # one odd file costs itself
                    missing.append(f"{name}: {error}")
                    continue
                if len(data) > left_bytes:
                    missing.append(f"{name}: the bundle is full")
                    continue
                left_bytes -= len(data)
                _add(archive, f"{folder}/{name}", data)
                written.append((name, len(data)))
            if missing:
                _add(
                    archive,
                    f"{folder}/missing.txt",
                    _clean("\n".join(missing) + "\n", exact).encode("utf-8", "replace"),
                )
    except OSError as error:
        path.unlink(missing_ok=True)  # half a bundle tells half a story
        raise SparkdError(f"cannot write {path}: {error.strerror}", hint="name another place with -o") from None
    except BaseException:  # interrupted
        path.unlink(missing_ok=True)
        raise
    return Packed(path, tuple(written), tuple(missing))


def _clean(text: str, exact: Iterable[str]) -> str:
    """The node's own keys by their very text, wherever they stand; everything else that looks like a secret by its shape."""
    for secret in exact:
        text = text.replace(secret, HIDDEN)
    return redact(text)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode, about.mtime = len(data), 0o600, int(time.time())
    archive.addfile(about, io.BytesIO(data))


def _drift(diagnosis: Diagnosis) -> str:
    name = diagnosis.baseline.name if diagnosis.baseline else None
    return json.dumps({"baseline": name, "changes": [change.model_dump() for change in diagnosis.changes]}, indent=2)


def _last_lines(path: Path, lines_max: int) -> str:
    return "".join(tail(path, READ_MAX_FACTOR * FILE_MAX_BYTES).splitlines(keepends=True)[-lines_max:])


def _unit_files(facts: Facts, name: str) -> str:
    """As `systemctl cat` shows it: every file that makes the unit, and how it stands."""
    state = unit_state(facts, name)
    parts = [f"# {name}: {state.load_state}, {state.says}\n"]
    for file in (state.fragment_path, *state.drop_ins):
        if file:
            parts.append(f"# {file}\n{tail(Path(file), FILE_MAX_BYTES)}")
    return "\n".join(parts)


def _container(facts: Facts) -> object:
    state = container(facts)
    if state is None:
        return None
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def _host() -> str:
    parts = []
    for name in HOST_FILES:
        try:
            with Path(name).open(encoding="utf-8", errors="replace") as file:
                parts.append(f"# {name}\n{file.read(FILE_MAX_BYTES // 16)}\n")
        except OSError as error:
            parts.append(f"# {name}: {error.strerror}\n")
    return "\n".join(parts)


def _file_name(where: str) -> str:
    """A name for the archive out of a place: nothing in it leads anywhere."""
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in where.rpartition("/")[2])
    return kept.strip(".-")[:80] or "text"
