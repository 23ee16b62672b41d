"""What changed around the engine since it last proved itself, most suspicious first. Pure: two boundaries in, changes out.

How suspicious a change is says how often its like was what broke an engine: an environment variable and a launch script
far more often than a sysctl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from sparkd.model.diagnosis import Boundary, Change

SECRET_MARK = "secret, sha256 "  # what a boundary holds in place of a secret's value
VALUE_MAX_CHARS = 200
SAID_MAX_CHARS = 72
_LEAD_CHARS = 24  # of what two long values have in common, before their first difference

# The groups in the order of suspicion where numbers are equal: their title, and how a sentence names one of their names.
PLACES = {
    "environment": ("the plan's environment", "{} in the plan's environment"),
    "engine-environment": ("the living engine's environment", "{} in the living engine's environment"),
    "patches": ("patched files", "{}"),
    "script": ("launch script", "the launch script {}"),
    "argv": ("the plan's arguments", "{} in the plan's arguments"),
    "engine-argv": ("the living engine's arguments", "{} in the living engine's arguments"),
    "image": ("image", "the image's {}"),
    "build": ("what the container was built from", "the container's build: {}"),
    "container": ("container", "the container's {}"),
    "writable-layer": ("the container's writable layer", "{} in the container's writable layer"),
    "units": ("units", "{}"),
    "driver": ("driver and firmware", "{}"),
    "kernel": ("kernel", "the kernel's {}"),
    "weights": ("weights", "the weights' {}"),
    "link": ("link", "the link's {}"),
    "docker": ("Docker", "Docker's {}"),
    "host": ("host", "the host's {}"),
    "sysctls": ("sysctls", "{}"),
    "sparkd": ("sparkd", "sparkd's {}"),
}

# (group, name, suspicion): the first that matches both counts. The last line of a group is for everything else in it.
_RULES: tuple[tuple[str, str, int], ...] = (
    (r"(engine-)?environment", r"VLLM_WORKER_MULTIPROC_METHOD", 100),
    (r"(engine-)?environment", r"VLLM_\w+|NCCL_\w+|GLOO_\w+|TP_\w+|UCX_\w+|CUDA_\w+|PYTORCH_\w+|TORCH\w+|LD_\w+|PYTHON\w+", 94),
    (r"(engine-)?environment", r"HF_\w+|TRANSFORMERS_\w+|.*CACHE.*|PATH", 70),
    (r"(engine-)?environment", r".*", 85),
    (r"patches", r".*", 95),
    (r"script", r"in the container", 92),
    (r"script", r".*", 84),
    (r"(engine-)?argv", r"--(compilation|speculative|kv-transfer|additional)-config|--enforce-eager|--.*backend.*", 90),
    (r"(engine-)?argv", r"--(gpu-memory-utilization|max-model-len|max-num-.*|kv-cache-.*|block-size|quantization|dtype)", 88),
    (r"(engine-)?argv", r".*", 82),
    (r"image", r"id.*", 88),
    (r"image", r"label .*(created|date)|created", 40),
    (r"build", r"image id", 88),
    (r"build", r"(build_)?(date|time)", 40),
    (r"build", r".*", 75),
    (r"image", r".*", 75),
    (r"container", r"environment .*", 86),
    (r"container", r"ipc|memory.*|shm size|gpus|runtime|devices|ulimit .*|pid mode|network|privileged|mount .*", 80),
    (r"container", r"restart policy|command|entrypoint|image", 74),
    (r"container", r"label .*", 20),
    (r"container", r".*", 60),
    (r"writable-layer", r".*\.(py|so|sh|json|yaml|pth)\b.*", 80),
    (r"writable-layer", r".*", 55),
    (r"units", r"sparkd\S*\.service .*", 60),
    (r"units", r".* (ExecStart|script .*|drop-in .*|file)", 86),
    (r"units", r".*", 78),
    (r"driver", r"module nvidia|library libcuda|.*firmware.*", 87),
    (r"driver", r"package .*", 72),
    (r"driver", r".*", 76),
    (r"kernel", r"release", 86),
    (r"kernel", r"parameter (BOOT_IMAGE|initrd|root|quiet|splash|console|ro|rw)", 15),
    (r"kernel", r"parameter .*(iommu|kho|cma|pci|hugepage|mitigations|memory|mem|numa|nvme|init_on_alloc).*", 82),
    (r"kernel", r"modprobe .*", 76),
    (r"kernel", r".*", 55),
    (r"weights", r".*", 85),
    (r"link", r"(.* )?mtu|interface", 86),
    (r"link", r"(.* )?(addresses|slaves|state|speed|rate|pcie)", 74),
    (r"link", r".* (gid \d+|mode)", 64),
    (r"link", r".*", 50),
    (r"docker", r"runtimes|daemon\.json .*(runtime|cgroup|ulimit|ipc|shm).*", 70),
    (r"docker", r".*", 48),
    (r"host", r"RemoveIPC", 80),
    (r"host", r"BIOS .*|memory|swap .*", 66),
    (r"host", r"dgx .*|package .*|os", 45),
    (r"host", r".*", 30),
    (r"sysctls", r"vm\..*|kernel\.shm.*", 38),
    (r"sysctls", r".*", 25),
    (r"sparkd", r"version", 15),
    (r"sparkd", r"profile|recipe", 44),
    (r"sparkd", r".*", 30),
)  # fmt: skip
_COMPILED = tuple((re.compile(group), re.compile(name), suspicion) for group, name, suspicion in _RULES)
_UNKNOWN_SUSPICION = 40  # a group of a newer sparkd
_TOLD_ELSEWHERE = 35  # a digest that only repeats what a change in plain words says

_DIGEST = re.compile(r"(?:sha256:)?[0-9a-f]{40,64}")


def changes(before: Boundary, after: Boundary) -> list[Change]:
    """Every difference, most suspicious first. A group that one of the two could not see is not compared."""
    found = [
        Change(
            node=after.node,
            group=group,
            name=name,
            before=_shown(was, now),
            after=_shown(now, was),
            suspicion=suspicion(group, name),
            says=sentence(group, name, was, now),
        )
        for group, name, was, now in _differences(before, after)
    ]
    return sorted(
        _weighed(found), key=lambda change: (-change.suspicion, _place(change.group), change.group, change.name)
    )


def _differences(before: Boundary, after: Boundary) -> Iterator[tuple[str, str, str | None, str | None]]:
    for group in before.groups.keys() & after.groups.keys():
        if group in before.unseen or group in after.unseen:
            continue
        old, new = before.groups[group], after.groups[group]
        for name in old.keys() | new.keys():
            was, now = old.get(name), new.get(name)
            if was != now and not _is_echo(before, after, group, name, was, now):
                yield group, name, was, now


def _is_echo(
    before: Boundary, after: Boundary, group: str, name: str, was: str | None, now: str | None
) -> bool:  # fmt: skip
    """What the living engine got is news only where it is not what the plan says as well."""
    plan = group.removeprefix("engine-")
    if plan == group or any(plan in side.unseen or plan not in side.groups for side in (before, after)):
        return False
    return (before.groups[plan].get(name), after.groups[plan].get(name)) == (was, now)


def suspicion(group: str, name: str) -> int:
    """0 to 100, the same for a change and for its reverse."""
    for of_group, of_name, number in _COMPILED:
        if of_group.fullmatch(group) and of_name.fullmatch(name):
            return number
    return _UNKNOWN_SUSPICION


def _weighed(found: list[Change]) -> Iterator[Change]:
    """A script's digest changes with every argument in it: then the argument is the news."""
    is_told = any(change.group in ("argv", "environment") for change in found)
    for change in found:
        repeats = change.group == "script" and change.name != "in the container"
        repeats |= change.group == "sparkd" and change.name in ("plan", "settings")
        yield change.model_copy(update={"suspicion": _TOLD_ELSEWHERE}) if repeats and is_told else change


