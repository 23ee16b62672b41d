"""What the image says about its own making, and whether a fix is in it.

Sources, none of them complete: `build-metadata.yaml`, which some builds bake in; the labels of the image; the version of the
installed vLLM, which names its commit. Branches are rewritten and dates with them, so only what is in the artifact counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import yaml

from sparkd.engine.container import Docker
from sparkd.engine.inside import BUILD_METADATA_PATH, Inside
from sparkd.engine.spec import ImageState
from sparkd.model.errors import SparkdError, UsageError

_MAX_BYTES = 64 * 1024
_GREP_FILES_MAX = 5
_SHA_MIN_CHARS = 7  # git's own shortest

_SHA = re.compile(r"[0-9a-f]{7,40}")
_IN_VERSION = re.compile(r"\+g([0-9a-f]{7,40})\b")  # "0.23.1rc1.dev1388+gb44311b6e.d20260722"
_PR = re.compile(r"(?:(?P<project>[\w.:/-]*?)(?:#|/pull/|\s+PR\s*|\bPR\s*#?)|#?)(?P<number>\d{1,6})/?", re.IGNORECASE)
_REVISION_LABELS = ("org.opencontainers.image.revision", "org.label-schema.vcs-ref", "git-commit", "git_commit")


def read_build(docker: Docker, container: str, path: str = BUILD_METADATA_PATH) -> dict[str, str]:
    """Its entries as text (`vllm_commit`, `build_date`, ...); nested ones as "build_args.vllm_prs".

    Empty where the image has none. Raises SparkdError where there is one that cannot be read.
    """
    data = docker.read_file(container, path, _MAX_BYTES)
    return {} if data is None else parse_build(data.decode("utf-8", "replace"), where=path)


def parse_build(text: str, *, where: str = BUILD_METADATA_PATH) -> dict[str, str]:
    """Pure part of `read_build`. Scalars stay as they were written: 48e6 may be a commit."""
    try:
        raw = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise SparkdError("is not YAML", where=where, hint=str(error).splitlines()[0]) from error
    if not isinstance(raw, dict):
        raise SparkdError("is not a mapping", where=where)
    flat: dict[str, str] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": str(entry) for inner, entry in value.items()}
        else:
            flat[str(key)] = str(value)
    return flat


@dataclass(frozen=True)
class Build:
    """What is known of an image's making. Empty where nothing is said."""

    image: str = ""  # its name
    image_id: str = ""
    created_at: str = ""  # of the image; build tools may leave a fixed date there
    labels: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    vllm_version: str = ""
    vllm_commit: str = ""  # as the installed package names it, without the leading g
    vllm_path: str = ""
    unseen: tuple[str, ...] = ()  # what could not be read, and why

    @property
    def built_at(self) -> str:
        return self.metadata.get("build_date") or self.labels.get("org.opencontainers.image.created", "")

    @property
    def knows_anything(self) -> bool:
        return bool(self.metadata or self.vllm_version or self.commits())

    def commits(self) -> dict[str, str]:
        """Where it stands -> commit."""
        found = {
            f"build metadata, {key}": value
            for key, value in self.metadata.items()
            if key.endswith("commit") and _SHA.fullmatch(value)
        }
        found |= {f"label {name}": self.labels[name] for name in _REVISION_LABELS if _is_sha(self.labels.get(name, ""))}
        for name in ("vllm_ref", "build_args.vllm_ref", "build_args.flashinfer_ref"):
            if _is_sha(self.metadata.get(name, "")):
                found[f"build metadata, {name}"] = self.metadata[name]
        if _is_sha(self.vllm_commit):
            found["the installed vLLM"] = self.vllm_commit
        versions = {
            "the installed vLLM's version": self.vllm_version,
            "build metadata, vllm_version": self.metadata.get("vllm_version", ""),
        }
        found |= {
            where: match.group(1) for where, version in versions.items() if (match := _IN_VERSION.search(version))
        }
        return found

    def pull_requests(self) -> dict[tuple[str, str], str]:
        """(project, number) -> where it stands: those that were applied on top of what was checked out."""
        found = {}
        for key, value in self.metadata.items():
            name = key.rpartition(".")[2]
            if name.endswith("_prs"):
                for number in re.findall(r"\d{1,6}", value):
                    found[(name.removesuffix("_prs"), number)] = f"build metadata, {key}"
        return found


def known(
    *,
    image: str,
    state: ImageState | None,
    inside: Inside | None,
    metadata: Mapping[str, str],
    unseen: tuple[str, ...] = (),
) -> Build:
    """Pure. All sources together."""
    version = (inside.vllm_version or inside.packages.get("vllm", "")) if inside else ""
    commit = (inside.vllm_commit or "").removeprefix("g") if inside else ""
    return Build(
        image=image,
        image_id=state.id if state else "",
        created_at=state.created_at if state else "",
        labels=state.labels if state else {},
        metadata=metadata,
        packages=inside.packages if inside else {},
        vllm_version=version,
        vllm_commit=commit,
        vllm_path=(inside.vllm_path or "") if inside else "",
        unseen=unseen,
    )


# --- do we already have it? ----------------------------------------------------------------------


