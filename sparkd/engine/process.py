"""What the engine really received, as the kernel has it, against the plan. Pure: the caller reads `/proc`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import PurePosixPath

from sparkd.model.finding import Cure, Finding, bad, good, unknown
from sparkd.model.outside import parsed
from sparkd.model.plan import LAUNCH_ID_VARIABLE, Plan

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
_SHOWN_MAX_CHARS = 200


def compare(plan: Plan, *, argv: tuple[str, ...], environment: Mapping[str, str], launch_id: str) -> list[Finding]:
    """Every difference between the plan and the engine's top process; all findings are good where there is none."""
    return [_compare_argv(plan.argv, argv), *_compare_environment(plan, environment, launch_id)]


def engine_argv(argv: Sequence[str]) -> tuple[str, ...] | None:
    """The command line without the interpreter: from the element that is the `vllm` program on. None: not vLLM's."""
    for index, element in enumerate(argv[:4]):
        if PurePosixPath(element).name == "vllm":
            return ("vllm", *argv[index + 1 :])
    return None


def argument_differences(plan: Sequence[str], engine: Sequence[str]) -> list[str]:
    """One sentence for each argument that is missing, extra or different; empty only where the two are equal."""
    if tuple(plan) == tuple(engine):
        return []
    wanted, actual = _grouped(plan), _grouped(engine)
    found = []
    for flag in dict.fromkeys([*wanted, *actual]):
        plan_shows, engine_shows = _shown(flag, wanted.get(flag, [])), _shown(flag, actual.get(flag, []))
        if flag not in actual:
            found.append(f"{flag}: the plan has {plan_shows}, the engine did not get it")
        elif flag not in wanted:
            found.append(f"{flag}: the engine has {engine_shows}, the plan does not")
        elif wanted[flag] != actual[flag]:
            hint = _quoting_hint(wanted[flag], actual[flag])
            found.append(f"{flag}: plan {plan_shows}, engine {engine_shows}{hint}")
    return found or ["the arguments are the plan's, but in another order or form"]


def _compare_argv(plan: tuple[str, ...], argv: tuple[str, ...]) -> Finding:
    engine = engine_argv(argv)
    if engine is None:
        shown = " ".join(argv[:3]) if argv else "nothing"
        return unknown("engine.argv-unreadable", f"the engine's command line is not that of vllm: {shown}")
    found = argument_differences(plan, engine)
    if not found:
        return good("engine.argv", f"the engine runs the plan's command line ({len(plan)} arguments)")
    return bad(
        "engine.argv-differs",
        f"the engine did not get the plan's arguments: {'; '.join(found[:3])}",
        cure=Cure.PERSON,
        remedy="sparkd render shows the plan's script; does something else start vllm on this node?",
        evidence=tuple(found),
    )


def _compare_environment(plan: Plan, environment: Mapping[str, str], launch_id: str) -> list[Finding]:
    wanted = dict(plan.environment) | {LAUNCH_ID_VARIABLE: launch_id}
    differing = [
        f"{name}: plan {_value(name, value)}, engine "
        + (_value(name, environment[name]) if name in environment else "has none")
        for name, value in sorted(wanted.items())
        if environment.get(name) != value
    ]
    forbidden = [
        f"{name}={_value(name, environment[name])}"
        for name, equals, value in (entry.partition("=") for entry in plan.forbidden_environment)
        if name in environment and (not equals or environment[name] == value)
    ]
    findings = []
    if differing:
        findings.append(
            bad(
                "engine.env-differs",
                f"the engine did not get the plan's environment: {'; '.join(differing[:3])}",
                cure=Cure.PERSON,
                remedy="sparkd render shows the plan's script",
                evidence=tuple(differing),
            )
        )
    if forbidden:
        findings.append(
            bad(
                "engine.env-forbidden",
                f"the engine has a variable that the recipe forbids: {', '.join(forbidden)}",
                cure=Cure.PERSON,
                remedy="look for it in the image, the container's environment and the unit",
                evidence=tuple(forbidden),
            )
        )
    return findings or [good("engine.env", f"the engine has the plan's environment ({len(wanted)} variables)")]


def _grouped(argv: Sequence[str]) -> dict[str, list[list[str]]]:
    """Flag to the values of each of its uses; "command" holds what stands before the first flag."""
    groups: dict[str, list[list[str]]] = {"command": [[]]}
    values = groups["command"][0]
    for element in argv:
        if not _is_flag(element):
            values.append(element)
            continue
        flag, equals, value = element.partition("=") if element.startswith("--") else (element, "", "")
        values = [value] if equals else []
        groups.setdefault(flag.replace("_", "-"), []).append(values)
    return groups


def _is_flag(element: str) -> bool:
    return (
        element.startswith("-") and len(element) > 1 and not element[1].isdigit() and " " not in element.split("=")[0]
    )


def _quoting_hint(wanted: list[list[str]], actual: list[list[str]]) -> str:
    """JSON that a shell has eaten the quotes of is the classic, and silent in some versions."""
    for plan_value, engine_value in zip(chain(*wanted), chain(*actual), strict=False):
        try:
            parsed(plan_value)
        except ValueError:
            continue
        if plan_value.replace('"', "") == engine_value.replace('"', "") != engine_value:
            return " (its quotes were changed on the way)"
        if plan_value.replace('"', "") == engine_value:
            return " (a shell took its quotes away)"
    return ""


def _shown(flag: str, uses: list[list[str]]) -> str:
    if SECRET.search(flag.upper()):
        return "(hidden)"
    text = " and ".join(" ".join(values) for values in uses) or "no value"
    return text if len(text) <= _SHOWN_MAX_CHARS else text[:_SHOWN_MAX_CHARS] + "..."


def _value(name: str, value: str) -> str:
    return "(hidden)" if SECRET.search(name) else repr(value[:_SHOWN_MAX_CHARS])
