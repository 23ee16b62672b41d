"""What `--fix` may do: safe, and only to what is proven ours. Shown before it acts, measured after it acted.

Everything else a doctor finds is for a person: the finding's remedy is the command. Ownership is proven when the fix is
offered and again at the moment it acts, by the very code that cleans before a launch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sparkd.doctor.checks import unit
from sparkd.doctor.facts import Facts, container, launch_id, survey, unit_state
from sparkd.engine import cleaning, patches, scripts
from sparkd.engine.spec import ContainerState
from sparkd.host import memory, units
from sparkd.host.memory import GIB, MIB
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Finding, Verdict
from sparkd.model.recipe import PatchInvariant

Tidy = Callable[[Collection[str]], list[str]]  # some of cleaning.TIDIED put in order, by the daemon where there is one


@dataclass(frozen=True)
class Fix:
    """One repair. `touches` names each thing that it changes and how we know that it is ours."""

    answers: str  # id of the finding that it cures
    says: str
    touches: tuple[str, ...]
    act: Callable[[], list[str]]  # does it; what was measured afterwards, in lines. Raises SparkdError


def offer(findings: Iterable[Finding], facts: Facts, tidy: Tidy) -> list[Fix]:
    """The repairs for what was found, in the order of the findings; each once."""
    offered: dict[str, Fix] = {}
    for finding in findings:
        if finding.verdict in (Verdict.BAD, Verdict.WARNING):
            for fix in _fixes(finding, facts, tidy):
                offered.setdefault(f"{fix.answers} {fix.says}", fix)
    return list(offered.values())


def _fixes(finding: Finding, facts: Facts, tidy: Tidy) -> Iterator[Fix]:
    if finding.id.startswith("image.") and finding.id.endswith("-doubled"):
        yield from _deduplicate(finding, facts)
        return
    builder = {
        "process.stale": _end_stale,
        "shm.leftovers": _remove_segments,
        "memory.page-cache": _drop_cache,
        "script.missing": _stage_script,
        "unit.failed": _reset_failed,
        "unit.start-limit": _reset_failed,
    }.get(finding.id)
    if builder is not None:
        yield from builder(facts, tidy)


# --- the host --------------------------------------------------------------------------------------


def _end_stale(facts: Facts, tidy: Tidy) -> Iterator[Fix]:
    stale = survey(facts).stale
    if stale:
        touches = tuple(f"process {process.pid} {process.name}: {why}" for process, why in stale)
        yield Fix("process.stale", f"end {len(stale)} stale engine processes", touches, lambda: tidy(("processes",)))


def _remove_segments(facts: Facts, tidy: Tidy) -> Iterator[Fix]:
    leftovers = survey(facts).leftovers
    if leftovers:
        size_mib = sum(segment.bytes for segment in leftovers) / MIB
        touches = tuple(
            f"{segment.path}: an engine's by name and owner, nobody maps or opens it" for segment in leftovers
        )
        says = f"remove {len(leftovers)} leftover segments ({size_mib:.1f} MiB)"
        yield Fix("shm.leftovers", says, touches, lambda: tidy(("segments",)))


def _drop_cache(facts: Facts, tidy: Tidy) -> Iterator[Fix]:
    """Only clean pages go; with an engine at work its next read of a file would be slow, so not then."""
    if launch_id(facts) is None:
        now = memory.read_memory()
        touches = (
            f"page cache {now.cached / GIB:.1f} GiB, free {now.free / GIB:.1f} GiB: the kernel reads it again when asked",
        )
        yield Fix("memory.page-cache", "sync, and drop the page cache", touches, lambda: tidy(("cache",)))


def _reset_failed(facts: Facts, tidy: Tidy) -> Iterator[Fix]:
    """Of our units and those that the configuration names: it only clears systemd's memory of the failure."""
    for name in unit.unit_names(facts):
        state = unit_state(facts, name)
        if state.active_state != "failed":
            continue

        def act(name: str = name) -> list[str]:
            if units.unit_state(name).active_state != "failed":
                return [f"{name} is not failed any more: nothing to do"]
            units.reset_failed(name)
            return [f"{name}: {units.unit_state(name).says}"]

        yield Fix("unit.failed", f"systemctl reset-failed {name}", (f"{name}: {state.says}",), act)


