"""Layer weights: are they all there, whole, where the engine looks, and the same on every node?"""

from __future__ import annotations

from sparkd.doctor.check import Answers, Gate, check, no
from sparkd.doctor.facts import Facts, container, fact
from sparkd.engine import weights
from sparkd.model.finding import Finding, Layer


@fact
def manifest(facts: Facts) -> weights.Manifest | None:
    return weights.plan_manifest(facts.plan)


@fact
def findings(facts: Facts) -> tuple[Finding, ...]:
    return tuple(weights.check_weights(facts.plan, found=manifest(facts)))


@check(
    "weights.present",
    layer=Layer.WEIGHTS,
    question="Are all files of the index there, with their right sizes?",
    how="the index, the files' sizes and, where the sum is short, the shards' own headers",
    means="The engine would fail minutes into the load.",
    remedy="download the weights again, or copy them from the peer",
    sample="/models/ds4 lacks 1 of the files that it should hold: model-00017-of-00046.safetensors",
    gate=Gate.HOST,
)
def present(facts: Facts) -> Answers:
    yield from findings(facts)


@check(
    "weights.path-missing",
    layer=Layer.WEIGHTS,
    question="Does the container see the weights where the script looks for them?",
    how="looks for the plan's model path in the running container",
    means="A mount is missing or points elsewhere; vLLM would take the path for a repository name and try to download it.",
    remedy="compare the recipe's `model` and `volumes`",
    sample="the container does not see /models/ds4",
    gate=Gate.CONTAINER,
    after=("docker.unreachable",),
)
def path_missing(facts: Facts) -> Answers:
    plan, state = facts.plan, container(facts)
    if state is None or not state.running or not plan.model.startswith("/"):
        return
    if facts.docker.path_exists(plan.container.name, plan.model) is False:
        says = f"the container does not see {plan.model}"
        yield no(says, remedy=f"docker exec {plan.container.name} ls {plan.model}")
