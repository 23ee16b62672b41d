"""Layer engine: does the launch that is meant to live do so, whole, and as it was told to?

The daemon knows more of a launch than can be seen at one look, so its own finding is passed through under its own id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from sparkd.doctor.catalogue import record
from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.facts import DOOR_MAX_S, Facts, engine_processes, fact, launch_id, unit_state
from sparkd.engine import api_key, process
from sparkd.engine.endpoint import Endpoint
from sparkd.host import processes
from sparkd.host.files import whole
from sparkd.host.paths import PLAN_MAX_BYTES
from sparkd.host.processes import EngineProcess
from sparkd.model.diagnosis import Kind
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import LAYERS, Cure, Finding, Layer, Verdict, Who
from sparkd.model.plan import ClusterPlan, Plan
from sparkd.model.report import Saved

LIVING = ("loading", "proving", "serving")  # phases in which the engine's process must live
WHOLE = ("proving", "serving")  # phases in which every rank of it must
STARTING = ("preflight", "clean", "container", "stage", "armed", "launching", "loading", "proving")
BETWEEN = ("backoff", "idle", "stopping")  # phases in which the last loss is still the news
SILENT_MAX_S = 300.0  # of a start: compiling and tuning say nothing for a minute or two
DRAFTS_MIN = 2000  # draft tokens before their acceptance means anything
ACCEPTED_MIN = 0.30  # below it a draft costs more than it gives
KV_FULL = 0.98
PREEMPTED_MAX, PREEMPTED_MIN = 0.2, 20  # of completed requests; and so many at least
# Findings of the daemon that say that a launch went wrong and not why: a root from anywhere comes before them.
_VAGUE = frozenset((
    "engine.lost", "engine.rank-died", "engine.start-timeout", "engine.load-timeout",
    "engine.crash-loop", "engine.hung", "peer.left-epoch", "peer.unreachable", "node.booted", "endpoint.timeout",
    "endpoint.unreachable", "endpoint.error", "endpoint.health", "step.failed", "step.unreachable",
))  # fmt: skip
# Layers of the daemon's own ids where the word before the dot is no layer's.
_LAYER_OF = {
    "peer": "link", "node": "engine", "state": "engine", "step": "engine", "config": "script", "memory": "host-memory",
    "port": "process", "canary": "endpoint", "daemon": "engine",
}  # fmt: skip


def layer_of(id: str) -> str:
    """The layer in which a finding of that id is told."""
    word = id.partition(".")[0]
    return word if word in LAYERS else _LAYER_OF.get(word, Layer.ENGINE.value)


def told(facts: Facts, what: str) -> Finding | None:
    """The daemon's own finding: `blocked` or `waiting`. UnreachableError where a newer daemon tells it in a new form."""
    raw = (facts.status or {}).get(what)
    try:
        return None if raw is None else _placed(Finding.model_validate(raw))
    except ValidationError:
        raise UnreachableError(
            f"the daemon is {what}, and this version cannot read why", hint="sparkd status"
        ) from None


def _placed(finding: Finding) -> Finding:
    is_symptom = finding.symptom or finding.id in _VAGUE or _is_consequence(finding.id)
    return finding.model_copy(update={"layer": finding.layer or layer_of(finding.id), "symptom": is_symptom})


def _is_consequence(id: str) -> bool:
    """By the catalogue, from which the daemon takes what the end of an engine means."""
    known = record(id) if "." not in id else None
    return known is not None and known.kind is Kind.CONSEQUENCE


# --- what the daemon says ------------------------------------------------------------------------


@check(
    "engine.blocked",
    layer=Layer.ENGINE,
    question="Does nothing keep the daemon from launching?",
    how="`sparkd status`: the finding that it is blocked by, or waits for",
    means="The daemon has stopped trying, because a relaunch cannot cure it, or waits for something that should come by "
    "itself. The finding is told under its own id.",
    remedy="sparkd status",
    sample="unit.execstart-path: vllm-ds4-head.service calls /opt/run.sh, which does not exist",
)
def blocked(facts: Facts) -> Answers:
    if facts.status is None or facts.calm:
        return
    stopped, waiting = told(facts, "blocked"), told(facts, "waiting")
    if stopped is not None:
        yield stopped
    elif waiting is not None:
        # It comes by itself, or a limit makes a loss of it: not yet bad, unless a check of its own says so.
        yield waiting.model_copy(update={"verdict": Verdict.WARNING})
    else:
        yield yes(f"the daemon is not blocked ({facts.phase or 'no phase'})")


