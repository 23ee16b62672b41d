"""A lab whose containers hold the real vLLM, beside that of the other tests. Opt-in: 3 GB are fetched, once, and it is slow."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.matrix.sparkd_keeper import SparkdKeeper
from tests.lab.pair import Pair
from tests.lab.places import Places
from tests.lab.real_engine import RealLab, pair_of


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    places = Places.of_environment()
    lab = RealLab(Places("real", places.state.with_name("real"), places.cache))
    with lab.reserved():
        yield pair_of(lab)
    if not os.environ.get("SPARKD_LAB_KEEP"):
        lab.down()


@pytest.fixture
def serving(pair: Pair) -> Pair:
    SparkdKeeper(pair).bring_up()
    return pair
