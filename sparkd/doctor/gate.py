"""The launch gate: those checks of the doctor that must not be bad before this node starts its rank.

A check that could not look answers *unknown*, which never opens a gate by itself being read as good and never closes
it either: what cannot be seen now is seen by the step that needs it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sparkd.doctor.ask import hide
from sparkd.doctor.check import Check, Gate
from sparkd.doctor.checks import unit, weights
from sparkd.doctor.declared import of_layer
from sparkd.doctor.facts import Facts, container, image_id, unit_state
from sparkd.host import gpu
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, Layer, Verdict
from sparkd.model.report import Digests

# Layers that have a gating check. The daemon loads no others: what only a doctor asks costs it no memory.
LAYERS = (
    Layer.UNIT,
    Layer.PROCESS,
    Layer.LINK,
    Layer.DOCKER,
    Layer.CONTAINER,
    Layer.IMAGE,
    Layer.SCRIPT,
    Layer.WEIGHTS,
)


def preflight(facts: Facts, *, everything: bool = False) -> tuple[list[Finding], Digests]:
    """All findings, and the digests that every rank must share. `everything` also asks what later steps would refuse."""
    return _ask(facts, tuple(Gate) if everything else (Gate.HOST,)), _digests(facts)


def in_container(facts: Facts) -> list[Finding]:
    """What can only be asked of a running container: the program, the weights as it sees them, patches, units' scripts."""
    return _ask(facts, (Gate.CONTAINER,))


def checks(gates: tuple[Gate, ...]) -> list[Check]:
    return [each for layer in LAYERS for each in of_layer(layer) if each.gate in gates]


def _ask(facts: Facts, gates: tuple[Gate, ...]) -> list[Finding]:
    asked = checks(gates)
    return list(hide(asked, {each.id: each.asked(facts) for each in asked}).findings)


def worst(findings: list[Finding], *, only_person: bool = False) -> Finding | None:
    """The finding that decides: what needs a person before what is waited for; within these, the lowest layer."""
    for cure in (Cure.PERSON,) if only_person else (Cure.PERSON, Cure.RELAUNCH, Cure.WAIT):
        for finding in findings:
            if finding.is_bad and finding.cure is cure:
                return finding
    return None


def summary(findings: list[Finding]) -> str:
    """What was found, one clause a check: the events show on each launch what was asked and what the answer was."""
    said = {verdict: [f.says for f in findings if f.verdict is verdict] for verdict in Verdict}
    clauses = [*said[Verdict.GOOD], *(f"warning: {says}" for says in said[Verdict.WARNING])]
    clauses += [f"could not tell: {says}" for says in said[Verdict.UNKNOWN]]
    return f"{len(findings)} checks asked, none against a launch: " + "; ".join(clauses)


def fingerprint(facts: Facts, digests: Digests) -> str:
    """Changes when an input that could have blocked a launch changes: files, image, container, weights, units."""
    parts = [repr(digests)]
    try:
        state = container(facts)
        parts.append(f"{state.id} {state.started_at}" if state else "no container")
    except SparkdError:
        parts.append("no docker")
    for name in unit.unit_names(facts):
        try:
            state_of = unit_state(facts, name)
            files = [state_of.fragment_path, *state_of.drop_ins]
            parts += [f"{file} {Path(file).stat().st_mtime_ns}" for file in files if file and Path(file).exists()]
        except SparkdError:
            parts.append(f"{name} unknown")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digests(facts: Facts) -> Digests:
    """What all ranks must share. Something that cannot be read is empty here, and differs from one that can."""
    try:
        image = image_id(facts) or ""
    except SparkdError:
        image = ""
    found = weights.manifest(facts)
    plan = facts.cluster_plan.digest if facts.cluster_plan else ""
    return Digests(plan=plan, image=image, weights=found.digest if found else "", driver=gpu.driver_version() or "")
