"""Bugs that are planted in a copy of `sparkd/control`, to see that the simulation finds them: one textual replacement each."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import sim
import sparkd

HUNT_MAX_S = 1800.0


class Mutant(NamedTuple):
    name: str
    file: str
    was: str
    becomes: str
    walk: str  # a walk (a function of test_walks*, test_wedge), or a schedule's file


WALKED = (
    # the barrier
    Mutant(
        "opens unarmed",
        "cluster",
        "<= ARMED_FRESH_S and _all_ready(s, now)",
        "<= ARMED_FRESH_S",
        "test_the_worker_loses_power",
    ),
    Mutant(
        "head before worker",
        "cluster",
        " and all(_alive(s, rank, now) and _is_settled(s, rank, now) for rank in s.me.workers)",
        "",
        "test_both_boot_and_the_link_comes_late",
    ),
    Mutant(
        "old report of a living engine",
        "cluster",
        "report is not None and _is_fresh(s, peer, now) and report.epoch",
        "report is not None and report.epoch",
        "test_one_of_three_loses_power_before_the_head_launches",
    ),
    Mutant(
        "a head that stood still believes what waited",
        "cluster",
        "if still_s > FRESH_S else",
        "if False else",
        "test_a_head_that_stood_still_does_not_launch_on_old_words",
    ),
    Mutant(
        "a head that stood still waits, and believes it all the same",
        "cluster",
        " and heard_at >= s.settled_at - s.me.limits.exchange_s",
        "",
        "a-worker-and-its-daemon-die-while-the-head-stands-still.txt",
    ),
    Mutant(
        "digests may differ",
        "cluster",
        "if ours != other:",
        "if not ours:",
        "test_nodes_that_differ_wait_and_look_again",
    ),
    Mutant(
        "digests may change after arming",
        "node",
        "if differs is not None:",
        "if False:",
        "test_what_was_armed_long_ago_is_checked_again",
    ),
    Mutant(
        "armed for ever",
        "node",
        "now - s.since > cluster.ARMED_FRESH_S and not s.me.is_head",
        "False",
        "test_what_was_armed_long_ago_is_checked_again",
    ),
    Mutant(
        "never looks again",
        "cluster",
        "DIFFERS_RECHECK_S = 30.0",
        "DIFFERS_RECHECK_S = 1e9",
        "test_nodes_that_differ_wait_and_look_again",
    ),
    Mutant(
        "barrier stays open over a restart",
        "starting",
        "kept = same_boot and (",
        "kept = same_boot or (",
        "test_the_heads_sparkd_restarts_between_the_barrier_and_its_launch",
    ),
    Mutant(
        "the head looks again behind its barrier",
        "cluster",
        "    if s.intent.gate is not Gate.CLOSED:\n        return False\n",
        "",
        "behind-the-barrier.txt",
    ),
    Mutant(
        "the head never follows",
        "cluster",
        "if s.intent.gate is Gate.WORKERS and all",
        "if s.intent.gate is Gate.WORKERS and False and all",
        "never-follows.txt",
    ),
    # the end of an epoch
    Mutant(
        "a worker's loss is ignored",
        "cluster",
        "if report.loss is not None and report.loss.epoch == i.epoch:",
        "if False:",
        "test_a_rank_dies_idle_on_the_worker",
    ),
    Mutant(
        "a worker that left is ignored",
        "cluster",
        "i.gate is Gate.ALL and not report.engine_alive",
        "False",
        "test_a_worker_that_lost_power_and_memory",
    ),
    Mutant(
        "a death is ignored",
        "node",
        "case EngineGone(epoch=epoch, finding=finding) if _living(s, epoch):",
        "case EngineGone(epoch=epoch, finding=finding) if False:",
        "test_a_rank_dies_idle_on_the_worker",
    ),
    Mutant(
        "not told at once",
        "node",
        "    if _told_changes(state, new):\n",
        "    if False:\n",
        "test_a_rank_dies_idle_on_the_worker",
    ),
    Mutant(
        "a lost epoch goes on here",
        "node",
        "    if s.loss is not None and s.loss.epoch >= i.epoch:\n        return None\n",
        "",
        "test_the_head_loses_power",
    ),
    Mutant(
        "a number twice", "cluster", "epoch = max(seen) + 1", "epoch = max(seen)", "test_a_rank_dies_idle_on_the_head"
    ),
    Mutant(
        "an older word is followed",
        "node",
        "or i.epoch < max(s.epoch, 1)",
        "or i.epoch < 1",
        "test_a_head_without_memory_is_not_followed_back",
    ),
    Mutant(
        "a reused number is not seen",
        "node",
        "if intent.gate is Gate.CLOSED and _living(s, intent.epoch):",
        "if False:",
        "test_a_head_that_lost_state_and_engine_learns_the_number_from_the_worker",
    ),
    # silence
    Mutant(
        "a refused connection ends the worker's half",
        "node",
        'head.reach != "unreachable"',
        'head.reach == "yes"',
        "test_a_daemon_that_stays_away_leaves_the_engine_alone",
    ),
    Mutant(
        "five seconds of silence end the worker's half",
        "node",
        "now - head.since <= s.me.limits.link_loss_max_s",
        "now - head.since <= 1.0",
        "test_the_link_drops_for_five_seconds",
    ),
    Mutant(
        "silence alone ends the head's half",
        "serving",
        "now - peer.since > s.me.limits.link_loss_max_s and alive_at <= peer.since",
        "now - peer.since > 1.0",
        "test_the_link_drops_for_five_seconds",
    ),
    Mutant(
        "silence never ends the worker's half",
        "node",
        "    head = s.peers.get(0)\n",
        "    head = None\n",
        "test_the_head_loses_power",
    ),
    Mutant(
        "launches for a head that is silent",
        "node",
        'if not s.me.is_head and s.peers.get(0, Peer()).reach != "yes":',
        "if False:",
        "test_a_worker_launches_nothing_for_a_head_that_is_silent",
    ),
    Mutant(
        "silence during a start is borne for ever",
        "cluster",
        "return _vanished(s, now)",
        "return None",
        "test_the_worker_loses_power_while_the_head_loads",
    ),
    # time-outs, hangs, proofs
    Mutant("start without limit", "node", "> s.me.limits.start_max_s", "> 1e9", "test_an_engine_that_never_appears"),
    Mutant("load without limit", "node", "> s.me.limits.load_max_s", "> 1e9", "test_an_engine_that_never_listens"),
    Mutant(
        "canaries are not believed",
        "serving",
        "unanswered_since=sent_at if first else s.unanswered_since",
        "unanswered_since=None",
        "test_the_engine_hangs",
    ),
    Mutant("no canaries", "serving", "if s.canary_at is None and", "if False and", "test_the_engine_hangs"),
    Mutant(
        "resting counters hang",
        "serving",
        "max(s.moved_at, min(waits))",
        "s.moved_at",
        "test_a_compilation_that_nobody_sees_on_an_idle_engine",
    ),
    Mutant(
        "serves without a proof",
        "node",
        "    if s.me.is_head and s.ready:\n        return enter(s, Phase.PROVING, now, [])",
        "    if s.me.is_head and s.ready:\n        return enter(s, Phase.SERVING, now, [])",
        "test_both_boot_and_the_link_comes_late",
    ),
    Mutant(
        "a stop is asked once",
        "node",
        "return None if s.busy or now < s.retry_at else ask(s, Phase.STOPPING, now)",
        "return None",
        "test_a_stop_that_fails_is_asked_again",
    ),
    Mutant(
        "old answers count", "node", "s.busy and event.ticket == s.ticket", "s.busy", "test_restart_while_preparing"
    ),
    # the budget and what needs a person
    Mutant(
        "no budget",
        "cluster",
        "return s.restarts_used > s.me.limits.restarts_max",
        "return False",
        "test_crash_loop",
    ),
    Mutant("budget forgotten", "starting", "restarts_used=was.restarts_used,", "restarts_used=0,", "test_crash_loop"),
    Mutant(
        "no delay",
        "cluster",
        'wait_s = 0.0 if s.phase is Phase.SERVING else backoff.delay_s(used, s.me.limits, f"{s.me.node}/{i.epoch}")',
        "wait_s = 0.0",
        "test_delays_grow_and_serving_refills_the_budget",
    ),
    Mutant(
        "a person's work is tried again",
        "node",
        "lost.finding.cure is Cure.PERSON and s.intent.run",
        "False",
        "test_what_only_the_log_tells_blocks_after_one_start",
    ),
    Mutant(
        "a stop that was cut short asks for no person",
        "node",
        "s.loss.epoch == ended else None",
        "s.loss.epoch == s.epoch else None",
        "test_a_stop_that_is_cut_short_still_asks_for_a_person",
    ),
    Mutant(
        "a boot mends what a person has to",
        "starting",
        "if died is not None and",
        "if False and",
        "test_a_boot_mends_nothing_that_a_person_has_to",
    ),
    Mutant(
        "a bad input is tried again",
        "node",
        "if finding.cure is Cure.PERSON:",
        "if False:",
        "test_a_missing_script_blocks_and_clears_by_itself",
    ),
    Mutant(
        "blocked for ever",
        "node",
        '    why = "what blocked it',
        '    return s, []\n    why = "what blocked it',
        "test_a_missing_script_blocks_and_clears_by_itself",
    ),
    Mutant(
        "a check hides what needs a person",
        "node",
        "    if not s.blocked_by_check and event.fingerprint",
        "    if not s.blocked_by_check and event.finding is None and event.fingerprint",
        "a-check-hides-what-needs-a-person.txt",
    ),
    Mutant(
        "a hold is a loss",
        "node",
        "        return replace(s, restarts_used=0), [note]\n",
        "        return lose(s, bad(note.id, note.says, cure=Cure.RELAUNCH), now)\n",
        "calm.txt",
    ),
    # the daemon's restart
    Mutant(
        "acts before it saves",
        "node",
        "actions.insert(0, Save(kept))",
        "actions.append(Save(kept))",
        "saved-too-late.txt",
    ),
    Mutant(
        "never adopts",
        "starting",
        "and launched in event.intact and",
        "and False and",
        "test_sparkd_restarts_while_serving",
    ),
    Mutant(
        "adopts a part",
        "starting",
        "and launched in event.intact and",
        "and",
        "test_a_rank_dies_while_its_daemon_is_away",
    ),
    Mutant(
        "another boot is the same",
        "starting",
        "same_boot = was.boot_id == s.me.boot_id",
        "same_boot = True",
        "test_both_lose_power",
    ),
    Mutant(
        "leftovers live on",
        "starting",
        "    if strange:\n",
        "    if False:\n",
        "test_a_stale_engine_is_stopped_even_where_nothing_is_wanted",
    ),
    Mutant("a stop is forgotten", "starting", '"run": was.run,', '"run": True,', "test_stop_and_start"),
    # the wedge
    Mutant(
        "gauges do not count",
        "serving",
        "if counters.movement != old.movement or counters.gauges != old.gauges:",
        "if counters.movement != old.movement:",
        "test_a_long_prefill_in_chunks",
    ),
    Mutant(
        "tokens do not count",
        "serving",
        "if counters.movement != old.movement or counters.gauges != old.gauges:",
        "if counters.gauges != old.gauges:",
        "test_a_full_cache_with_progress",
    ),
    Mutant(
        "work is not seen",
        "wedge",
        "    if work is not None:\n",
        "    if False:\n",
        "test_a_first_shape_compilation",
    ),
    Mutant(
        "a compiler is no work",
        "wedge",
        'Sign(Says.WORK, f"a compiler',
        'Sign(Says.REST, f"a compiler',
        "test_a_first_shape_compilation",
    ),
    Mutant(
        "power is no work",
        "wedge",
        "if v.gpu_watts >= WORKING_W:",
        "if False:",
        "test_a_long_prefill_in_one_step_where_the_link_cannot_be_counted",
    ),
    Mutant(
        "what is not known is no doubt",
        "wedge",
        "asked and hang and not unknown and",
        "asked and hang and",
        "test_a_compilation_on_a_worker_whose_daemon_is_away",
    ),
    Mutant(
        "one limit for all",
        "wedge",
        "if asked and s.quiet_s > blind_max_s:",
        "if asked and s.quiet_s > limits.hang_max_s:",
        "test_a_compilation_that_nobody_sees_on_an_idle_engine",
    ),
    Mutant(
        "never without a witness",
        "wedge",
        "if asked and s.quiet_s > blind_max_s:",
        "if False:",
        "test_a_hang_that_nobody_sees",
    ),
    Mutant(
        "work has no end",
        "wedge",
        "if asked and s.still_s > max(limits.work_max_s, blind_max_s):",
        "if False:",
        "test_a_compilation_without_end",
    ),
    Mutant(
        "nobody is asked to look",
        "cluster",
        "        s.doubt and s.phase in (Phase.PROVING, Phase.SERVING),\n",
        "        False,\n",
        "test_a_hang_is_found_soon",
    ),
    Mutant(
        "a spin is no sign",
        "wedge",
        "v.gpu_percent >= SPIN_PERCENT and",
        "False and",
        "test_a_hang_is_found_soon",
    ),
    Mutant(
        "what was seen is forgotten",
        "serving",
        "now - max(still_since, s.worked_at)",
        "now - still_since",
        "test_work_between_two_looks",
    ),
    Mutant(
        "a late proof is a failed one",
        "node",
        'finding.id == "endpoint.timeout" and serving.may_still_work(s, now)',
        "False",
        "test_a_compilation_that_the_proof_sets_off",
    ),
    Mutant(
        "an adopted engine has to be quick",
        "serving",
        "limits.hang_blind_max_s if adopted else 0.0",
        "0.0",
        "test_sparkd_restarts_while_the_engine_is_busy",
    ),
    # what random schedules hardly ever meet
    Mutant(
        "one leftover of several is stopped",
        "starting",
        "leftovers=epochs[1:]",
        "leftovers=()",
        "test_of_several_leftovers_each_is_stopped",
    ),
    Mutant(
        "a boot during a start costs nothing",
        "starting",
        "s = replace(s, restarts_used=s.restarts_used + 1)",
        "pass",
        "test_a_boot_during_a_start_costs_one_of_the_budget",
    ),
    Mutant(
        "believes what the worker has not said",
        "cluster",
        'peer.reach == "yes" and peer.heard_at',
        "peer.heard_at",
        "test_one_of_three_falls_silent_before_the_head_launches",
    ),
)

HUNTED = (
    Mutant(
        "a step that failed is good enough",
        "node",
        'return enter(s, Phase.BACKOFF, now, [Note(finding.id, f"{finding.says}; again',
        'return enter(s, NEXT_STEP[s.phase], now, [Note(finding.id, f"{finding.says}; again',
        "",
    ),
    Mutant(
        "an older word undoes a newer",
        "node",
        "        return 0 < told.at < known.at and",
        "        return False and",
        "",
    ),
    Mutant(
        "prepares beside its launch",
        "node",
        "    if s.launch is None:\n        return enter(",
        "    if True:\n        return enter(",
        "",
    ),
    Mutant("stops what it never started", "moves", "s.launch.epoch if s.launch else s.epoch)", "s.epoch + 1)", ""),
    Mutant("an end costs nothing", "cluster", "used = s.restarts_used + (", "used = s.restarts_used + 0 * (", ""),
)


MUTANTS = (*WALKED, *HUNTED)
# What matters most: each has to be found by random schedules alone, within the budget of CI.
_TEN = (
    "head before worker",  # the barrier
    "a lost epoch goes on here",  # fencing
    "stops what it never started",  # ownership
    "adopts a part",  # adoption
    "budget forgotten",  # the budget
    "no canaries",  # a proof's age
    "a person's work is tried again",  # blocked
    "leftovers live on",  # a lost state file
    "another boot is the same",  # the boot id
    "silence never ends the worker's half",  # a link that is gone, one way or both
)
TEN = tuple(mutant for mutant in MUTANTS if mutant.name in _TEN)


# One planted bug and a scenario that break exactly this invariant.
SHOWS = {
    1: ("leftovers live on", "unheld.txt"),
    2: ("the head looks again behind its barrier", "behind-the-barrier.txt"),
    3: ("a step that failed is good enough", "no-memory.txt"),
    4: ("digests may differ", "differs.txt"),
    5: ("serves without a proof", "unproven.txt"),
    6: ("budget forgotten", "budget.txt"),
    7: ("stops what it never started", "not-ours.txt"),
    8: ("five seconds of silence end the worker's half", "five-seconds.txt"),
    9: ("blocked for ever", "blocked.txt"),
    10: ("acts before it saves", "saved-too-late.txt"),
}


def plant(mutant: Mutant, directory: Path) -> dict[str, str]:
    """A copy of control with the bug in `directory`; the environment in which Python imports that one."""
    package = Path(sparkd.__file__).parent
    for part in ("control", "model"):
        shutil.copytree(package / part, directory / "sparkd" / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(package / "__init__.py", directory / "sparkd")
    source = directory / "sparkd" / "control" / f"{mutant.file}.py"
    text = source.read_text()
    if mutant.was not in text:
        raise AssertionError(f"the guard has changed: plant this bug anew ({mutant.was!r})")
    source.write_text(text.replace(mutant.was, mutant.becomes))
    return {"PYTHONPATH": f"{directory}:{Path(sim.__file__).parent.parent}", "PYTHONDONTWRITEBYTECODE": "1"}


class Found(NamedTuple):
    tried: int  # schedules, the one that found it included
    seed: int | None  # None: not found
    invariant: int | None
    what: str


def search(mutant: Mutant, directory: Path, first: int, count: int) -> Found:
    """Random schedules alone, from seed `first` on, against the planted bug."""
    environment = {**os.environ, **plant(mutant, directory)}
    argv = [sys.executable, "-m", "sim.hunt", str(first), str(count)]
    done = subprocess.run(argv, env=environment, cwd=directory, capture_output=True, text=True, timeout=HUNT_MAX_S)
    if done.returncode != 0:
        raise AssertionError(f"the search for {mutant.name!r} failed:\n{done.stderr}")
    return Found(**json.loads(done.stdout))