@fact
def saved(facts: Facts) -> Saved | None:
    """What the daemon keeps over restarts; None where there is none. Raises OSError where it may not be read."""
    try:
        return Saved.model_validate_json(whole(facts.paths.saved))
    except (FileNotFoundError, ValidationError):
        return None


@check(
    "engine.not-serving",
    layer=Layer.ENGINE,
    question="Did the last launch end as it should?",
    how="the daemon's state file: the loss that ended the last epoch, while nothing serves",
    means="The last launch was lost and the next one has not begun. The loss is told under its own id.",
    remedy="sparkd events; sparkd logs",
    sample="engine.rank-died: VLLM::Worker_TP1 (pid 812) is gone",
)
def not_serving(facts: Facts) -> Answers:
    status = facts.status
    if status is None or facts.calm or status.get("serving") or not status.get("run"):
        return
    if facts.phase not in BETWEEN or status.get("blocked"):
        return
    kept = saved(facts)
    if kept is not None and kept.loss is not None and kept.loss.epoch >= int(status.get("epoch") or 0):
        yield _placed(kept.loss.finding)
    elif facts.phase == "backoff":
        says = f"nothing serves: {status.get('reason') or 'the daemon waits before the next attempt'}"
        yield doubtful(says).model_copy(update={"symptom": True})


@check(
    "engine.relaunching",
    layer=Layer.ENGINE,
    question="Is this launch the first after one that ended as it should?",
    how="the daemon's state file: the loss that ended the epoch before, while the next one is prepared or starts",
    means="The engine was lost and comes back by itself. Clients wait meanwhile; what ended it may do so again. The loss is told "
    "under its own id.",
    remedy="wait: sparkd wait --ready; meanwhile: sparkd events",
    sample="epoch 18 ended: VLLM::Worker_TP1 was killed by signal 9; epoch 19 is loading",
    who=Who.SPARKD,
    cure=Cure.WAIT,
    symptom=True,
)
def relaunching(facts: Facts) -> Answers:
    status = facts.status
    if status is None or facts.calm or not status.get("run") or facts.phase not in STARTING:
        return
    kept, epoch = saved(facts), int(status.get("epoch") or 0)
    if kept is not None and kept.loss is not None and kept.loss.epoch == epoch - 1:
        lost = _placed(kept.loss.finding)
        says = f"epoch {epoch - 1} ended: {lost.says}; epoch {epoch} is on its way ({facts.phase})"
        remedy = f"wait: sparkd wait --ready; if it happens again: {lost.remedy or 'sparkd events'}"
        told = {"verdict": Verdict.WARNING, "says": says, "remedy": remedy, "who": Who.SPARKD, "symptom": True}
        yield lost.model_copy(update=told)


@check(
    "engine.restarts",
    layer=Layer.ENGINE,
    question="Has the head most of its restarts left?",
    how="`sparkd status` on the head: restarts_left against limits.restarts_max",
    means="Launches were lost again and again. With the budget spent sparkd stops trying and waits for a person.",
    remedy="sparkd events; find why launches are lost before `sparkd start` refills the budget",
    sample="1 of 6 restarts is left: launches were lost again and again",
    symptom=True,
)
def restarts(facts: Facts) -> Answers:
    left = (facts.status or {}).get("restarts_left")
    if left is None or facts.settings is None or facts.calm:
        return
    most = facts.settings.limits.restarts_max
    if int(left) <= most // 2:
        yield doubtful(
            f"{left} of {most} restarts {'is' if left == 1 else 'are'} left: launches were lost again and again"
        )
    else:
        yield yes(f"{left} of {most} restarts are left")


@check(
    "engine.pending",
    layer=Layer.ENGINE,
    question="Does the engine run what the configuration says now?",
    how="`sparkd status`: pending",
    means="The files were changed after the launch. The change takes effect by the next restart, and a reboot is one.",
    remedy="sparkd config check; sparkd restart (or put the files back)",
    sample="the configuration was changed; `sparkd restart` brings it into effect",
    symptom=True,
)
def pending(facts: Facts) -> Answers:
    if facts.status is None or facts.calm:
        return
    change = facts.status.get("pending")
    yield doubtful(str(change)) if change else yes("no change of the configuration waits for a restart")


