"""Each action carried out, by host and engine, in a lane's thread, with a limit; its result is an event.

Nothing here decides: a step does its one thing, measures, and says what it did.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from sparkd.agent import launching
from sparkd.agent.store import Store
from sparkd.config.load import Configuration, load, plan_for
from sparkd.control.state import (
    Canary,
    CanaryBack,
    Done,
    EngineGone,
    Event,
    Failed,
    Inputs,
    Me,
    Prepare,
    Prove,
    Start,
    Stop,
)
from sparkd.doctor import gate
from sparkd.doctor.facts import Facts
from sparkd.engine import cleaning
from sparkd.engine.ensure import ensure
from sparkd.engine.spec import LABEL_CLUSTER, LABEL_MANAGED
from sparkd.host.clock import monotonic
from sparkd.host.paths import Paths
from sparkd.model.errors import ConfigError, SparkdError
from sparkd.model.finding import Cure, Finding, bad
from sparkd.model.plan import ClusterPlan, Plan
from sparkd.model.report import Phase, Proof, launch_id

if TYPE_CHECKING:
    from sparkd.engine.container import Docker
    from sparkd.engine.endpoint import Endpoint

log = logging.getLogger(__name__)


class Effects:
    """Carries out. `plan` is what runs or runs next; it changes only by `reload` or with the asked profile."""

    def __init__(self, me: Me, configuration: Configuration, paths: Paths, store: Store, docker: Docker) -> None:
        self.me = me
        self.configuration = configuration
        self.paths = paths
        self.pending = ""  # a sentence about a configuration that waits for `sparkd restart`
        self._store = store
        self.docker = docker
        self._lock = threading.Lock()
        self._plan: ClusterPlan = plan_for(configuration)
        self._config_error: ConfigError | None = None
        self._endpoint: Endpoint | None = None

    # --- the plan ---

    @property
    def cluster_plan(self) -> ClusterPlan:
        return self._plan

    @property
    def plan(self) -> Plan:
        return self._plan.ranks[self.me.rank]

    def adopt_plan(self, plan: ClusterPlan) -> None:
        """The plan of a launch that was found alive: what runs is compared with what it was started from."""
        self._use(plan)

    def reload(self) -> str:
        """Read the files again. Raises ConfigError and keeps what was there; the next preflight says so."""
        try:
            configuration = load(self.configuration.path)
            plan = plan_for(configuration)
        except ConfigError as error:
            self._config_error = error
            raise
        self.configuration, self._config_error, self.pending = configuration, None, ""
        self._use(plan)
        return f"configuration read: recipe {plan.recipe}, profile {plan.profile or 'none'}, plan {plan.digest[:12]}"

    def _use(self, plan: ClusterPlan) -> None:
        self._plan = plan
        self._endpoint = None

    def _for_profile(self, profile: str | None) -> None:
        """None is the configured one: a head that lost its state forgot the profile that a worker still holds."""
        plan = plan_for(self.configuration, profile)
        if plan.profile != self._plan.profile:
            self._use(plan)

    def _take_what_others_have(self, others: tuple[str, ...]) -> None:
        """A changed file waits for the operator's `restart`, but where it gives just the plan that another node already
        has, waiting would keep the pair apart for ever. Nothing runs here that it could surprise."""
        if not self.pending or set(others) <= {self._plan.digest}:
            return
        try:
            configuration = load(self.configuration.path)
            plan = plan_for(configuration, self._plan.profile)
        except ConfigError:
            return
        if plan.digest in others:
            self.configuration, self.pending = configuration, ""
            self._use(plan)

    def notice_files(self) -> str | None:
        """A changed configuration is checked and shown as pending, never taken by surprise. Returns a new sentence, or None."""
        try:
            plan = plan_for(load(self.configuration.path), self._plan.profile)
            pending = (
                "" if plan.digest == self._plan.digest else "the configuration has changed: `sparkd restart` takes it"
            )
        except ConfigError as error:
            pending = f"the changed configuration cannot be used: {error}"
        if pending == self.pending:
            return None
        self.pending = pending
        return pending or "the configuration is again what runs"

    # --- the steps before the barrier ---

    def prepare(self, action: Prepare) -> Event:
        if action.phase is Phase.PREFLIGHT:
            return self._preflight(action)
        if action.phase is Phase.CLEAN:
            says = cleaning.clean(self.plan, self.docker, policy=self.configuration.settings.drop_caches)
            return Done(action.ticket, says)
        if action.phase is Phase.CONTAINER:
            labels = self._labels(action.epoch)
            ensured = ensure(
                self.docker, self.plan.container, labels, image_id=self.docker.image_id(self.plan.container.image)
            )
            return Done(action.ticket, ensured.says)
        says = launching.stage(self.plan, self.docker)
        findings = gate.in_container(self._facts())
        worst = next((finding for finding in findings if finding.is_bad), None)
        if worst is not None:
            return Failed(action.ticket, worst)
        try:
            self._store.save_plan(self._plan)
        except OSError as error:  # costs the comparison after an adoption, not the launch
            says += f"; the plan could not be kept on disk ({error.strerror})"
        return Done(action.ticket, f"{says}; {gate.summary(findings)}")

    def _preflight(self, action: Prepare) -> Event:
        if self._config_error is not None:
            error = self._config_error
            return Failed(action.ticket, bad(error.id, str(error), cure=Cure.PERSON, remedy=error.hint))
        self._for_profile(action.profile)
        self._take_what_others_have(action.others)
        findings, digests = gate.preflight(self._facts())
        worst = gate.worst(findings)
        if worst is not None:
            return Failed(action.ticket, worst, digests)
        return Done(action.ticket, gate.summary(findings), digests=digests)

    def _facts(self) -> Facts:
        """Everything is read anew for each question: facts are remembered for one look only."""
        settings = self.configuration.settings
        return Facts(self.docker, settings, self._plan, self.me.rank, self.paths, calm=True)

    def _labels(self, epoch: int) -> dict[str, str]:
        return {
            LABEL_MANAGED: "true",
            LABEL_CLUSTER: self.plan.cluster,
            "io.sparkd.rank": str(self.me.rank),
            "io.sparkd.epoch": str(epoch),
            "io.sparkd.plan": self._plan.digest,
        }

    # --- the launch ---

    def start(self, action: Start) -> Event:
        id = launch_id(self.me.boot_id, action.epoch)
        log_file = self.paths.engine_log(id)
        trouble = launching.start(self.plan, id, self.paths.launch_file, log_file)
        launching.keep_newest(self.paths.engine_logs, self.configuration.settings.launches_kept, log_file)
        return Done(
            action.ticket, f"sparkd-engine.service started as launch {id}" + (f"; {trouble}" if trouble else "")
        )

    def stop(self, action: Stop) -> Event:
        id = launch_id(self.me.boot_id, action.epoch)
        says = launching.stop(id, container_ids=self._containers(), grace_s=self.me.limits.stop_grace_s)
        return Done(action.ticket, says, finding=launching.autopsy(self.paths.engine_log(id), self.me.rank))

    def _containers(self) -> tuple[str, ...]:
        """Our container's id, where Docker answers: a stop does not wait for a Docker that is away."""
        try:
            return cleaning.thaw(self.plan, self.docker)
        except SparkdError:
            return ()

    def ended(self, epoch: int) -> EngineGone:
        """The unit ended before an engine process was seen: what its log and status say of it."""
        log_file = self.paths.engine_log(launch_id(self.me.boot_id, epoch))
        return EngineGone(epoch, launching.autopsy(log_file, self.me.rank))

    # --- the endpoint ---

    @property
    def endpoint(self) -> Endpoint:
        with self._lock:
            if self._endpoint is None:
                from sparkd.engine.endpoint import Endpoint

                key = launching.api_key(self.plan)
                self._endpoint = Endpoint(self.plan.api_url, self.plan.served_name, api_key=key)
            return self._endpoint

    def prove(self, action: Prove) -> Event:
        max_s = self.me.limits.prove_max_s
        proved = self.endpoint.prove(reasoning=self.plan.has_reasoning, tools=self.plan.has_tools, max_s=max_s)
        if isinstance(proved, Finding):
            return Failed(action.ticket, proved)
        proof = Proof(
            epoch=action.epoch,
            at=monotonic(),
            content_chars=proved.content_chars,
            reasoning_field=proved.reasoning_field,
            tool_call=proved.tool_call,
            seconds=proved.seconds,
            says=proved.says,
        )
        return Done(action.ticket, proof=proof)

    def canary(self, action: Canary) -> CanaryBack:
        back = self.endpoint.canary(self.me.limits.canary_max_s)
        if isinstance(back, Finding):
            return CanaryBack(action.ticket, None, back)
        proof = Proof(
            epoch=action.epoch, at=monotonic(), content_chars=back.content_chars, seconds=back.seconds, says=back.says
        )
        return CanaryBack(action.ticket, proof)

    # --- while blocked ---

    def look(self) -> Inputs:
        """What the inputs look like now. A configuration that was mended is taken: nothing runs that it could surprise."""
        error: Finding | None = None
        try:
            self.configuration = load(self.configuration.path)
            self._config_error = None
            self._use(plan_for(self.configuration, self._plan.profile))
        except ConfigError as invalid:
            error = bad(invalid.id, str(invalid), cure=Cure.PERSON, remedy=invalid.hint)
        facts = self._facts()
        findings, digests = gate.preflight(facts, everything=True)
        return Inputs(gate.fingerprint(facts, digests), error or gate.worst(findings, only_person=True))
