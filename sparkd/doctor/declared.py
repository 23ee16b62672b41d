"""Every check that is declared, by layer. Files are imported only when their layer is asked: some questions need few."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import cache

from sparkd.doctor.check import Check
from sparkd.model.finding import Layer, depth

MODULES = {layer: f"sparkd.doctor.checks.{layer.replace('host-', '')}" for layer in Layer}


@cache
def of_layer(layer: Layer) -> tuple[Check, ...]:
    """The checks of one layer, in the order in which its file declares them."""
    module = importlib.import_module(MODULES[layer])
    return tuple(value for value in vars(module).values() if isinstance(value, Check))


@cache
def of_pairs() -> tuple[Check, ...]:
    """The checks that compare nodes."""
    module = importlib.import_module("sparkd.doctor.checks.pair")
    return tuple(value for value in vars(module).values() if isinstance(value, Check))


def of_nodes() -> Iterator[Check]:
    """The checks that are asked of one node, lowest layer first."""
    for layer in Layer:
        yield from of_layer(layer)


def every_check() -> list[Check]:
    """All of them, lowest layer first."""
    return sorted([*of_nodes(), *of_pairs()], key=lambda each: depth(each.layer))


def find(id: str) -> Check | None:
    return next((each for each in every_check() if each.id == id), None)
