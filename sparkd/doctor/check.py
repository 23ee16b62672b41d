"""What a check is: one question about a node, declared once, asked by the launch gate and by the doctor alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sparkd.doctor.facts import Facts
from sparkd.model.diagnosis import Boundary
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, Finding, Layer, Verdict, Who, unknown

Answers = Iterable[Finding]
Ask = Callable[[Facts], Answers]
Compare = Callable[[Mapping[str, Boundary]], Answers]  # node -> its boundary, at least two of them


class Gate(StrEnum):
    """When a launch waits for a check's answer."""

    HOST = "host"  # in preflight: nothing has been touched yet
    CONTAINER = "container"  # once the plan's container runs
    STEP = "step"  # never: a step between these refuses it. Asked while that blocks, because only this sees it mended


@dataclass(frozen=True)
class Check:
    """One question. It is named by the fault that it looks for: "link.mtu".

    The answers are findings without id, layer, who, cure and remedy where those are the check's own; `asked` fills them
    in. An answer may replace a remedy by one that names this node's very paths.
    """

    id: str
    layer: Layer
    question: str  # ends with "?"
    how: str  # how it is asked: the file, call or command
    means: str  # what a bad answer means, for `sparkd explain`
    who: Who
    cure: Cure
    remedy: str
    sample: str  # a bad answer as it was really seen
    ask: Ask | None = None
    compare: Compare | None = None  # instead of `ask`: what only several nodes together show
    gate: Gate | None = None
    after: tuple[str, ...] = ()  # checks whose bad answer explains this one's: it is then hidden
    symptom: bool = False  # tells that something is wrong, not what: never the first line while a root stands
    slow: bool = False  # asked only when it is named by --only: it takes seconds or loads the link

    def asked(self, facts: Facts) -> list[Finding]:
        """The answers, whole. One that could not look is a result of its own; a check without an answer had no question."""
        assert self.ask is not None
        return self.complete(self.ask, facts)

    def compared(self, boundaries: Mapping[str, Boundary]) -> list[Finding]:
        assert self.compare is not None
        return self.complete(self.compare, boundaries)

    def complete(self, question: Callable[..., Answers], about: object) -> list[Finding]:
        found: list[Finding] = []
        try:
            found.extend(question(about))
        except SparkdError as error:
            found.append(unknown("", str(error), remedy=error.hint))
        except PermissionError as error:
            found.append(unknown("", f"not allowed to look: {error}", remedy="sudo sparkd doctor"))
        except OSError as error:
            found.append(unknown("", f"could not look: {error}"))
        return [self._filled(finding) for finding in found]

    def _filled(self, finding: Finding) -> Finding:
        more: dict[str, object] = {"layer": finding.layer or self.layer.value}
        if not finding.id:
            more["id"] = self.id
        if finding.verdict in (Verdict.BAD, Verdict.WARNING) and finding.id in ("", self.id):
            more |= {"who": self.who, "cure": self.cure, "symptom": self.symptom or finding.symptom}
            more["remedy"] = finding.remedy or self.remedy
        return finding.model_copy(update=more)


def check(
    id: str,
    *,
    layer: Layer,
    question: str,
    how: str,
    means: str,
    remedy: str,
    sample: str,
    who: Who = Who.OPERATOR,
    cure: Cure = Cure.PERSON,
    gate: Gate | None = None,
    after: tuple[str, ...] = (),
    symptom: bool = False,
    slow: bool = False,
) -> Callable[[Ask], Check]:
    """Declares the function below it as a check of one node."""

    def declare(ask: Ask) -> Check:
        return Check(
            id, layer, question, how, means, who, cure, remedy, sample,
            ask=ask, gate=gate, after=after, symptom=symptom, slow=slow,
        )  # fmt: skip

    return declare


def pair_check(
    id: str,
    *,
    layer: Layer,
    question: str,
    how: str,
    means: str,
    remedy: str,
    sample: str,
    who: Who = Who.OPERATOR,
    cure: Cure = Cure.PERSON,
    after: tuple[str, ...] = (),
) -> Callable[[Compare], Check]:
    """Declares the function below it as a check of several nodes' boundaries."""

    def declare(compare: Compare) -> Check:
        return Check(id, layer, question, how, means, who, cure, remedy, sample, compare=compare, after=after)

    return declare


# --- answers: what a check's function yields --------------------------------------------------


def no(says: str, *, evidence: tuple[str, ...] = (), remedy: str = "") -> Finding:
    """A bad answer."""
    return Finding(id="", verdict=Verdict.BAD, says=says, evidence=evidence, remedy=remedy)


def doubtful(says: str, *, evidence: tuple[str, ...] = (), remedy: str = "") -> Finding:
    """A warning: it works, and may not for long, or not as well as it could."""
    return Finding(id="", verdict=Verdict.WARNING, says=says, evidence=evidence, remedy=remedy)


def yes(says: str, *, evidence: tuple[str, ...] = ()) -> Finding:
    return Finding(id="", verdict=Verdict.GOOD, says=says, evidence=evidence)


def cannot_tell(why: str, *, remedy: str = "") -> Finding:
    return unknown("", why, remedy=remedy)
