"""Layer script: what vLLM is told, by argument and by environment."""

from __future__ import annotations

from sparkd.doctor.check import Answers, Gate, check, no, yes
from sparkd.doctor.facts import Facts
from sparkd.model.finding import Layer


@check(
    "script.env-forbidden",
    layer=Layer.SCRIPT,
    question="Is the plan free of variables that are known to break the engine?",
    how="the plan's environment against the recipe's forbidden_environment",
    means="The seed of two lost sessions: VLLM_WORKER_MULTIPROC_METHOD=fork crashes the engine in its shared memory ring.",
    remedy="remove the variable from the recipe, the profile and the node's environment",
    sample="the plan sets VLLM_WORKER_MULTIPROC_METHOD, which is forbidden",
    gate=Gate.HOST,
)
def env_forbidden(facts: Facts) -> Answers:
    environment, entries = facts.plan.environment, facts.plan.forbidden_environment
    parts = [entry.partition("=") for entry in entries]
    found = [name for name, exact, value in parts if name in environment and (not exact or environment[name] == value)]
    for name in found:
        remedy = f"remove {name} from the recipe, the profile and the node's environment"
        yield no(f"the plan sets {name}, which is forbidden", remedy=remedy)
    if not found:
        yield yes(f"nothing forbidden in the environment ({', '.join(entries) or 'no list'})")