@check(
    "daemon.silent",
    layer=Layer.ENGINE,
    question="Does this node's sparkd answer?",
    how="its local socket; where it is silent, the state of sparkd.service",
    means="Nobody supervises the engine on this node: a lost rank is not noticed, and the other node cannot launch without it.",
    remedy="systemctl start sparkd; journalctl -u sparkd -n 50",
    sample="sparkd is not running on this node (sparkd.service: failed (failed), Result: exit-code, status=64)",
    symptom=True,
)
def silent(facts: Facts) -> Answers:
    if facts.calm:
        return
    if facts.status is not None:
        yield yes(f"sparkd answers (phase {facts.phase})")
        return
    if facts.is_denied:
        yield cannot_tell(facts.without_daemon, remedy="sudo sparkd doctor")
        return
    state = _unit_says(facts)
    if state.startswith("inactive"):
        return  # unit.not-running tells it
    says = f"{facts.without_daemon or 'sparkd does not answer on this node'}{f' (sparkd.service: {state})' if state else ''}"
    if engine_of(facts):
        yield doubtful(f"{says}; the engine lives on without its supervisor")
    else:
        yield no(says)


@check(
    "daemon.peer-silent",
    layer=Layer.ENGINE,
    question="Do the other nodes' sparkds answer this one's?",
    how="`sparkd status`: how each of the other daemons was last met",
    means="The other machine lives and its sparkd does not answer: nobody supervises its half of the engine, and no launch can "
    "begin.",
    remedy="on the other node: systemctl start sparkd; journalctl -u sparkd -n 50",
    sample="sparkd on spark2 does not answer, although its host lives",
    symptom=True,
    after=("link.peer-silent", "link.carrier", "link.address", "link.missing"),
)
def peer_silent(facts: Facts) -> Answers:
    if facts.status is None or facts.calm:
        return
    met = {str(node.get("node")): str(node.get("reachable")) for node in facts.status.get("nodes") or ()}
    answer = doubtful if facts.status.get("serving") else no
    for node, how in met.items():
        if how == "refused":
            remedy = f"on {node}: systemctl start sparkd; journalctl -u sparkd -n 50"
            yield answer(f"sparkd on {node} does not answer, although its host lives", remedy=remedy)
        elif how == "unreachable":
            yield answer(
                f"nothing answers sparkd's questions at {node}", remedy=f"is {node} on? sparkd doctor --only link"
            )
        elif how == "rejected":
            remedy = "compare `sparkd key status`, /etc/sparkd and `sparkd --version` on both nodes"
            yield answer(f"{node} and this node refuse each other's messages", remedy=remedy)
        elif how == "yes":
            yield yes(f"sparkd on {node} answers")


def _unit_says(facts: Facts) -> str:
    try:
        return unit_state(facts, "sparkd.service").says
    except SparkdError:
        return ""


# --- what lives ----------------------------------------------------------------------------------


def engine_of(facts: Facts) -> list[EngineProcess]:
    """Every process of the launch that is meant to live here."""
    launch = launch_id(facts)
    return [one for one in engine_processes(facts) if launch is not None and one.launch_id == launch]


def top_of(found: Iterable[EngineProcess]) -> EngineProcess | None:
    """`vllm serve` itself: the one without a parent like it (a child just forked has its parent's command line)."""
    tops = sorted((one for one in found if processes.is_top(one)), key=lambda one: one.start_ticks)
    return tops[0] if tops else None


def is_meant_to_live(facts: Facts) -> bool:
    """A launch that is past its start: the daemon says so, or systemd where there is no daemon."""
    if facts.calm:
        return False
    return facts.phase in LIVING if facts.status is not None else launch_id(facts) is not None


@check(
    "engine.down",
    layer=Layer.ENGINE,
    question="Does the engine of the launch that is meant to live run?",
    how="/proc/*/environ: a process with the launch's id; the daemon's phase, or systemd's word where there is no daemon",
    means="The engine is gone while the daemon, its unit or its container still look fine: vLLM exits with status 0 after a "
    "crash, and `docker exec` may outlive it.",
    remedy="sparkd logs; sparkd events",
    sample="launch 3f2a91bc-18 is meant to live, and no process of it does",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("unit.engine-gone",),
    symptom=True,
)
def down(facts: Facts) -> Answers:
    launch = launch_id(facts)
    if launch is None or not is_meant_to_live(facts):
        return
    found = engine_of(facts)
    unread = [one for one in engine_processes(facts) if one.launch_id is None and processes.is_engine_proper(one)]
    if not found and unread and os.geteuid() != 0:
        yield cannot_tell("whose the engine's processes are: only root may read it", remedy="sudo sparkd doctor")
    elif not found:
        yield no(f"launch {launch} is meant to live, and no process of it does")
    elif top_of(found) is None:
        orphans = ", ".join(f"{one.name} (pid {one.pid})" for one in found[:3])
        yield no(f"the top process of launch {launch} is gone; {orphans} lives on without it")
    else:
        yield yes(f"launch {launch} lives ({len(found)} processes)")


