"""What must survive a restart, written atomically: either the old file or the new one, never half of one.

A state directory that takes nothing (a full disk) is no reason to stop serving, nor to forget at the daemon's next start
what runs: what it refuses is kept in /run until it takes it again. Only a reboot forgets that. What somebody takes away
under the running daemon is written again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sparkd.host.files import whole, write_atomically
from sparkd.host.paths import PLAN_MAX_BYTES, Paths
from sparkd.model.invalid import first_fault
from sparkd.model.outside import parsed
from sparkd.model.plan import ClusterPlan
from sparkd.model.report import Saved

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)

STEP_MAX_S = 7 * 86400.0  # no step of a launch takes longer


def _read(path: Path, model: type[Model]) -> tuple[Model | None, str]:
    """The file's content, or None with a sentence where there is one that cannot be used."""
    try:
        return model.model_validate_json(whole(path, PLAN_MAX_BYTES)), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError) as error:  # ValidationError is a ValueError
        kept = path.with_name(path.name + ".corrupt")
        try:
            path.replace(kept)
        except OSError:
            kept = path
        return None, f"{path} could not be used and was set aside as {kept.name}: {_first_words(error)}"


def _first_words(error: Exception) -> str:
    if isinstance(error, ValidationError):
        place, fault = first_fault(error)
        return f"{place}: {fault}" if place else fault
    return str(error).splitlines()[0]


class Store:
    """The daemon's files. A lost or corrupt one costs at most a restart of the engine (invariant 10)."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self.complaints: list[str] = []  # what could not be read, for the events
        self._texts: dict[Path, str] = {}  # what must be on disk
        self._refused: set[Path] = set()  # of which this lies in /run, if anywhere
        self._writing = threading.Lock()  # the plan is saved by a step, in its lane

    def load(self) -> Saved | None:
        return self._load(self._paths.saved, Saved)

    def save(self, saved: Saved) -> None:
        """Raises OSError where it is not on disk: then it is in /run, if anywhere."""
        self._save(self._paths.saved, saved.model_dump_json(indent=1))

    def settle(self) -> list[str]:
        """Write again what the disk had refused and what is gone from it: the names of the latter. Raises OSError."""
        with self._writing:
            refused = tuple(self._refused)
            gone = [path for path in self._texts if path not in refused and not path.is_file()]
            refusals = [error for path in (*refused, *gone) if (error := self._put(path)) is not None]
        if refusals:
            raise refusals[0]
        return [path.name for path in gone]

    def load_plan(self) -> ClusterPlan | None:
        """The plan that the last launch ran: an adopted engine is compared with this one."""
        return self._load(self._paths.plan, ClusterPlan)

    def save_plan(self, plan: ClusterPlan) -> None:
        self._save(self._paths.plan, plan.model_dump_json())

    def load_learned(self) -> dict[str, float]:
        """Seconds that each step of the last good launch took on this node; empty where nothing is known."""
        try:
            learned = parsed(whole(self._paths.learned))
            durations = {str(step): float(seconds) for step, seconds in learned.items()}
        except (OSError, ValueError, AttributeError, TypeError, OverflowError):
            return {}
        known = all(math.isfinite(seconds) and 0 <= seconds <= STEP_MAX_S for seconds in durations.values())
        return durations if known else {}

    def save_learned(self, durations: dict[str, float]) -> None:
        write_atomically(self._paths.learned, json.dumps(durations))

    def _save(self, path: Path, text: str) -> None:
        with self._writing:
            self._texts[path] = text
            refusal = self._put(path)
        if refusal is not None:
            raise refusal

    def _put(self, path: Path) -> OSError | None:
        """On disk or, with the reason why not, in /run."""
        beside = self._paths.runtime / path.name
        try:
            write_atomically(path, self._texts[path])
        except OSError as error:
            self._refused.add(path)
            with contextlib.suppress(OSError):  # the first error is the one to tell
                write_atomically(beside, self._texts[path])
            return error
        self._refused.discard(path)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        return None

    def _load(self, path: Path, model: type[Model]) -> Model | None:
        """What is in /run is newer: it is there only while the disk does not take it."""
        beside = self._paths.runtime / path.name
        for place in (beside, path):
            value, complaint = _read(place, model)
            if complaint:
                self.complaints.append(complaint)
            if value is not None:
                self._texts[path] = value.model_dump_json()
                if place is beside:
                    self._refused.add(path)
                return value
        return None