# --- the container ---------------------------------------------------------------------------------


def _is_ours(facts: Facts, state: ContainerState | None) -> bool:
    """Running, and made by sparkd for this cluster: another one of that name is somebody's, whatever it holds."""
    return state is not None and state.running and state.made_for(facts.plan.cluster)


def _proven(facts: Facts) -> str:
    """The id of our container as it is now: since the fix was offered it may have become another's, of the same name.

    The id is what is acted on. Raises SparkdError.
    """
    name = facts.plan.container.name
    state = facts.docker.inspect(name)
    if state is None or not _is_ours(facts, state):
        raise SparkdError(f"container {name} is no longer what it was: left as it is", hint="sparkd doctor")
    return state.id


def _stage_script(facts: Facts, tidy: Tidy) -> Iterator[Fix]:
    """Restores one that is missing. One that differs may be somebody's work; the next launch stages its own anyway."""
    plan = facts.plan
    name, path = plan.container.name, plan.script_path
    if not _is_ours(facts, container(facts)) or facts.docker.path_exists(name, path) is not False:
        return

    def act() -> list[str]:
        id = _proven(facts)
        if facts.docker.path_exists(id, path) is not False:
            raise SparkdError(f"{path} is there by now: left as it is")
        staged = scripts.stage(facts.docker, id, plan, api_key=None)
        return [f"{staged.path} is there again, read back equal (sha256 {staged.sha256[:12]})"]

    touches = (f"{path} in container {name}: the plan's own, and nothing is there now",)
    yield Fix("script.missing", f"stage {path} in container {name}", touches, act)


def _deduplicate(finding: Finding, facts: Facts) -> Iterator[Fix]:
    if not _is_ours(facts, container(facts)):
        return
    name = facts.plan.container.name
    for invariant in facts.plan.patches:
        if finding.id != f"image.{invariant.id}-doubled":
            continue

        def act(invariant: PatchInvariant = invariant) -> list[str]:
            mended = patches.repair(facts.docker, _proven(facts), invariant)
            if mended.is_bad:
                raise SparkdError(mended.says, where=mended.id, hint=mended.remedy)
            return [mended.says, *mended.evidence]

        says = f"take the doubled block of patch {invariant.id} out of {invariant.file} in container {name}"
        touches = (
            f"{invariant.file}: kept as it was beside itself, compiled before it is written, counted again after",
        )
        yield Fix(finding.id, says, touches, act)


def without_daemon(facts: Facts, *, dry_run: bool = False) -> Tidy:
    """The daemon's own code, run here: an engine that serves while its agent is stopped is spared as under the agent."""

    def tidy(only: Collection[str]) -> list[str]:
        living = cleaning.launch_by_unit(facts.paths.launch_file)
        return cleaning.tidy(facts.plan, facts.docker, living_launch=living, dry_run=dry_run, only=tuple(only))

    return tidy


def carry_out(fixes: Sequence[Fix], say: Callable[[str], None], agree: Callable[[Fix], bool]) -> bool:
    """One after the other: shown, agreed to, done, measured. False where one could not be done."""
    all_done = True
    for fix in fixes:
        say(f"{fix.answers}: {fix.says}")
        for line in fix.touches:
            say(f"    {line}")
        if not agree(fix):
            say("    left as it is")
            continue
        try:
            for line in fix.act():
                say(f"  done: {line}")
        except SparkdError as error:
            all_done = False
            say(f"  not done: {error}" + (f" (hint: {error.hint})" if error.hint else ""))
    return all_done
