"""What the end of an engine means: the catalogue's answer for its log, or else what status and signal say. Pure.

vLLM exits 0 after several kinds of crash, and its last lines are consequences ("Engine core initialization
failed. See root cause above."), so the log's tail decides, and the status only where the log says nothing.
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Sequence

from sparkd.doctor.catalogue import Record, record
from sparkd.doctor.normalise import Lines, normalise, without_prefix
from sparkd.doctor.signatures import READY, Text, classify
from sparkd.model.diagnosis import Incident, Kind, Source
from sparkd.model.finding import Cure, Finding, Verdict, Who
from sparkd.model.redact import redact

_EVIDENCE_MAX_CHARS = 300
_PYTHON_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): .")
_CONSEQUENCE = re.compile(r"Engine core initialization failed|WorkerProc initialization failed|EngineDeadError")
_EXIT_CODE = re.compile(r"\(exit code: (-?\d+)\)")
_STOPPED = "engine-stopped"
_START_FAILED = "engine-core-init-failed"

_WAS_IT_KILLED = "journalctl -k on both nodes: was it the out-of-memory killer?; sparkd logs on both nodes"
_BY_STATUS = {64: "engine-no-launch-id", 126: "engine-exit-126", 127: "engine-exit-127", 2: "engine-arguments-rejected"}


def classify_end(tail: str, *, status: int | None, signal: int | None, rank: int, ready: bool = False) -> Finding:
    """What ended an engine, from the end of its log, its exit status or the signal that killed it.

    `ready`: it had served, so failures that only a start can have are not looked for (the tail itself shows
    it where the start is still in it). Always a bad finding: an engine that is gone is a failure at status 0 too.
    """
    if status is not None and status > 128 and signal is None:
        signal = status - 128  # how a shell and `docker exec` tell of a signal
    ready = ready or READY in tail.lower()
    lines = normalise(tail)
    if (incident := _explaining(tail, ready)) is not None:
        found = _found(incident, lines, rank)
        return _worth_another_try(found) if ready else found
    who = "the head's engine" if rank == 0 else f"the engine of rank {rank}"
    last = _last_lines(lines)
    if signal is not None:
        remedy = "journalctl -k: was it the out-of-memory killer?" if signal == signals.SIGKILL else "sparkd logs"
        return _of("engine-killed", f"{who} was killed by {_signal_name(signal)}", last, remedy=remedy)
    if status in _BY_STATUS and not ready:
        known = record(_BY_STATUS[status])
        return _of(_BY_STATUS[status], known.says if known else f"{who} ended with status {status}", last)
    told = "" if status is None else f" with status {status}"
    why = _why(() if ready or not status else _errors(lines)[-1:])
    return _of("engine-lost", f"{who} ended{told}{why}", last)


def _explaining(tail: str, ready: bool) -> Incident | None:
    """The best explanation in the log, noise aside; a stop that somebody ordered where nothing else explains it."""
    incidents = classify([Text(Source.VLLM_LOG, tail)], noise=True, served=ready)
    current = [one for one in incidents if one.current and one.verdict is Verdict.BAD and one.kind is not Kind.NOISE]
    stops = [one for one in incidents if one.id == _STOPPED and one.current]
    return next(iter([*current, *stops]), None)


def _worth_another_try(found: Finding) -> Finding:
    """What has served was configured well enough: one more launch, within the budget, is no blind one. Broken hardware is."""
    if found.cure is Cure.PERSON and found.who is not Who.HANDS:
        return found.model_copy(update={"cure": Cure.RELAUNCH})
    return found


def _found(incident: Incident, lines: Lines, rank: int) -> Finding:
    says = incident.says
    if incident.id == _START_FAILED and not _errors(lines):
        # A process that raises leaves its traceback before this line; one that is killed leaves nothing.
        told = (
            "the engine did not start, and its log does not say why: a rank died without a word, as when it is killed"
        )
        return _of(
            incident.id, told + ("" if rank == 0 else f" (rank {rank})"), incident.evidence, remedy=_WAS_IT_KILLED
        )
    if incident.id == _START_FAILED:
        says += _why(_errors(lines)[:1])  # the first is the root
    elif code := next((match for line in incident.evidence if (match := _EXIT_CODE.search(line))), None):
        says += _exit_words(int(code[1]))
    return _of(incident.id, says + ("" if rank == 0 else f" (rank {rank})"), incident.evidence)


def _of(id: str, says: str, evidence: tuple[str, ...], *, remedy: str = "") -> Finding:
    """A bad finding with what the record says of cure, remedy and who."""
    known: Record | None = record(id)
    return Finding(
        id=id,
        verdict=Verdict.BAD,
        says=redact(says),
        evidence=evidence,
        remedy=remedy or (known.remedy if known else "sparkd logs"),
        cure=known.cure if known else Cure.RELAUNCH,
        who=known.who if known else Who.OPERATOR,
        layer=known.layer if known else "engine",
    )


def _exit_words(code: int) -> str:
    return f": killed by {_signal_name(-code)}" if code < 0 else f" with status {code}" if code else ""


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signals.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _last_lines(lines: Lines, lines_max: int = 3) -> tuple[str, ...]:
    told = [bare for line in lines.bare[-200:] if (bare := _bare(line))]
    return tuple(told[-lines_max:])


def _errors(lines: Lines) -> list[str]:
    """What Python called errors, in the order of the log. No signatures, but better than none."""
    told = (_bare(line) for line in lines.bare)
    return [line for line in told if _PYTHON_ERROR.match(line) and not _CONSEQUENCE.search(line)]


def _why(errors: Sequence[str]) -> str:
    return f": {errors[0]}" if errors else " and its log does not say why"


def _bare(line: str) -> str:
    return redact(without_prefix(line))[:_EVIDENCE_MAX_CHARS]
