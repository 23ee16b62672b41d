"""All cases, and which of them run where."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterable, Iterator

from tests.lab.matrix.case import Case, Load

SOURCES = ("cases_engine", "cases_host")

Combination = tuple[Case, str, Load]


def cases() -> tuple[Case, ...]:
    """In the order of the table. Raises ValueError where two have one id."""
    found: list[Case] = []
    for source in SOURCES:
        name = f"tests.lab.matrix.{source}"
        if importlib.util.find_spec(name) is not None:
            found += importlib.import_module(name).CASES
    ids = [case.id for case in found]
    if twice := sorted({id for id in ids if ids.count(id) > 1}):
        raise ValueError(f"cases with one id: {', '.join(twice)}")
    return tuple(found)


def combinations(chosen: Iterable[Case]) -> Iterator[Combination]:
    """Every node and every load of each."""
    for case in chosen:
        for node in case.nodes:
            for load in case.loads:
                yield case, node, load


def half(chosen: Iterable[Case], which: int = 1) -> Iterator[Combination]:
    """Every node of each, and one load for each node: idle on the head and loaded on the worker, and the other way
    round in the next case. The second half is what the first leaves out."""
    for number, case in enumerate(chosen):
        for place, node in enumerate(case.nodes):
            first = case.loads[(number + place) % len(case.loads)]
            for load in [first] if which == 1 else [load for load in case.loads if load is not first]:
                yield case, node, load


def quarter(chosen: Iterable[Case]) -> Iterator[Combination]:
    """One row of each: head and worker take turns from case to case, idle and loaded from pair to pair."""
    for number, case in enumerate(chosen):
        yield case, case.nodes[number % len(case.nodes)], case.loads[number // 2 % len(case.loads)]


def with_more_time(case: Case, more_s: float) -> Case:
    """Where the engine takes longer to start."""
    return dataclasses.replace(case, max_s=case.max_s + more_s)
