"""Rows measured in several labs at once: a pair spends most of a row waiting, and a matrix takes half the time in two."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace

from tests.lab.api import Lab
from tests.lab.cli import the_lab
from tests.lab.matrix.case import Keeper, Row
from tests.lab.matrix.catalogue import Combination
from tests.lab.matrix.runner import run
from tests.lab.pair import START_S, STOP_SCALE, Pair
from tests.lab.places import Places
from tests.lab.real_engine import RealLab, pair_of

Place = Callable[[], contextlib.AbstractContextManager[Keeper]]  # a lab with somebody who keeps its pair up
JOIN_MAX_S = 600.0


@contextlib.contextmanager
def measured(places: Sequence[Place], combinations: Sequence[Combination]) -> Iterator[dict[Combination, Future[Row]]]:
    """The rows as they come, in the order of `combinations`. Ending the block early gives up what has not begun.

    Raises what kept a lab from coming up, at the end: the others have done its work.
    """
    rows: dict[Combination, Future[Row]] = {combination: Future() for combination in combinations}
    waiting, failures = deque(combinations), []

    def work(place: Place) -> None:
        try:
            with place() as keeper:
                while waiting:
                    with contextlib.suppress(IndexError):
                        _measure(combination := waiting.popleft(), keeper, rows[combination])
        except BaseException as error:  # of a thread: told where the block ends
            failures.append(error)

    threads = [threading.Thread(target=work, args=(place,), daemon=True) for place in places]
    for thread in threads:
        thread.start()
    giving_up = threading.Thread(target=_give_up, args=(threads, rows), daemon=True)
    giving_up.start()
    try:
        yield rows
    finally:
        waiting.clear()
        for thread in threads:
            thread.join(JOIN_MAX_S)
        if failures:
            raise failures[0]


def _measure(combination: Combination, keeper: Keeper, row: Future[Row]) -> None:
    try:
        row.set_result(run(*combination, keeper))
    except Exception as error:
        row.set_exception(error)


def _give_up(threads: Sequence[threading.Thread], rows: dict[Combination, Future[Row]]) -> None:
    """Nobody waits for a row that no lab is left to measure."""
    for thread in threads:
        thread.join()
    for row in rows.values():
        if not row.done():
            row.set_exception(CancelledError("no lab was left to measure this"))


def another(number: int) -> Lab:
    """Beside the lab of the environment, with the same cache."""
    places = Places.of_environment()
    name = places.name + "bcdefgh"[number - 1]
    return the_lab(replace(places, name=name, state=places.state.parent / name))


def paced(lab: Lab) -> Pair:
    """The simulated engine's start and stop are shortened; the real one takes its time."""
    if isinstance(lab, RealLab):
        return pair_of(lab)
    pair = Pair(lab)
    pair.pace(start_s=START_S, stop_scale=STOP_SCALE)
    return pair
