"""Layer container: is the plan's container there, and is it as the plan wants it?"""

from __future__ import annotations

from sparkd.doctor.check import Answers, check, no, yes
from sparkd.doctor.facts import Facts, container, image_id, runtimes
from sparkd.engine.container import differences
from sparkd.model.finding import Layer


@check(
    "container.differs",
    layer=Layer.CONTAINER,
    question="Does the container that exists match the plan?",
    how="`docker inspect` against the plan's container spec, image id included",
    means="The container was made by somebody else or from another plan; sparkd never replaces one by itself.",
    remedy="docker diff NAME; docker rm -f NAME  (sparkd makes it anew from the plan)",
    sample="container vllm_ds4 differs from the plan: ipc is private, the plan says host",
    after=("docker.unreachable",),
)
def differs(facts: Facts) -> Answers:
    """Not a gate of its own: `container`, the step after `clean`, makes it where there is none and refuses where it differs."""
    spec, state = facts.plan.container, container(facts)
    if state is None:
        return
    wrong = differences(state, spec, image_id=image_id(facts), runtimes=runtimes(facts))
    if wrong:
        remedy = f"docker diff {spec.name}; docker rm -f {spec.name}  (sparkd makes it anew from the plan)"
        yield no(f"container {spec.name} differs from the plan: {wrong[0]}", evidence=tuple(wrong), remedy=remedy)
    else:
        yield yes(f"container {spec.name} is as the plan wants it")