def _place(group: str) -> int:
    places = list(PLACES)
    return places.index(group) if group in places else len(places)


# --- words ---------------------------------------------------------------------------------------


def title(group: str) -> str:
    return PLACES.get(group, (group, ""))[0]


def sentence(group: str, name: str, was: str | None, now: str | None) -> str:
    """ "VLLM_WORKER_MULTIPROC_METHOD=fork is new in the plan's environment"."""
    form = PLACES.get(group, (group, f"{{}} ({group})"))[1]
    subject = form.format(name)
    if was is None or now is None:
        value = (now if was is None else was) or ""
        news = "is new" if was is None else "is gone"
        place = form.partition("{}")[2]
        if place:
            return (
                f"{_assigned(group, name, value)} {news}{place if was is None else place.replace(' in ', ' from ', 1)}"
            )
        return f"{subject} {news}" + (f": {_value(value)}" if was is None else f" (was {_value(value)})")
    if was.startswith(SECRET_MARK) or now.startswith(SECRET_MARK):
        return f"{subject} has another value (a secret)"
    return f"{subject} was {_said(was, now)}, is {_said(now, was)}"


def _assigned(group: str, name: str, value: str) -> str:
    if group == "writable-layer":
        return name
    if value.startswith(SECRET_MARK) or not value:
        return f"{name} (a secret)" if value else name
    return f"{name}={_said(value)}" if group.endswith("environment") else f"{name} {_said(value)}"


def _value(value: str) -> str:
    return "a secret" if value.startswith(SECRET_MARK) else _said(value)


def _said(value: str, other: str = "") -> str:
    return shortened(value, other, max_chars=SAID_MAX_CHARS) or "empty"


def _shown(value: str | None, other: str | None) -> str | None:
    return None if value is None else shortened(value, other or "", max_chars=VALUE_MAX_CHARS)


def shortened(value: str, other: str = "", *, max_chars: int) -> str:
    """A long value around its first difference from `other`; a digest by its beginning."""
    if _DIGEST.fullmatch(value):
        return value[: 19 if value.startswith("sha256:") else 12]
    if len(value) <= max_chars:
        return value
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(value, other, strict=False)))
    start = max(0, alike - _LEAD_CHARS)
    start = min(start, len(value) - max_chars)
    piece = value[start : start + max_chars]
    return f"{'...' if start else ''}{piece}{'...' if start + max_chars < len(value) else ''}"


def unseen(before: Boundary, after: Boundary) -> Mapping[str, str]:
    """The groups that could not be compared, and why."""
    reasons = {group: f"when the baseline was taken: {why}" for group, why in before.unseen.items()}
    return reasons | dict(after.unseen)
