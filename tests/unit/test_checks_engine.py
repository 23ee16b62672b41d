"""Checks of the engine: of real processes that carry a launch id, and of what the daemon would say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from engine_plan import plan
from node_facts import LAUNCH, asked, engine, facts, only, serving

from sparkd.doctor.checks import engine as checks
from sparkd.engine.endpoint import sums
from sparkd.host.processes import EngineProcess
from sparkd.model.finding import Cure, Verdict, bad
from sparkd.model.report import Loss, Saved

FIELD = Path(__file__).parent.parent / "data" / "field"


# --- what the daemon says --------------------------------------------------------------------------


def finding(id: str, cure: Cure = Cure.PERSON) -> dict[str, Any]:
    return bad(id, f"what {id} says", cure=cure, remedy="do this").model_dump(mode="json")


@pytest.mark.parametrize(
    ("id", "layer", "symptom"),
    [
        ("unit.execstart-path", "unit", False),
        ("memory.short", "host-memory", False),
        ("port.taken", "process", False),
        ("engine.crash-loop", "engine", True),
        ("peer.rejected", "link", False),
        ("of-tomorrow.news", "engine", False),
    ],
)
def test_what_blocks_the_daemon_is_told_under_its_own_id(tmp_path: Path, id: str, layer: str, symptom: bool) -> None:
    found = only(checks.blocked, facts(tmp_path, status=serving(phase="blocked", blocked=finding(id))))
    assert (found.id, found.layer, found.symptom, found.verdict) == (id, layer, symptom, Verdict.BAD)
    assert found.remedy == "do this"


def test_what_the_daemon_waits_for_is_a_warning_yet(tmp_path: Path) -> None:
    found = only(
        checks.blocked, facts(tmp_path, status=serving(phase="preflight", waiting=finding("link.missing", Cure.WAIT)))
    )
    assert (found.id, found.verdict) == ("link.missing", Verdict.WARNING)


def test_a_healthy_daemon_is_good_and_none_is_no_answer(tmp_path: Path) -> None:
    assert asked(checks.blocked, facts(tmp_path, status=serving())) == [("good", "engine.blocked")]
    assert asked(checks.blocked, facts(tmp_path)) == []


def lost(about: Any, epoch: int = 18) -> None:
    about.paths.saved.parent.mkdir(parents=True, exist_ok=True)
    loss = Loss(epoch=epoch, finding=bad("engine.rank-died", "VLLM::Worker_TP1 is gone", cure=Cure.RELAUNCH))
    about.paths.saved.write_text(Saved(epoch=18, loss=loss).model_dump_json())


def test_the_loss_is_told_while_the_next_attempt_is_waited_for(tmp_path: Path) -> None:
    about = facts(tmp_path, status=serving(phase="backoff", serving=False))
    lost(about)
    found = only(checks.not_serving, about)
    assert (found.id, found.layer, found.symptom) == ("engine.rank-died", "engine", True)


@pytest.mark.parametrize(
    "status", [{}, {"phase": "loading", "serving": False}, {"phase": "idle", "serving": False, "run": False}]
)
def test_a_start_a_stop_and_a_serving_engine_are_no_loss(tmp_path: Path, status: dict[str, Any]) -> None:
    about = facts(tmp_path, status=serving(**status))
    lost(about)
    assert asked(checks.not_serving, about) == []


def test_a_loss_of_long_ago_is_not_the_reason(tmp_path: Path) -> None:
    about = facts(tmp_path, status=serving(phase="backoff", serving=False, reason="the next epoch in 9 s"))
    lost(about, epoch=3)
    found = only(checks.not_serving, about)
    assert found.id == "engine.not-serving" and "the next epoch in 9 s" in found.says


@pytest.mark.parametrize(("left", "verdict"), [(6, "good"), (4, "good"), (3, "warning"), (0, "warning")])
def test_few_restarts_left(tmp_path: Path, left: int, verdict: str) -> None:
    assert asked(checks.restarts, facts(tmp_path, status=serving(restarts_left=left))) == [(verdict, "engine.restarts")]


def test_a_pending_change_is_told(tmp_path: Path) -> None:
    changed = serving(pending="the configuration was changed")
    assert asked(checks.pending, facts(tmp_path, status=changed)) == [("warning", "engine.pending")]
    assert asked(checks.pending, facts(tmp_path, status=serving())) == [("good", "engine.pending")]


def test_a_silent_daemon_is_bad_and_beside_a_living_engine_a_warning(tmp_path: Path) -> None:
    about = facts(tmp_path)
    found = only(checks.silent, about)
    assert found.is_bad and found.symptom and "not running" in found.says
    about = facts(tmp_path)
    about.remember((checks.launch_id.__wrapped__,), lambda: LAUNCH)  # type: ignore[attr-defined]  # as systemd would say
    with engine(tmp_path, "vllm"):
        assert asked(checks.silent, about) == [("warning", "daemon.silent")]


def test_who_may_not_ask_the_daemon_knows_nothing_of_it(tmp_path: Path) -> None:
    about = facts(tmp_path)
    about.is_denied = True
    assert asked(checks.silent, about) == [("unknown", "daemon.silent")]


# --- what lives ------------------------------------------------------------------------------------


def test_a_whole_pair_is_good(tmp_path: Path) -> None:
    with engine(tmp_path, "vllm", "VLLM::EngineCore", "VLLM::Worker_TP0"):
        about = facts(tmp_path, status=serving())
        assert asked(checks.down, about) == [("good", "engine.down")]
        assert asked(checks.rank_dead, about) == [("good", "engine.rank-dead")]


def test_no_process_of_the_launch_that_is_meant_to_live(tmp_path: Path) -> None:
    found = only(checks.down, facts(tmp_path, status=serving()))
    assert found.is_bad and found.symptom and LAUNCH in found.says
    assert asked(checks.rank_dead, facts(tmp_path, status=serving())) == []


@pytest.mark.parametrize(
    "status", [{"phase": "launching"}, {"phase": "stopping"}, {"phase": "idle", "launch_id": None}]
)
def test_nothing_is_missed_while_it_starts_or_stops(tmp_path: Path, status: dict[str, Any]) -> None:
    assert asked(checks.down, facts(tmp_path, status=serving(**status))) == []
    assert asked(checks.down, facts(tmp_path, status=serving(), calm=True)) == []


def test_orphans_without_their_top_process(tmp_path: Path) -> None:
    with engine(tmp_path, "VLLM::EngineCore", "VLLM::Worker_TP0"):
        found = only(checks.down, facts(tmp_path, status=serving()))
    assert found.is_bad and "VLLM::EngineCore" in found.says and "lives on without it" in found.says


@pytest.mark.parametrize(
    ("rank", "titles", "gone"),
    [
        (0, ("vllm", "VLLM::EngineCore"), "VLLM::Worker"),
        (0, ("vllm", "VLLM::Worker_TP0"), "VLLM::EngineCore"),
        (1, ("vllm",), "VLLM::Worker"),
    ],
)
def test_a_dead_rank(tmp_path: Path, rank: int, titles: tuple[str, ...], gone: str) -> None:
    with engine(tmp_path, *titles):
        about = facts(tmp_path, rank=rank, status=serving())
        found = only(checks.rank_dead, about)
        loading = asked(checks.rank_dead, facts(tmp_path, rank=rank, status=serving(phase="loading")))
    assert found.is_bad and f"its {gone} is gone" in found.says
    assert loading == []


def child(title: str, argv: tuple[str, ...] = ()) -> EngineProcess:
    return EngineProcess(1, 1, title[:15], title, argv or (title,), LAUNCH, None, 0)


def test_an_image_without_titles_is_unknown_and_not_dead() -> None:
    top = child("vllm serve /m", ("vllm", "serve", "/m"))
    spawned = child(
        "python3 -c from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=5)", ("python3", "-c", "x")
    )
    tracker = child("python3 -c from multiprocessing.resource_tracker import main;main(4)", ("python3", "-c", "x"))
    assert checks.missing_ranks(plan(rank=1), [top, spawned, tracker]) is None
    assert checks.missing_ranks(plan(rank=1), [top, tracker]) == "VLLM::Worker"
    assert checks.missing_ranks(plan(rank=0, size=1), [top, child("VLLM::EngineCore")]) == ""
    assert checks.missing_ranks(plan(rank=0), [top, child("VLLM::EngineCor"), child("VLLM::Worker_TP")]) == ""


# --- what it was told ------------------------------------------------------------------------------


def test_an_engine_that_got_other_arguments_is_told_by_flag(tmp_path: Path) -> None:
    about = facts(tmp_path, status=serving())
    arguments = tuple(word.replace("131072", "4096") for word in about.plan.argv[2:])
    with engine(tmp_path, "vllm", arguments=arguments):
        found = {each.id: each.says for each in checks.as_planned.asked(about)}
    assert "--max-model-len: plan 131072, engine 4096" in found["engine.argv-differs"]
    assert "VLLM_HOST_IP" in found["engine.env-differs"]


def test_the_plan_of_the_launch_counts_and_not_the_one_on_disk(tmp_path: Path) -> None:
    about = facts(
        tmp_path, status=serving(pending="changed"), environment={"OMP_NUM_THREADS": "8"}, forbidden_environment=()
    )
    about.paths.plan.parent.mkdir(parents=True)
    assert about.cluster_plan is not None
    about.paths.plan.write_text(about.cluster_plan.model_dump_json())
    changed = facts(tmp_path, status=serving(pending="changed"), environment={"OMP_NUM_THREADS": "4"})
    with engine(tmp_path, "vllm", arguments=about.plan.argv[2:]):
        assert asked(checks.as_planned, changed) == [("good", "engine.as-planned")]
        about.paths.plan.unlink()
        again = facts(tmp_path, status=serving(), environment={"OMP_NUM_THREADS": "4"})
        assert ("bad", "engine.env-differs") in asked(checks.as_planned, again)


# --- how it does -----------------------------------------------------------------------------------


def test_recorded_metrics_of_an_idle_engine_raise_no_doubt() -> None:
    for name in ("metrics.txt", "metrics-speculative.txt"):
        counted = sums((FIELD / name).read_text())
        assert "vllm:kv_cache_usage_perc" in counted
        assert [each.verdict for each in checks.judge_cache(counted)] == [Verdict.GOOD]
        assert list(checks.judge_drafts(counted)) == []


DRAFTED, ACCEPTED = "vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"


@pytest.mark.parametrize(
    ("drafted", "accepted", "verdicts"), [(100, 0, []), (5000, 100, ["warning"]), (5000, 3500, ["good"])]
)
def test_accepted_drafts(drafted: int, accepted: int, verdicts: list[str]) -> None:
    assert [each.verdict for each in checks.judge_drafts({DRAFTED: drafted, ACCEPTED: accepted})] == verdicts


@pytest.mark.parametrize(
    ("counted", "verdict"),
    [
        ({"vllm:kv_cache_usage_perc": 1.0, "vllm:num_requests_waiting": 3}, "warning"),
        ({"vllm:kv_cache_usage_perc": 1.0, "vllm:num_requests_waiting": 0}, "good"),
        ({"vllm:num_preemptions_total": 500, "vllm:request_success_total": 1000}, "warning"),
        ({"vllm:num_preemptions_total": 5, "vllm:request_success_total": 1}, "good"),
    ],
)
def test_the_kv_cache(counted: dict[str, float], verdict: str) -> None:
    assert [str(each.verdict) for each in checks.judge_cache(counted)] == [verdict]


def test_a_finding_of_a_newer_daemon_is_unknown_and_neither_good_nor_a_crash(tmp_path: Path) -> None:
    odd = json.loads('{"id": "x.y", "verdict": "purple", "says": "?"}')
    assert asked(checks.blocked, facts(tmp_path, status=serving(blocked=odd))) == [("unknown", "engine.blocked")]


@pytest.mark.parametrize("phase", ["preflight", "armed", "loading", "proving"])
def test_why_the_epoch_before_ended_is_told_while_the_next_one_starts(tmp_path: Path, phase: str) -> None:
    about = facts(tmp_path, status=serving(phase=phase, serving=False, epoch=19))
    lost(about)
    found = only(checks.relaunching, about)
    assert (found.verdict, found.symptom) == (Verdict.WARNING, True)
    assert found.id == "engine.rank-died" and found.remedy.startswith("wait: ")
    assert found.says == f"epoch 18 ended: VLLM::Worker_TP1 is gone; epoch 19 is on its way ({phase})"


def test_an_older_loss_and_a_serving_engine_are_no_relaunch(tmp_path: Path) -> None:
    for status in (
        serving(epoch=19),
        serving(phase="loading", epoch=20),
        serving(phase="loading", epoch=19, run=False),
    ):
        about = facts(tmp_path, status=status)
        lost(about)
        assert asked(checks.relaunching, about) == []


@pytest.mark.parametrize(
    ("how", "serves", "verdicts"),
    [("refused", True, ["warning"]), ("refused", False, ["bad"]), ("unreachable", True, ["warning"]),
     ("rejected", False, ["bad"]), ("yes", True, ["good"]), ("unknown", False, [])],
)  # fmt: skip
def test_a_peer_whose_sparkd_is_silent(tmp_path: Path, how: str, serves: bool, verdicts: list[str]) -> None:
    nodes = [{"node": "spark1", "reachable": "self"}, {"node": "spark2", "reachable": how}]
    about = facts(tmp_path, status=serving(serving=serves, nodes=nodes))
    assert asked(checks.peer_silent, about) == [(verdict, "daemon.peer-silent") for verdict in verdicts]


def test_a_start_that_says_nothing_any_more(tmp_path: Path) -> None:
    about = facts(tmp_path, status=serving(phase="loading", progress={"says": "loading weights"}))
    log = about.paths.engine_log(LAUNCH)
    log.parent.mkdir(parents=True)
    log.write_text("...")
    assert asked(checks.stalled, about) == [("good", "engine.stalled")]
    long_ago = log.stat().st_mtime - 400
    os.utime(log, (long_ago, long_ago))
    found = only(checks.stalled, about)
    assert found.verdict is Verdict.WARNING and found.says.endswith("s: loading weights")


def test_a_consequence_that_the_daemon_tells_stays_one(tmp_path: Path) -> None:
    for id, symptom in (("engine-core-init-failed", True), ("engine-illegal-memory-access", False)):
        found = only(checks.blocked, facts(tmp_path, status=serving(phase="blocked", blocked=finding(id))))
        assert found.symptom is symptom, id
