"""Two boundaries, and what a person is told of their differences."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparkd.doctor import drift
from sparkd.doctor.drift import PLACES, SECRET_MARK, changes, shortened
from sparkd.model.diagnosis import Boundary

GROUPS = st.dictionaries(
    st.sampled_from([*PLACES, "of-a-newer-sparkd"]),
    st.dictionaries(st.sampled_from(["a", "b", "VLLM_X", "--flag", "release"]), st.text(max_size=300), max_size=4),
    max_size=6,
)
UNSEEN = st.dictionaries(st.sampled_from(list(PLACES)), st.just("Docker does not answer"), max_size=3)


def boundary(groups: dict[str, dict[str, str]], unseen: dict[str, str] | None = None) -> Boundary:
    return Boundary(node="spark1", at="2026-11-21T10:53:04Z", groups=groups, unseen=unseen or {})


BOUNDARIES = st.builds(boundary, GROUPS, UNSEEN)


def compared(a: Boundary, b: Boundary) -> set[str]:
    return (a.groups.keys() & b.groups.keys()) - a.unseen.keys() - b.unseen.keys()


@given(BOUNDARIES, BOUNDARIES)
def test_what_appeared_one_way_is_gone_the_other_way(a: Boundary, b: Boundary) -> None:
    there = {(c.group, c.name, c.before, c.after, c.suspicion) for c in changes(a, b)}
    back = {(c.group, c.name, c.after, c.before, c.suspicion) for c in changes(b, a)}
    assert there == back


@given(BOUNDARIES, BOUNDARIES)
def test_there_is_nothing_to_tell_exactly_where_what_could_be_compared_is_equal(a: Boundary, b: Boundary) -> None:
    groups = compared(a, b)
    equal = all(a.groups[group] == b.groups[group] for group in groups)
    found = changes(a, b)
    assert (not found) == equal
    assert {change.group for change in found} <= groups


@given(BOUNDARIES, BOUNDARIES)
def test_the_most_suspicious_comes_first_and_both_values_are_told_apart(a: Boundary, b: Boundary) -> None:
    found = changes(a, b)
    assert [c.suspicion for c in found] == sorted((c.suspicion for c in found), reverse=True)
    assert all(0 <= c.suspicion <= 100 and c.says and c.before != c.after for c in found)


def says(group: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [change.says for change in changes(boundary({group: before}), boundary({group: after}))]


def test_sentences() -> None:
    fork = {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}
    assert says("environment", {}, fork) == ["VLLM_WORKER_MULTIPROC_METHOD=fork is new in the plan's environment"]
    assert says("environment", fork, {}) == ["VLLM_WORKER_MULTIPROC_METHOD=fork is gone from the plan's environment"]
    assert says("link", {"mtu": "9000"}, {"mtu": "1500"}) == ["the link's mtu was 9000, is 1500"]
    assert says("units", {"a.service Restart": "no"}, {}) == ["a.service Restart is gone (was no)"]
    assert says("kernel", {}, {"parameter kho": "off"}) == ["the kernel's parameter kho is new: off"]
    assert says("writable-layer", {"/opt/x.py": "added 12"}, {}) == [
        "/opt/x.py is gone from the container's writable layer"
    ]
    assert says("argv", {"--enforce-eager": "set"}, {}) == ["--enforce-eager set is gone from the plan's arguments"]


def test_a_secret_is_told_of_and_not_told() -> None:
    one, other = f"{SECRET_MARK}0123456789ab", f"{SECRET_MARK}ba9876543210"
    for before, after in (({"K": one}, {"K": other}), ({}, {"K": one}), ({"K": one}, {})):
        (sentence,) = says("environment", before, after)
        assert "K" in sentence and "secret" in sentence and "0123456789ab" not in sentence


def test_what_the_engine_got_is_told_once_where_the_plan_says_the_same() -> None:
    before = boundary({"argv": {"--port": "8000"}, "engine-argv": {"--port": "8000"}})
    same = boundary({"argv": {"--port": "8001"}, "engine-argv": {"--port": "8001"}})
    other = boundary({"argv": {"--port": "8000"}, "engine-argv": {"--port": "8001"}})
    assert [change.group for change in changes(before, same)] == ["argv"]
    assert [change.group for change in changes(before, other)] == ["engine-argv"]


def test_a_digest_comes_after_the_words_that_explain_it_and_alone_it_is_suspicious() -> None:
    before = {"script": {"of the plan": "a" * 64}, "environment": {"X": "1"}}
    explained = changes(boundary(before), boundary({"script": {"of the plan": "b" * 64}, "environment": {"X": "2"}}))
    assert [change.group for change in explained] == ["environment", "script"] and explained[1].suspicion < 50
    (alone,) = changes(boundary(before), boundary({**before, "script": {"of the plan": "b" * 64}}))
    assert alone.suspicion > 80 and alone.after == "b" * 12


def test_the_variable_that_broke_it_before_is_the_most_suspicious_of_all() -> None:
    numbers = {drift.suspicion(group, name) for group in PLACES for name in ("x", "release", "--port", "NCCL_DEBUG")}
    assert drift.suspicion("environment", "VLLM_WORKER_MULTIPROC_METHOD") > max(numbers)
    assert drift.suspicion("sysctls", "net.core.rmem_max") < drift.suspicion("driver", "module nvidia")
    assert drift.suspicion("sparkd", "version") < drift.suspicion("sysctls", "vm.swappiness")


@given(st.text(min_size=1, max_size=400), st.text(min_size=1, max_size=400), st.integers(60, 200))
def test_long_values_are_cut_around_their_first_difference(a: str, b: str, max_chars: int) -> None:
    cut = shortened(a, b, max_chars=max_chars)
    assert len(cut) <= max_chars + 6
    if a != b:
        assert cut != shortened(b, a, max_chars=max_chars)


def test_what_could_not_be_seen_is_told_with_its_side() -> None:
    before, after = boundary({}, {"image": "no Docker"}), boundary({}, {"units": "no systemd"})
    assert drift.unseen(before, after) == {"image": "when the baseline was taken: no Docker", "units": "no systemd"}