class Has(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Answer:
    has: Has
    says: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What was asked after: a commit or a pull request. `project` is empty where it was not named."""

    sha: str = ""
    number: str = ""
    project: str = ""


def asked(text: str) -> Asked:
    """Pure. "48cebd4ad", "#41834", "PR 41834", "vllm#41834" or a pull request's address. Raises UsageError."""
    word = text.strip()
    lower = word.lower().removeprefix("g") if re.fullmatch(r"g[0-9a-f]{7,40}", word.lower()) else word.lower()
    if _SHA.fullmatch(lower):
        return Asked(sha=lower)
    if match := re.search(r"/commit/([0-9a-f]{7,40})", lower):
        return Asked(sha=match.group(1))
    match = _PR.fullmatch(word)
    if match:
        project = (match.group("project") or "").strip("/ ").rpartition("/")[2].lower()
        return Asked(number=match.group("number"), project="" if project == "pr" else project)
    raise UsageError(
        f"{text!r} is neither a commit nor a pull request",
        hint=f"a commit has {_SHA_MIN_CHARS} to 40 hexadecimal digits, a pull request is #41834, vllm#41834 or its address",
    )


def has(build: Build, question: Asked) -> Answer:
    """Pure. Never a guess: that a fix is *not* in the image cannot be seen from its metadata, only from its files."""
    return _has_commit(build, question.sha) if question.sha else _has_pull_request(build, question)


def _has_commit(build: Build, sha: str) -> Answer:
    for where, commit in build.commits().items():
        if commit.startswith(sha) or sha.startswith(commit):
            return Answer(Has.YES, f"{sha[:12]} is what the image was built from", (f"{where}: {commit}",))
    told = _told(build)
    if not told:
        return Answer(Has.UNKNOWN, "the image says nothing about its making", _unseen(build))
    says = f"{sha[:12]} is not the commit that the image was built from; whether it is an ancestor of that one, only git can tell"
    return Answer(Has.UNKNOWN, says, (*told, _ancestry(build, sha)))


def _has_pull_request(build: Build, question: Asked) -> Answer:
    wanted = f"{question.project or 'pull request '}#{question.number}".replace(" #", " ")
    for (project, number), where in build.pull_requests().items():
        if number == question.number and question.project in ("", project):
            return Answer(Has.YES, f"{wanted} was applied when the image was built", (f"{where}: {number}",))
    told = _told(build)
    if not told:
        return Answer(Has.UNKNOWN, "the image says nothing about its making", _unseen(build))
    says = f"{wanted} was not applied by the build; whether what it checked out already had it, the image does not say"
    return Answer(Has.UNKNOWN, says, (*told, "ask with --marker TEXT: a piece of text that only the fix contains"))


def _told(build: Build) -> tuple[str, ...]:
    keys = (
        "build_date",
        "vllm_version",
        "vllm_commit",
        "build_args.vllm_repo",
        "build_args.vllm_ref",
        "build_args.vllm_prs",
    )
    told = [f"{key}: {build.metadata[key]}" for key in keys if build.metadata.get(key)]
    if build.vllm_version:
        told.append(f"installed vLLM: {build.vllm_version}")
    told += [f"{where}: {commit}" for where, commit in build.commits().items() if where.startswith("label")]
    return tuple(told)


def _unseen(build: Build) -> tuple[str, ...]:
    return build.unseen or (f"no {BUILD_METADATA_PATH}, no vLLM version, no revision label",)


def _ancestry(build: Build, sha: str) -> str:
    of = next(iter(build.commits().values()), build.metadata.get("build_args.vllm_ref", "main"))
    return (
        f"in a clone of the repository: git merge-base --is-ancestor {sha[:12]} {of[:12]}; where {of[:12]} is a merge made "
        "by the build itself, no clone knows it: ask with --marker TEXT"
    )


def marked(docker: Docker, container: str, directory: str, text: str, *, timeout_s: float) -> Answer:
    """Does the text stand in the installed Python files below `directory`? That answers with yes or no.

    Raises SparkdError where they cannot be searched.
    """
    command = ["grep", "-rlF", "--include=*.py", "-e", text, "--", directory]
    status, output = docker.exec_run(container, command, timeout_s=timeout_s)
    if status == 0:
        files = tuple(output.splitlines())
        more = (f"and {len(files) - _GREP_FILES_MAX} more",) if len(files) > _GREP_FILES_MAX else ()
        return Answer(Has.YES, f"{text!r} stands in {len(files)} of its files", (*files[:_GREP_FILES_MAX], *more))
    if status == 1 and not output.strip():  # a grep that could not be run may end with 1 as well, and says why
        return Answer(Has.NO, f"{text!r} stands nowhere in {directory}", (f"grep -rF in container {container}",))
    raise SparkdError(f"grep in container {container} ended with {status}: {output.strip()[:200]}")


def lines(build: Build) -> Iterator[tuple[str, str]]:
    """(what, value) for a person, what matters most first."""
    yield "image", f"{build.image} ({build.image_id.removeprefix('sha256:')[:12] or 'not on this node'})"
    if build.built_at or build.created_at:
        yield "built", build.built_at or f"{build.created_at} (the image's own date)"
    if build.vllm_version:
        yield "vLLM", build.vllm_version
    for where, commit in build.commits().items():
        yield "commit", f"{commit} ({where})"
    for (project, number), _ in build.pull_requests().items():
        yield "pull request", f"{project}#{number}, applied by the build"
    for name in ("torch", "flashinfer-python", "triton", "transformers"):
        if name in build.packages:
            yield name, build.packages[name]
    for key, value in build.metadata.items():
        if not key.endswith(("commit", "_prs", "build_date")):
            yield key, value


def _is_sha(text: str) -> bool:
    return bool(_SHA.fullmatch(text))
