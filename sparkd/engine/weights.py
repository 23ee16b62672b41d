"""The weights on the host's disk: all there, whole, and the same on every node.

Only names, sizes and the shards' headers are looked at: 149 GB are not hashed.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparkd.host.files import opened, whole
from sparkd.model.outside import parsed
from sparkd.model.plan import Plan

INDEX_NAME = "model.safetensors.index.json"
# What the engine reads. Notes, licences and download caches may differ between nodes without harm.
_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".jinja", ".py", ".tiktoken", ".gguf")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf")
_UNFINISHED_SUFFIXES = (".incomplete", ".part", ".aria2", ".tmp")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "tokenizer_config.json")
_HEADER_MAX_BYTES = 100 << 20  # the safetensors format's own limit
_INDEX_MAX_BYTES = 64 << 20  # thousands of experts give some 10 MB
_OFFSETS = re.compile(rb'"data_offsets"\s*:\s*\[\s*\d{1,18}\s*,\s*(\d{1,18})\s*\]')


@dataclass(frozen=True)
class Manifest:
    """What lies in a weights directory. `digest` is equal on two nodes exactly when names and sizes are."""

    files: int
    bytes: int
    digest: str  # sha256 hex
    missing: tuple[str, ...]  # named by the index, not there
    shards: Mapping[str, int]  # name -> bytes, of the weight files that are there
    unfinished: tuple[str, ...]  # what a download left behind
    wanted_bytes: int  # of all tensors together as the index says; 0 where it does not
    has_config: bool
    has_tokenizer: bool


def manifest(directory: Path) -> Manifest:
    """Reads the index and asks for sizes. Raises OSError where the directory cannot be listed."""
    entries = sorted(directory.iterdir())
    sizes = {path.name: path.stat().st_size for path in entries if path.name.endswith(_SUFFIXES) and path.is_file()}
    shards, total_bytes = _index(directory / INDEX_NAME)
    there = {name: size for name, size in sizes.items() if name.endswith(_WEIGHT_SUFFIXES)}
    if not shards and not there:
        shards = frozenset({"*.safetensors"})
    lines = "".join(f"{name} {size}\n" for name, size in sorted(sizes.items()))
    return Manifest(
        files=len(sizes),
        bytes=sum(sizes.values()),
        digest=hashlib.sha256(lines.encode()).hexdigest(),
        missing=tuple(sorted(shards - sizes.keys())),
        shards=there,
        unfinished=_unfinished(directory, [path.name for path in entries]),
        wanted_bytes=total_bytes,
        has_config=bool({"config.json", "params.json"} & sizes.keys()) or any(name.endswith(".gguf") for name in sizes),
        has_tokenizer=any(name in _TOKENIZERS or name.endswith((".tiktoken", ".gguf")) for name in sizes),
    )


def host_path(volumes: Iterable[str], container_path: str) -> Path | None:
    """Where on the host a path inside the container lies: the deepest bind mount above it; None where there is none."""
    found = _mount_of(volumes, container_path)
    return None if found is None else Path(found[0]) / posixpath.relpath(posixpath.normpath(container_path), found[1])


def _mount_of(volumes: Iterable[str], container_path: str) -> tuple[str, str] | None:
    best: tuple[str, str] | None = None
    wanted = posixpath.normpath(container_path)
    for volume in volumes:
        source, _, rest = volume.partition(":")
        target = posixpath.normpath(rest.partition(":")[0])
        is_above = wanted == target or wanted.startswith(target.rstrip("/") + "/")
        if source.startswith("/") and is_above and (best is None or len(target) > len(best[1])):
            best = (source, target)
    return best


def plan_manifest(plan: Plan) -> Manifest | None:
    """The manifest of the plan's weights; None where they are not in a directory of this host."""
    directory = host_path(plan.container.volumes, plan.model)
    try:
        return manifest(directory) if directory is not None and directory.is_dir() else None
    except OSError:
        return None


@dataclass(frozen=True)
class Short:
    """A shard that is not as long as its own header says. `wanted_bytes` 0: the header itself is cut or broken."""

    name: str
    bytes: int
    wanted_bytes: int


def truncated(directory: Path, shards: Mapping[str, int]) -> tuple[Short, ...]:
    """Reads the header of each shard: some hundred KB of 3 GB. The sum of sizes would not show a small loss."""
    found = []
    for name, size in sorted(shards.items()):
        if not name.endswith(".safetensors"):
            if size == 0:
                found.append(Short(name, 0, 0))
            continue
        wanted = _full_size(directory / name)
        if wanted is not None and size < max(wanted, 8):
            found.append(Short(name, size, wanted))
        elif wanted == 0:
            found.append(Short(name, size, 0))
    return tuple(found)


def leading_out(plan: Plan, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(name, where to) of symbolic links behind which the container sees nothing, though the host does.

    The classic is a snapshot of the Hugging Face cache, mounted without the blobs that it links to.
    """
    volumes = plan.container.volumes
    mount, directory = _mount_of(volumes, plan.model), host_path(volumes, plan.model)
    if mount is None or directory is None:
        return ()
    real = Path(os.path.realpath(mount[0]))
    links = [(name, directory / name) for name in sorted(names) if (directory / name).is_symlink()]
    return tuple((name, os.path.realpath(link)) for name, link in links if not _visible(link, real, volumes))


def _visible(link: Path, mount: Path, volumes: Iterable[str]) -> bool:
    """A relative link stays within the mount; an absolute one means another path inside the container than here."""
    target = link.readlink()
    if not target.is_absolute():
        return Path(os.path.realpath(link)).is_relative_to(mount)
    inside = host_path(volumes, str(target))
    return inside is not None and os.path.realpath(inside) == os.path.realpath(link)


def _index(path: Path) -> tuple[frozenset[str], int]:
    """The shards that the index names, and the bytes of tensors in them together (0 where it does not say)."""
    try:
        raw = parsed(whole(path, _INDEX_MAX_BYTES))
        shards = frozenset(str(name) for name in raw["weight_map"].values())
        return shards, int((raw.get("metadata") or {}).get("total_size") or 0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return frozenset(), 0


def _unfinished(directory: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Here, and where `hf download` keeps them: .cache/huggingface/download below a local directory."""
    found = {name for name in names if name.endswith(_UNFINISHED_SUFFIXES)}
    try:
        cache = directory / ".cache/huggingface/download"
        found |= {f".cache/.../{path.name}" for path in cache.iterdir() if path.name.endswith(_UNFINISHED_SUFFIXES)}
    except OSError:
        pass
    return tuple(sorted(found))


def _full_size(path: Path) -> int | None:
    """The size that a safetensors file's own header asks for; 0 where the header is cut, None where it cannot be read.

    Of a header with thousands of tensors only the ends are wanted, and searching is ten times faster than parsing.
    """
    try:
        with opened(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _HEADER_MAX_BYTES:
                return 0
            header = file.read(length)
    except OSError:
        return None
    if len(header) < length or not header.startswith(b"{"):
        return 0
    ends = [int(end) for end in _OFFSETS.findall(header)]
    return 8 + length + max(ends, default=0)


def some(names: Sequence[str], shown: int = 2) -> str:
    """The first of them for a sentence."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
