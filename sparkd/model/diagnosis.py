"""What the doctor found: answers of checks, incidents in logs, and what changed since it last worked. Printed as JSON.

The schema of `sparkd doctor --json` is `Examination`. A new field does not change `schema_version`; another meaning does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from sparkd.model.finding import Cure, Finding, Verdict, Who
from sparkd.model.report import Frozen

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """What an incident explains. A consequence is told only where no root stands; noise looks bad and is not."""

    ROOT = "root"
    CONSEQUENCE = "consequence"
    NOISE = "noise"


class Source(StrEnum):
    """What kind of text a signature is looked for in."""

    VLLM_LOG = "vllm-log"
    KERNEL_LOG = "kernel-log"
    JOURNAL = "journal"
    DOCKER = "docker"  # what the Docker daemon or client says
    HTTP = "http"  # bodies of answers of the endpoint
    PROC = "proc"  # files of /proc, output of host tools
    SYSFS = "sysfs"


class Incident(Frozen):
    """One record of the catalogue that was recognised in a text."""

    id: str  # of the record: "driver-xid-79-off-bus"
    layer: str
    kind: Kind
    verdict: Verdict  # bad or warning
    says: str  # one sentence for a person, with what the match tells
    evidence: tuple[str, ...] = ()  # the lines as they were logged, without prefix and colours, secrets redacted
    source: str = ""
    where: str = ""  # "/var/log/sparkd/engine/ab12cd34-17.log:2140", "kernel log of the previous boot"
    at: str = ""  # time of the first line as it was logged, where it has one
    count: int = 1  # how often it stands there
    remedy: str = ""
    who: Who = Who.OPERATOR
    cure: Cure = Cure.PERSON
    node: str = ""
    current: bool = True  # False: of an earlier launch or boot that a proven one has followed


class Boundary(Frozen):
    """Everything around a node's engine that can change without a code change: group -> name -> value, all text."""

    node: str
    at: str  # ISO 8601, UTC
    boot_id: str = ""
    groups: dict[str, dict[str, str]] = Field(default_factory=dict)
    unseen: dict[str, str] = Field(default_factory=dict)  # group -> why it could not be read; never compared


class BaselineName(Frozen):
    """Which proven launch a boundary is compared with."""

    epoch: int
    at: str  # ISO 8601, UTC: when it was written

    @property
    def name(self) -> str:
        """`epoch-18-2026-11-21T10:53:04Z`: its file and what people type."""
        return f"epoch-{self.epoch}-{self.at}"


class Change(Frozen):
    """One difference of the boundary now against the baseline. None: was not, or is no longer, there."""

    node: str
    group: str
    name: str
    before: str | None
    after: str | None
    suspicion: int  # 0 to 100: how often such a change is what broke it
    says: str = ""


class Diagnosis(Frozen):
    """One node, examined by itself."""

    schema_version: Literal[1] = 1
    node: str
    rank: int | None = None  # None: this machine is in no configuration that could be read
    host: str = ""
    version: str = ""  # of its sparkd
    boot_id: str = ""
    at: str  # ISO 8601, UTC
    seconds: float = 0.0  # what it took
    findings: tuple[Finding, ...] = ()  # every check's answers, lowest layer first; hidden ones are left out
    hidden: dict[str, str] = Field(default_factory=dict)  # check id -> id of the bad check below it that explains it
    incidents: tuple[Incident, ...] = ()
    boundary: Boundary | None = None
    baseline: BaselineName | None = None
    changes: tuple[Change, ...] = ()
    unseen: tuple[str, ...] = ()  # what could not be looked at, and why: "not root: ..."


class Headline(Frozen):
    """The first line: the one thing to act on."""

    node: str
    id: str
    verdict: Verdict
    says: str
    who: Who
    remedy: str = ""


class Examination(Frozen):
    """Everything that `sparkd doctor` knows, of all nodes that answered."""

    schema_version: Literal[1] = 1
    version: str
    at: str
    node: str  # the one that was asked
    verdict: Verdict  # the worst of what is current
    headline: Headline | None = None  # None: nothing is wrong
    nodes: tuple[Diagnosis, ...] = ()  # in rank order
    pair: tuple[Finding, ...] = ()  # what only both nodes together show
    absent: dict[str, str] = Field(default_factory=dict)  # node -> why it could not be asked
