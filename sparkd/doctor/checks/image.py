"""Layer image: what the engine runs, and what is really in it."""

from __future__ import annotations

from collections.abc import Iterator

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, no, yes
from sparkd.doctor.facts import Facts, container, image_id
from sparkd.engine import patches
from sparkd.model.finding import Finding, Layer

COMMAND_MAX_S = 20


@check(
    "image.missing",
    layer=Layer.IMAGE,
    question="Is the plan's image on this node?",
    how="`docker image inspect`",
    means="The container cannot be made.",
    remedy="docker pull the image, or docker load it from the other node",
    sample="the image vllm-ds4:gb10 is not on this node",
    gate=Gate.HOST,
    after=("docker.unreachable",),
)
def missing(facts: Facts) -> Answers:
    image, found = facts.plan.container.image, image_id(facts)
    if found is None:
        yield no(f"the image {image} is not on this node", remedy=f"docker pull {image}")
    else:
        yield yes(f"{image} is {found[:19]}")


@check(
    "image.vllm-missing",
    layer=Layer.IMAGE,
    question="Is there a `vllm` command in the container?",
    how="`command -v vllm` in the running container",
    means="A launch would end with exit status 127 and an empty log.",
    remedy="docker exec the container: ls -l /usr/local/bin/vllm",
    sample="there is no `vllm` command in vllm-ds4:gb10: a launch would end with exit 127",
    gate=Gate.CONTAINER,
    after=("docker.unreachable", "image.missing"),
)
def vllm_missing(facts: Facts) -> Answers:
    name = facts.plan.container.name
    state = container(facts)
    if state is None or not state.running:
        yield cannot_tell(f"container {name} does not run")
        return
    status, _ = facts.docker.exec_run(name, ["bash", "-c", "command -v vllm"], timeout_s=COMMAND_MAX_S)
    if status == 0:
        yield yes("the container has a `vllm`")
    else:
        says = f"there is no `vllm` command in {facts.plan.container.image}: a launch would end with exit 127"
        yield no(says, remedy=f"docker exec {name} ls -l /usr/local/bin/vllm")


@check(
    "image.patches",
    layer=Layer.IMAGE,
    question="Is every patch that the recipe names in the image as often as it must be?",
    how="counts the patch's mark in its file in the running container; the recipe's `patches` name file, mark and count",
    means="Unpatched, loading can hang the GPU until its plug is pulled; patched twice, it fails with UnboundLocalError.",
    remedy="doubled: sparkd doctor --fix; missing: an image that was built with the patch",
    sample="mxfp4: the patch was applied again (3 times release_device_memory, right is 2)",
    gate=Gate.CONTAINER,
    after=("docker.unreachable", "image.missing"),
)
def patched(facts: Facts) -> Answers:
    for invariant in facts.plan.patches:
        yield patches.check_patch(facts.docker, facts.plan.container.name, invariant)


def doubled(findings: Iterator[Finding]) -> Iterator[Finding]:
    return (finding for finding in findings if finding.id.endswith("-doubled"))
