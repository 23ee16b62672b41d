"""What the other nodes' own doctors find, through this node's daemon; and who could not be asked, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparkd.model.errors import SparkdError

if TYPE_CHECKING:
    from sparkd.doctor.facts import Facts
    from sparkd.model.diagnosis import Diagnosis

MAX_S = 12.0  # a peer's whole doctor runs for the answer, within 8 s, and its daemon may be busy with another's

Answers = dict[str, dict[str, Any]]


def ask(answers: Answers) -> None:
    """Fills in the other nodes' answers as they come, so that a caller may stop waiting and take what has come:
    node -> diagnosis or why there is none; "" -> why nobody could be asked, when all have answered."""
    from sparkd.cli import daemon

    try:
        for answer in daemon.stream("diagnose", timeout_s=MAX_S):
            answers[str(answer.get("node", ""))] = answer
    except (SparkdError, OSError) as error:
        answers[""] = {"absent": str(error)}
    else:
        answers[""] = {}


def read(facts: Facts, answers: Mapping[str, Mapping[str, Any]]) -> tuple[list[Diagnosis], dict[str, str]]:
    """Those that answered, and why the others did not: node -> sentence."""
    from pydantic import ValidationError

    from sparkd.model.diagnosis import Diagnosis
    from sparkd.model.invalid import first_fault

    found: list[Diagnosis] = []
    absent: dict[str, str] = {}
    for node, answer in list(answers.items()):
        if not node:
            continue
        try:
            found.append(Diagnosis.model_validate(answer["diagnosis"]))
        except KeyError:
            absent[node] = str(answer.get("absent") or "its answer was empty")
        except ValidationError as error:
            absent[node] = f"its answer cannot be read: {first_fault(error)[1]}"
    nobody = answers.get("")
    why = "no answer in time" if nobody is None else str(nobody.get("absent") or "the daemon here did not ask it")
    heard = {each.node for each in found} | set(absent)
    absent |= {name: why for name in _names(facts) if name not in heard}
    return found, absent


def _names(facts: Facts) -> Iterator[str]:
    """By the configuration, or by the daemon where that cannot be read."""
    if facts.settings is None and facts.status is not None:
        yield from (str(node["node"]) for node in facts.status["nodes"] if node["node"] != facts.status["node"])
    elif facts.settings is None:
        yield "the other nodes"  # whoever they are
    elif facts.settings is not None and facts.rank is not None:
        for rank, node in enumerate(facts.settings.cluster.nodes):
            if rank != facts.rank:
                yield node.name
