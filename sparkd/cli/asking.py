"""The examination that a command asks for: this node by itself and, beside it, the others through the daemons."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparkd.cli import others

if TYPE_CHECKING:
    from sparkd.doctor.facts import Facts
    from sparkd.model.diagnosis import Examination

STARTED = time.monotonic()
IN_ALL_S = 4.3  # with everything hung; beside it there is Python's own start and the printing
LOCAL_MAX_S = 3.5
THOROUGH_MAX_S = 120.0


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
        answers: others.Answers = {}
        asking = None
        if self.peer:
            asking = threading.Thread(target=others.ask, args=(answers,), daemon=True)
            asking.start()

        from sparkd.cli.here import facts_here
        from sparkd.doctor import examine

        began = self._began if self._began is not None else time.monotonic()
        self._began = None  # another one, after repairs, has its own time
        facts = facts_here(self.config_path, self.node)
        limit_s = self.limit_s(began)
        diagnosis = examine.diagnose(facts, only=self.only, skip=self.skip, limit_s=limit_s, thorough=self.thorough)
        if asking is not None:
            asking.join(others.MAX_S if limit_s > LOCAL_MAX_S else max(0.1, began + IN_ALL_S - time.monotonic()))
        peers, absent = others.read(facts, answers) if self.peer else ([], {})
        proven = bool(facts.status and facts.status.get("serving")) and not self.only
        everybody = [diagnosis, *(examine.narrowed(each, self.only, self.skip) for each in peers)]
        found = examine.together(everybody, absent, node=diagnosis.node, proven=proven, only=self.only, skip=self.skip)
        return facts, found

    def limit_s(self, began: float = STARTED) -> float:
        """What is left of the time in all. A slow check that was asked for by its name takes its own."""
        if self.thorough:
            return THOROUGH_MAX_S
        if self.only:
            from sparkd.doctor.declared import find
            from sparkd.doctor.examine import SLOW_LIMIT_S

            if any(check is not None and check.slow for check in map(find, self.only)):
                return SLOW_LIMIT_S
        return max(1.0, min(LOCAL_MAX_S, began + IN_ALL_S - 0.3 - time.monotonic()))