@check(
    "engine.stalled",
    layer=Layer.ENGINE,
    question="Does the start of the engine get on?",
    how="when the launch's log was last written, while the daemon says that it loads",
    means="A rank waits for another one, for the disk or in the driver, and says nothing. Compiling may be silent for minutes; a "
    "hang is for ever, until the daemon's limit ends it (limits.load_max_s).",
    remedy="sparkd logs on both nodes: the rank that stopped first is the one; py-spy dump --pid of its VLLM::Worker",
    sample="the engine's log has said nothing for 412 s: loading weights",
    cure=Cure.RELAUNCH,
    after=("engine.down", "docker.unreachable", "link.peer-silent"),
    symptom=True,
)
def stalled(facts: Facts) -> Answers:
    launch = launch_id(facts)
    if facts.calm or launch is None or facts.phase != "loading":
        return
    silent_s = time.time() - facts.paths.engine_log(launch).stat().st_mtime
    patience_s = min(SILENT_MAX_S, facts.configured.limits.load_max_s / 4)
    doing = str(((facts.status or {}).get("progress") or {}).get("says") or "the engine starts")
    if silent_s > patience_s:
        yield doubtful(f"the engine's log has said nothing for {silent_s:.0f} s: {doing}")
    else:
        yield yes(f"the engine's log moves: {doing}")


@check(
    "engine.rank-dead",
    layer=Layer.ENGINE,
    question="Does every rank of the living engine live?",
    how="/proc: beside `vllm serve`, VLLM::EngineCore on the head and VLLM::Worker* on every node of a pair",
    means="Half an engine: /health says 200 until the next request, which then fails or hangs.",
    remedy="sparkd restart",
    sample="launch 3f2a91bc-18 serves, but its VLLM::Worker is gone from this node",
    who=Who.SPARKD,
    cure=Cure.RELAUNCH,
    after=("engine.down",),
    symptom=True,
)
def rank_dead(facts: Facts) -> Answers:
    if facts.calm or (facts.status is not None and facts.phase not in WHOLE):
        return
    found = engine_of(facts)
    if top_of(found) is None:
        return
    if facts.status is None and not any(processes.is_titled(one) for one in found):
        return  # it may still be importing
    missing = missing_ranks(facts.plan, found)
    if missing is None:
        yield cannot_tell("the engine's processes carry no titles (its image lacks setproctitle)")
    elif missing:
        yield no(f"launch {launch_id(facts)} serves, but its {missing} is gone from this node")
    else:
        yield yes("every rank of this node lives")


def missing_ranks(plan: Plan, found: Sequence[EngineProcess]) -> str | None:
    """Pure. The title that no process of the launch has; empty where all are there, None where none of its children has one."""
    titled = [one.name for one in found if processes.is_titled(one)]
    untitled = [one for one in found if not processes.is_titled(one) and not processes.is_top(one)]
    if not titled and any(
        "multiprocessing.spawn" in one.title or "multiprocessing.fork" in one.title for one in untitled
    ):
        return None
    wanted = ["VLLM::EngineCor"] if plan.is_head else []  # cut off where only the comm is known
    wanted += ["VLLM::Worker"] if plan.size > 1 else []
    gone = [title for title in wanted if not any(name.startswith(title) for name in titled)]
    return " and ".join("VLLM::EngineCore" if title == "VLLM::EngineCor" else title for title in gone)


# --- what it was told ----------------------------------------------------------------------------


@fact
def launched(facts: Facts) -> Plan:
    """The plan that the living launch was started with, as the daemon keeps it; else the configuration's."""
    try:
        kept = ClusterPlan.model_validate_json(whole(facts.paths.plan, PLAN_MAX_BYTES))
        return next((plan for plan in kept.ranks if plan.node == facts.plan.node), facts.plan)
    except (OSError, ValidationError):
        return facts.plan


