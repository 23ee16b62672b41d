"""One answer of one check: good, warning, bad or unknown, with its evidence and its cure."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from sparkd.model.errors import EXIT_FAILED, EXIT_UNKNOWN, SparkdError
from sparkd.model.fields import Shown, Word


class Verdict(StrEnum):
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    UNKNOWN = "unknown"  # could not look; never read as good


class Cure(StrEnum):
    """What makes a bad finding go away: decides between waiting, trying again and blocking."""

    WAIT = "wait"  # comes by itself while a node boots: the link, Docker, the peer
    RELAUNCH = "relaunch"  # another attempt may succeed: memory still being given back, a lost engine
    PERSON = "person"  # a relaunch cannot cure it: missing script, bad recipe, wrong image, missing weights


class Who(StrEnum):
    """Who can act on it."""

    SPARKD = "sparkd"
    OPERATOR = "operator"
    HANDS = "hands on the machine"


class Layer(StrEnum):
    """Where a fault lies, lowest first: the order in which a doctor asks and tells."""

    UNIT = "unit"
    MEMORY = "host-memory"
    SHM = "shm"
    PROCESS = "process"
    LINK = "link"
    DRIVER = "driver"
    DOCKER = "docker"
    CONTAINER = "container"
    IMAGE = "image"
    SCRIPT = "script"
    WEIGHTS = "weights"
    ENGINE = "engine"
    ENDPOINT = "endpoint"
    CLIENT = "client"


LAYERS = tuple(layer.value for layer in Layer)


def depth(layer: str) -> int:
    """The place of a layer in the order; one that a newer version knows comes last."""
    return LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


class Finding(BaseModel):
    """`id` is stable ("unit.execstart-path"), `says` is one sentence for a person, `remedy` a command or an instruction."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # a newer peer or state file may say more

    id: Word
    verdict: Verdict
    says: Shown
    evidence: tuple[Shown, ...] = ()
    remedy: Shown = ""
    cure: Cure = Cure.PERSON
    who: Who = Who.OPERATOR
    layer: Word = ""  # of Layer; text, because a newer peer may know another one
    symptom: bool = False  # says that something is wrong, not what

    @property
    def is_bad(self) -> bool:
        return self.verdict is Verdict.BAD


def bad(
    id: str, says: str, *, cure: Cure, remedy: str = "", evidence: tuple[str, ...] = (), who: Who = Who.OPERATOR
) -> Finding:
    """A bad finding, in the fewest words."""
    return Finding(id=id, verdict=Verdict.BAD, says=says, cure=cure, remedy=remedy, evidence=evidence, who=who)


def good(id: str, says: str, *, evidence: tuple[str, ...] = ()) -> Finding:
    return Finding(id=id, verdict=Verdict.GOOD, says=says, evidence=evidence)


def warning(
    id: str, says: str, *, remedy: str = "", evidence: tuple[str, ...] = (), who: Who = Who.OPERATOR
) -> Finding:
    return Finding(id=id, verdict=Verdict.WARNING, says=says, remedy=remedy, evidence=evidence, who=who)


def unknown(id: str, says: str, *, remedy: str = "", evidence: tuple[str, ...] = ()) -> Finding:
    return Finding(id=id, verdict=Verdict.UNKNOWN, says=says, remedy=remedy, evidence=evidence)


class FindingError(SparkdError):
    """A step that could not be done, for a reason that is already a finding: raised by an effect, recorded as it is."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.says, where=finding.id, hint=finding.remedy)
        self.finding = finding
        self.exit_code = EXIT_UNKNOWN if finding.verdict is Verdict.UNKNOWN else EXIT_FAILED
