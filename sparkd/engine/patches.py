"""Patches that must be in the image: counted, explained, and repaired only when a person asks.

The case this exists for: without the memory release after `_setup_kernel()` in vLLM's mxfp4.py a GB10 hangs
in its firmware until somebody pulls the plug; applied twice, the second `del` names variables that are gone.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping

from sparkd.engine.container import Docker
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, bad, good, unknown
from sparkd.model.recipe import PatchInvariant

_FILE_MAX_BYTES = 4 << 20
_GLOB_MAX_S = 15
_BLOCK_MAX_LINES = 12


def check_patch(
    docker: Docker, container: str, invariant: PatchInvariant, *, known: Mapping[str, str | None] | None = None
) -> Finding:
    """Reads the file in the container and judges it. Unknown where it cannot be read.

    `known` has the paths that globs are known to mean there (None: no file matches), which saves a command for each.
    """
    known = known or {}
    try:
        text = _text(docker, container, invariant.file, known)
        fix = _text(docker, container, invariant.superseded_in, known) if invariant.superseded_in else text
    except SparkdError as error:
        return unknown(f"image.{invariant.id}-unreadable", f"{invariant.file} could not be read: {error}")
    return judge(invariant, text, fix)


def judge(invariant: PatchInvariant, text: str | None, fix: str | None = None) -> Finding:
    """What the text of the file says about the patch. Pure. Lines are counted as `grep -c` does.

    `fix` is the text of the file where an upstream fix would show (`superseded_in`); the same file where None.
    """
    name = f"image.{invariant.id}"
    if invariant.superseded_by and invariant.superseded_by in (fix or text or ""):
        return good(f"{name}-superseded", f"{invariant.id}: this vLLM carries the fix itself, no patch is needed")
    if text is None:
        return unknown(
            f"{name}-file-missing",
            f"{invariant.file} is not in the image, so nobody can tell whether it needs the {invariant.id} patch",
            remedy="compare the image with the recipe: `patches` names the file; a newer vLLM may have moved it",
        )
    found = count(invariant, text)
    evidence = (f"grep -c {shlex.quote(invariant.needle)} {invariant.file}: {found}, right is {invariant.count}",)
    if found == invariant.count:
        return good(f"{name}-patched", f"{invariant.id}: patched ({found} times {invariant.needle})", evidence=evidence)
    if found > invariant.count:
        return bad(
            f"{name}-doubled",
            f"{invariant.id}: the patch was applied again ({found} times {invariant.needle}, "
            f"right is {invariant.count}); the model would fail to load with UnboundLocalError",
            cure=Cure.PERSON,
            remedy="sparkd doctor --fix",
            evidence=evidence,
        )
    partly = found > 0
    return bad(
        f"{name}-{'partial' if partly else 'unpatched'}",
        f"{invariant.id}: the patch is {'only partly in' if partly else 'not in'} the image ({found} times "
        f"{invariant.needle}, right is {invariant.count}); loading a model could hang the GPU until its plug is pulled",
        cure=Cure.PERSON,
        remedy="use an image that was built with the patch; do not launch this one",
        evidence=evidence,
    )


def count(invariant: PatchInvariant, text: str) -> int:
    return sum(invariant.needle in line for line in text.splitlines())


def deduplicate(text: str, invariant: PatchInvariant) -> str | None:
    """The text without the repeated copies of the patched block; None where that does not give a sound file.

    Pure. A copy is a run of lines, holding the needle, that stands directly below an equal run. The result
    must hold the needle the right number of times and compile, or it is no repair.
    """
    lines = text.splitlines(keepends=True)
    while (copy := _repeated_block(lines, invariant)) is not None:
        del lines[copy.start : copy.stop]
    result = "".join(lines)
    if count(invariant, result) != invariant.count or result == text:
        return None
    try:
        compile(result, invariant.file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    return result


def repair(docker: Docker, container: str, invariant: PatchInvariant) -> Finding:
    """Takes doubled blocks out of the file in the container, keeps the old file beside it, and judges the result.

    Only for an explicit `--fix`. Touches nothing unless the file is doubled and the repair is certain.
    """
    before = check_patch(docker, container, invariant)
    if before.id != f"image.{invariant.id}-doubled":
        return before
    path = resolve(docker, container, invariant.file)
    data = None if path is None else docker.read_file(container, path, _FILE_MAX_BYTES)
    if path is None or data is None:
        return before
    mended = deduplicate(data.decode("utf-8", "surrogateescape"), invariant)
    stat = docker.path_stat(container, path)
    if mended is None or stat is None:
        return before.model_copy(
            update={"remedy": f"the copies are not plain repetitions: edit {path} by hand, or recreate the container"}
        )
    backup = f"{path}.sparkd-{hashlib.sha256(data).hexdigest()[:8]}"
    mode = stat.mode if not stat.link_target else 0o644
    docker.write_file(container, backup, data, mode)
    docker.write_file(container, path, mended.encode("utf-8", "surrogateescape"), mode)
    after = check_patch(docker, container, invariant)
    return after.model_copy(update={"evidence": (*after.evidence, f"the file as it was: {backup}")})


def resolve(docker: Docker, container: str, pattern: str) -> str | None:
    """The first path that the glob matches inside the container, None where none does.

    Raises SparkdError where it has to ask a container that does not run.
    """
    if not any(c in pattern for c in "*?["):
        return pattern if docker.path_exists(container, pattern) else None
    status, output = docker.exec_run(
        container, ["bash", "-c", 'compgen -G "$1"', "bash", pattern], timeout_s=_GLOB_MAX_S
    )
    if status not in (0, 1):
        raise SparkdError(f"bash in container {container} ended with {status}: {output.strip()}")
    return min(output.splitlines(), default=None)


def _text(docker: Docker, container: str, pattern: str, known: Mapping[str, str | None]) -> str | None:
    path = known[pattern] if pattern in known else resolve(docker, container, pattern)
    data = None if path is None else docker.read_file(container, path, _FILE_MAX_BYTES)
    return None if data is None else data.decode("utf-8", "replace")


def _repeated_block(lines: list[str], invariant: PatchInvariant) -> range | None:
    """Where the second of two equal neighbouring blocks stands, blank lines between them included."""
    bare = [line.rstrip() for line in lines]
    for needle in (index for index, line in enumerate(lines) if invariant.needle in line):
        for start in range(needle, max(-1, needle - _BLOCK_MAX_LINES), -1):
            if invariant.block and not bare[start].strip().startswith(invariant.block.strip()):
                continue
            for length in range(needle - start + 1, _BLOCK_MAX_LINES + 1):
                copy = end = start + length
                while copy < len(bare) and not bare[copy]:
                    copy += 1
                if bare[copy : copy + length] == bare[start:end]:
                    return range(end, copy + length)
    return None
