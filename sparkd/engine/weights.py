"""The weights on the host's disk: all there, and the same on every node.

Only names and sizes are looked at: 149 GB are not hashed.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkd.model.finding import Cure, Finding, bad, good, unknown, warning
from sparkd.model.plan import Plan

INDEX_NAME = "model.safetensors.index.json"
# What the engine reads. Notes, licences and download caches may differ between nodes without harm.
_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".jinja", ".py", ".tiktoken")
_UNFINISHED_SUFFIXES = (".incomplete", ".part", ".aria2", ".tmp")
_HEADER_MAX_BYTES = 100 << 20  # the safetensors format's own limit


@dataclass(frozen=True)
class Manifest:
    """What lies in a weights directory. `digest` is equal on two nodes exactly when names and sizes are."""

    files: int
    bytes: int
    digest: str  # sha256 hex
    missing: tuple[str, ...]  # named by the index, not there
    partial: tuple[str, ...]  # there, and shorter than they must be, or still being downloaded


def manifest(directory: Path) -> Manifest:
    """Reads the index and asks for sizes. Raises OSError where the directory cannot be listed."""
    sizes = {
        path.name: path.stat().st_size
        for path in sorted(directory.iterdir())
        if path.name.endswith(_SUFFIXES) and path.is_file()
    }
    shards, total_bytes = _index(directory / INDEX_NAME)
    if not shards and not any(name.endswith((".safetensors", ".bin")) for name in sizes):
        shards = frozenset({"*.safetensors"})
    lines = "".join(f"{name} {size}\n" for name, size in sorted(sizes.items()))
    return Manifest(
        files=len(sizes),
        bytes=sum(sizes.values()),
        digest=hashlib.sha256(lines.encode()).hexdigest(),
        missing=tuple(sorted(shards - sizes.keys())),
        partial=_partial(directory, {name: sizes[name] for name in shards & sizes.keys()}, total_bytes),
    )


def host_path(volumes: Iterable[str], container_path: str) -> Path | None:
    """Where on the host a path inside the container lies: the deepest bind mount above it; None where there is none."""
    best: tuple[str, str] | None = None
    wanted = posixpath.normpath(container_path)
    for volume in volumes:
        source, _, rest = volume.partition(":")
        target = posixpath.normpath(rest.partition(":")[0])
        is_above = wanted == target or wanted.startswith(target.rstrip("/") + "/")
        if source.startswith("/") and is_above and (best is None or len(target) > len(best[1])):
            best = (source, target)
    return None if best is None else Path(best[0]) / posixpath.relpath(wanted, best[1])


def plan_manifest(plan: Plan) -> Manifest | None:
    """The manifest of the plan's weights; None where they are not in a directory of this host."""
    directory = host_path(plan.container.volumes, plan.model)
    try:
        return manifest(directory) if directory is not None and directory.is_dir() else None
    except OSError:
        return None


def check_weights(plan: Plan, found: Manifest | None = None) -> list[Finding]:
    """Whether the weights can be loaded from this host. `found` saves a second look where the caller has one."""
    directory = host_path(plan.container.volumes, plan.model)
    if not plan.model.startswith("/"):
        return [
            warning("weights.repository", f"the model {plan.model} is a repository name: the engine may download it")
        ]
    if directory is None:
        return [
            unknown("weights.unmounted", f"no volume of the recipe holds {plan.model}: it cannot be seen from the host")
        ]
    if not directory.is_dir():
        return [_path_missing(plan, directory)]
    try:
        found = found or manifest(directory)
    except OSError as error:
        return [unknown("weights.unreadable", f"{directory} cannot be read: {error.strerror}")]
    findings = []
    if found.missing:
        findings.append(
            bad(
                "weights.shards-missing",
                f"{directory} lacks {len(found.missing)} of the files that it should hold: {_some(found.missing)}",
                cure=Cure.PERSON,
                remedy=f"download the weights again into {directory}, or copy them from the peer",
                evidence=found.missing[:10],
            )
        )
    if found.partial:
        findings.append(
            warning(
                "weights.partial",
                f"{len(found.partial)} files in {directory} look unfinished",
                remedy=f"wait for the download, or fetch them again into {directory}",
                evidence=found.partial[:10],
            )
        )
    says = f"{found.files} files, {found.bytes / 1e9:.1f} GB in {directory}"
    return findings or [good("weights.present", says, evidence=(f"manifest {found.digest[:12]}",))]


def _path_missing(plan: Plan, directory: Path) -> Finding:
    return bad(
        "weights.path-missing",
        f"there is no directory {directory}, where the plan expects the weights ({plan.model} in the container)",
        cure=Cure.PERSON,
        remedy=f"put the weights there, or correct `model` or `volumes` of the recipe; ls -ld {directory.parent}",
    )


def _index(path: Path) -> tuple[frozenset[str], int]:
    """The shards that the index names, and the bytes of tensors in them together (0 where it does not say)."""
    try:
        raw = json.loads(path.read_bytes())
        shards = frozenset(str(name) for name in raw["weight_map"].values())
        return shards, int((raw.get("metadata") or {}).get("total_size") or 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset(), 0


def _partial(directory: Path, shards: dict[str, int], total_bytes: int) -> tuple[str, ...]:
    """Files cut short. Only when the sum is too small are headers read, to say which ones."""
    names = {path.name for path in directory.iterdir() if path.name.endswith(_UNFINISHED_SUFFIXES)}
    names |= {name for name, size in shards.items() if size == 0}
    if sum(shards.values()) < total_bytes:
        names |= {name for name, size in shards.items() if size < _full_size(directory / name)}
    return tuple(sorted(names))


def _full_size(path: Path) -> int:
    """The size that a safetensors file's own header asks for; 0 where it cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _HEADER_MAX_BYTES)))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return 0


def _some(names: Sequence[str], shown: int = 2) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
