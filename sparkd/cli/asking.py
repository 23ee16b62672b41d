"""The examination that a command asks for: this node by itself and, beside it, the others through the daemons."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkd.model.errors import SparkdError

if TYPE_CHECKING:
    from sparkd.doctor.facts import Facts
    from sparkd.model.diagnosis import Diagnosis, Examination

STARTED = time.monotonic()
IN_ALL_S = 4.3  # with everything hung; beside it there is Python's own start and the printing
LOCAL_MAX_S = 3.5
THOROUGH_MAX_S = 120.0
PEER_MAX_S = 8.0  # where there is time: as long as the peer's daemon gives its own doctor


class Asking:
    """What is to be examined, and the examination itself when it is called."""

    def __init__(
        self,
        config_path: Path,
        node: str | None,
        peer: bool,
        only: Sequence[str] = (),
        skip: Sequence[str] = (),
        thorough: bool = False,
    ) -> None:
        self.config_path, self.node, self.peer = config_path, node, peer
        self.only, self.skip, self.thorough = only, skip, thorough
        self._began: float | None = STARTED  # of the first examination: Python's own start counts

    def __call__(self) -> tuple[Facts, Examination]:
        """Raises nothing that a sick node could cause: what cannot be seen is told."""
        answers: dict[str, Any] = {}
        asking = None
        if self.peer:
            asking = threading.Thread(target=_ask_peers, args=(answers,), daemon=True)
            asking.start()

        from sparkd.cli.here import facts_here
        from sparkd.doctor import examine

        began = self._began if self._began is not None else time.monotonic()
        self._began = None  # another one, after repairs, has its own time
        facts = facts_here(self.config_path, self.node)
        limit_s = self.limit_s(began)
        diagnosis = examine.diagnose(facts, only=self.only, skip=self.skip, limit_s=limit_s, thorough=self.thorough)
        if asking is not None:
            asking.join(PEER_MAX_S if limit_s > LOCAL_MAX_S else max(0.1, began + IN_ALL_S - time.monotonic()))
        peers, absent = _peers(facts, answers) if self.peer else ([], {})
        proven = bool(facts.status and facts.status.get("serving")) and not self.only
        everybody = [diagnosis, *(examine.narrowed(each, self.only, self.skip) for each in peers)]
        found = examine.together(everybody, absent, node=diagnosis.node, proven=proven, only=self.only, skip=self.skip)
        return facts, found

    def limit_s(self, began: float = STARTED) -> float:
        """What is left of the time in all. A slow check that was asked for by its name takes its own."""
        if self.thorough:
            return THOROUGH_MAX_S
        if self.only:
            from sparkd.doctor.check import find
            from sparkd.doctor.examine import SLOW_LIMIT_S

            if any(check is not None and check.slow for check in map(find, self.only)):
                return SLOW_LIMIT_S
        return max(1.0, min(LOCAL_MAX_S, began + IN_ALL_S - 0.3 - time.monotonic()))


def _ask_peers(told: dict[str, Any]) -> None:
    """The other nodes' answers as they come: node -> diagnosis or why there is none; "" -> why nobody could be asked."""
    from sparkd.cli import daemon

    try:
        for answer in daemon.stream("diagnose", timeout_s=PEER_MAX_S):
            told[str(answer.get("node", ""))] = answer
    except (SparkdError, OSError) as error:
        told[""] = {"absent": str(error)}
    else:
        told[""] = {}


def _peers(facts: Facts, answers: dict[str, Any]) -> tuple[list[Diagnosis], dict[str, str]]:
    """Those that answered, and why the others did not."""
    from pydantic import ValidationError

    from sparkd.model.diagnosis import Diagnosis

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
            absent[node] = f"its answer cannot be read: {error.errors()[0]['msg']}"
    nobody = answers.get("")
    why = "no answer in time" if nobody is None else str(nobody.get("absent") or "the daemon here did not ask it")
    heard = {each.node for each in found} | set(absent)
    for name in _other_names(facts):
        if name not in heard:
            absent[name] = why
    return found, absent


def _other_names(facts: Facts) -> Iterator[str]:
    """By the configuration, or by the daemon where that cannot be read."""
    if facts.settings is None and facts.status is not None:
        yield from (str(node["node"]) for node in facts.status["nodes"] if node["node"] != facts.status["node"])
    elif facts.settings is not None and facts.rank is not None:
        for rank, node in enumerate(facts.settings.cluster.nodes):
            if rank != facts.rank:
                yield node.name