@check(
    "engine.as-planned",
    layer=Layer.ENGINE,
    question="Did the living engine get the plan's arguments and environment?",
    how="/proc/PID/{cmdline,environ} of `vllm serve` against the plan of its launch",
    means="Something between the plan and vLLM changed what it was told: an edited script, an image's environment, a shell that "
    "took quotes away. The difference is told as engine.argv-differs, engine.env-differs or engine.env-forbidden.",
    remedy="sparkd render shows the plan's script; does something else start vllm on this node?",
    sample="the engine did not get the plan's arguments: --compilation-config: a shell took its quotes away",
    after=("engine.down", "script.stale", "script.json-arguments", "script.headless", "script.env-forbidden"),
)
def as_planned(facts: Facts) -> Answers:
    top = top_of(engine_of(facts))
    if top is None or facts.calm:
        return
    argv, environment = processes.command_line(top.pid), processes.launch_environment(top.pid)
    found = process.compare(launched(facts), argv=argv, environment=environment, launch_id=top.launch_id or "")
    wrong = [finding for finding in found if finding.verdict is not Verdict.GOOD]
    yield from wrong or [yes("; ".join(finding.says for finding in found))]


# --- how it does ---------------------------------------------------------------------------------


def url(plan: Plan) -> str:
    """Where this node asks its own endpoint."""
    return plan.api_url


def key(plan: Plan) -> str | None:
    """The key that clients must show; None where there is none, or it cannot be read (endpoint.key-file tells why)."""
    try:
        return api_key.read(Path(plan.api_key_file)) if plan.api_key_file else None
    except SparkdError:
        return None


@fact
def door(facts: Facts) -> Endpoint:
    """One for all questions: each new one costs a connection and more."""
    return Endpoint(url(facts.plan), facts.plan.served_name, api_key=key(facts.plan))


def is_claimed(facts: Facts) -> bool:
    """This is the head, and its endpoint is meant to answer: the daemon says so, or nobody does and a launch lives."""
    if facts.calm or not facts.plan.is_head:
        return False
    return bool(facts.status.get("serving")) if facts.status is not None else top_of(engine_of(facts)) is not None


@fact
def metrics(facts: Facts) -> Mapping[str, float]:
    """The head's /metrics, summed by name; empty where nothing is meant to serve, and on a worker."""
    return door(facts).metrics(DOOR_MAX_S) if is_claimed(facts) else {}


@check(
    "engine.spec-decode",
    layer=Layer.ENGINE,
    question="Are enough draft tokens accepted?",
    how="/metrics: vllm:spec_decode_num_accepted_tokens_total against vllm:spec_decode_num_draft_tokens_total",
    means="Speculative decoding costs more than it gives: the draft head does not fit the model, or drafts too many tokens.",
    remedy="lower num_speculative_tokens, or compare the draft model with the weights",
    sample="8 % of 51200 draft tokens were accepted",
    after=("engine.down",),
)
def spec_decode(facts: Facts) -> Answers:
    yield from judge_drafts(metrics(facts))


def judge_drafts(counted: Mapping[str, float]) -> Iterator[Finding]:
    drafted = counted.get("vllm:spec_decode_num_draft_tokens_total", 0.0)
    if drafted < DRAFTS_MIN:
        return
    share = counted.get("vllm:spec_decode_num_accepted_tokens_total", 0.0) / drafted
    says = f"{share * 100:.0f} % of {drafted:.0f} draft tokens were accepted"
    yield doubtful(says) if share < ACCEPTED_MIN else yes(says)


@check(
    "engine.kv-cache",
    layer=Layer.ENGINE,
    question="Does the KV cache hold the requests that come?",
    how="/metrics: vllm:kv_cache_usage_perc with waiting requests; vllm:num_preemptions_total against completed requests",
    means="Requests wait for the cache or are thrown out of it and computed again: slow answers, and more so with more users.",
    remedy="lower max-num-seqs or max-model-len, or raise gpu-memory-utilization",
    sample="the KV cache is 100 % full and 6 requests wait",
    after=("engine.down",),
)
def kv_cache(facts: Facts) -> Answers:
    yield from judge_cache(metrics(facts))


def judge_cache(counted: Mapping[str, float]) -> Iterator[Finding]:
    if not counted:
        return
    usage, waiting = counted.get("vllm:kv_cache_usage_perc", 0.0), counted.get("vllm:num_requests_waiting", 0.0)
    preempted, done = counted.get("vllm:num_preemptions_total", 0.0), counted.get("vllm:request_success_total", 0.0)
    if usage >= KV_FULL and waiting:
        yield doubtful(f"the KV cache is {usage * 100:.0f} % full and {waiting:.0f} requests wait")
    elif preempted >= PREEMPTED_MIN and preempted > PREEMPTED_MAX * done:
        yield doubtful(f"{preempted:.0f} times a request was thrown out of the KV cache, for {done:.0f} that completed")
    else:
        yield yes(f"the KV cache is {usage * 100:.0f} % full, {preempted:.0f} preemptions")
