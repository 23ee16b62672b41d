"""Layer image: what the engine runs, and what is really in it."""

from __future__ import annotations

import platform
import re

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks.container import try_container
from sparkd.doctor.facts import DOOR_MAX_S, Facts, container, fact, image_id
from sparkd.engine import inside, patches
from sparkd.engine.build import Build, known, parse_build, read_build
from sparkd.engine.inside import Inside
from sparkd.engine.spec import ImageState
from sparkd.model.errors import SparkdError, UnreachableError
from sparkd.model.finding import Finding, Layer
from sparkd.model.plan import Plan

ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64", "armv7l": "arm", "ppc64le": "ppc64le", "riscv64": "riscv64"}
SPARSE_MODELS = ("deepseek_v4", "deepseek_v32")  # their sparse attention indexer is DeepGEMM's
FLASHINFER_PARTS = ("flashinfer-cubin", "flashinfer-jit-cache")
_LOOK_MAX_S = 20.0  # in a launch's preflight, where the machine may be busy; a doctor has DOOR_MAX_S


@fact
def image(facts: Facts) -> ImageState | None:
    return facts.docker.image(facts.plan.container.image)


@fact
def look(facts: Facts) -> Inside:
    """What is in the running container: one command, shared by all. UnreachableError where it does not run."""
    plan = facts.plan
    if try_container(facts) is None:
        container(facts)  # says so where Docker is the reason
        raise UnreachableError(f"container {plan.container.name} does not run")
    limit_s = _LOOK_MAX_S if facts.calm else DOOR_MAX_S
    return inside.look(
        facts.docker, plan.container.name, script=plan.script_path, globs=_globs(plan), timeout_s=limit_s
    )


def _globs(plan: Plan) -> list[str]:
    files = [each for patch in plan.patches for each in (patch.file, patch.superseded_in) if each]
    return [each for each in dict.fromkeys(files) if any(letter in each for letter in "*?[")]


@fact
def build(facts: Facts) -> Build:
    """All that the image says of its making; `unseen` holds what could not be read."""
    unseen: list[str] = []
    metadata: dict[str, str] = {}
    seen: Inside | None = None
    try:
        seen = look(facts)
        metadata = parse_build(seen.build) if seen.build else {}
    except SparkdError as error:
        unseen.append(str(error))
    if not metadata and not (seen and seen.looked):
        try:
            metadata = read_build(facts.docker, facts.plan.container.name)
        except SparkdError as error:
            unseen.append(str(error))
    return known(
        image=facts.plan.container.image, state=image(facts), inside=seen, metadata=metadata, unseen=tuple(unseen)
    )


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
    name, found = facts.plan.container.image, image_id(facts)
    if found is None:
        by_digest = (
            " (`docker load` keeps no digests: what was loaded has to be named by its tag)"
            if "@sha256:" in name
            else ""
        )
        yield no(f"the image {name} is not on this node", remedy=f"docker pull {name}{by_digest}")
    else:
        yield yes(f"{name} is {found[:19]}")


@check(
    "image.platform",
    layer=Layer.IMAGE,
    question="Was the image made for this kind of processor?",
    how="Architecture of `docker image inspect` against the kernel's",
    means="Nothing in it can be executed: exec format error.",
    remedy="docker pull --platform linux/arm64 the image, or the tag for this platform",
    sample="vllm-ds4:gb10 was made for amd64, this machine is arm64",
    gate=Gate.HOST,
    after=("docker.unreachable", "image.missing"),
)
def wrong_platform(facts: Facts) -> Answers:
    found = image(facts)
    if found is None:
        return
    here = ARCHITECTURES.get(platform.machine(), platform.machine())
    if not found.architecture:
        yield cannot_tell(f"{facts.plan.container.image} does not say what it was made for")
    elif found.architecture != here:
        says = f"{facts.plan.container.image} was made for {found.architecture}, this machine is {here}"
        yield no(says, remedy=f"docker pull --platform linux/{here} {facts.plan.container.image}")
    else:
        yield yes(f"the image is for {here}")


@check(
    "image.vllm-missing",
    layer=Layer.IMAGE,
    question="Is there a `vllm` command in the container?",
    how="`command -v vllm` in the running container",
    means="A launch would end with exit status 127 and an empty log.",
    remedy="docker exec the container: ls -l /usr/local/bin/vllm",
    sample="there is no `vllm` command in vllm-ds4:gb10: a launch would end with exit 127",
    gate=Gate.CONTAINER,
    after=("docker.unreachable", "image.missing", "image.platform"),
)
def vllm_missing(facts: Facts) -> Answers:
    name = facts.plan.container.name
    found = look(facts).vllm
    if found:
        yield yes(f"the container has {found}")
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
    after=("docker.unreachable", "image.missing", "image.platform"),
)
def patched(facts: Facts) -> Answers:
    """Its answers are called image.PATCH-doubled, -partial, -unpatched, ...: each has another cure."""
    if not facts.plan.patches:
        return
    globs = look(facts)
    for invariant in facts.plan.patches:
        paths = globs.globs if globs.looked else {}
        yield patches.check_patch(facts.docker, facts.plan.container.name, invariant, known=paths)


@check(
    "image.torch-cpu",
    layer=Layer.IMAGE,
    question="Is the torch in the image built for CUDA?",
    how="torch/version.py in the running container; torch itself is not imported",
    means="A rebuild or `pip install` took the CPU wheel from the package index: vLLM's C extension cannot load.",
    remedy="use the prebuilt image; or reinstall torch with --extra-index-url https://download.pytorch.org/whl/cu130",
    sample="the torch in the image is 2.13.0+cpu, without CUDA",
    after=("docker.unreachable", "image.missing", "image.vllm-missing"),
)
def torch_cpu(facts: Facts) -> Answers:
    if facts.plan.container.gpus:
        yield from judge_torch(look(facts))


def judge_torch(seen: Inside) -> Answers:
    """Pure."""
    if not seen.has_torch:
        yield cannot_tell(
            "no torch was found in the container" if seen.looked else "there is no Python in the container"
        )
    elif seen.torch_cuda:
        yield yes(f"torch {seen.torch_version} for CUDA {seen.torch_cuda}")
    elif seen.is_cpu_build:
        yield yes(f"torch {seen.torch_version}, beside a vLLM that is built for CPUs too")
    else:
        yield no(f"the torch in the image is {seen.torch_version}, without CUDA")


@check(
    "image.deepgemm-missing",
    layer=Layer.IMAGE,
    question="Is DeepGEMM in the image where the model needs it?",
    how="looks for the package deep_gemm, and for the copy inside vLLM, in the running container",
    means="DeepSeek V3.2 and V4 fail at their first step: Sparse Attention Indexer CUDA op requires DeepGEMM.",
    remedy="git clone --recursive deepseek-ai/DeepGEMM into the image, then pip install --no-deps --no-build-isolation it",
    sample="the model is a deepseek_v4, and there is no DeepGEMM in the image",
    after=("docker.unreachable", "image.missing", "image.vllm-missing", "image.torch-cpu"),
)
def deepgemm_missing(facts: Facts) -> Answers:
    kind = sparse_model(facts.plan)
    if kind and facts.plan.container.gpus:
        yield from judge_deepgemm(look(facts), kind)


def sparse_model(plan: Plan) -> str:
    """Pure. Empty where nothing in the arguments tells of such a model."""
    return next((kind for kind in SPARSE_MODELS if kind in plan.argv), "")


def judge_deepgemm(seen: Inside, kind: str) -> Answers:
    """Pure."""
    if seen.deep_gemm:
        yield yes(f"DeepGEMM is in the image ({seen.deep_gemm})")
    elif not seen.has_torch or seen.is_cpu_build:
        yield cannot_tell("this is no vLLM for GPUs, so nobody can tell what it would need")
    else:
        yield no(f"the model is a {kind}, and there is no DeepGEMM in the image")


@check(
    "image.flashinfer-mismatch",
    layer=Layer.IMAGE,
    question="Are all parts of FlashInfer of one version?",
    how="the versions of flashinfer-python, -cubin and -jit-cache in the running container",
    means="vLLM refuses to start: flashinfer-cubin version does not match; with the check off, kernels may be wrong.",
    remedy="install the parts of one release; FLASHINFER_DISABLE_VERSION_CHECK=1 is a stop-gap",
    sample="flashinfer-cubin is 0.6.13, flashinfer-python is 0.6.14",
    after=("docker.unreachable", "image.missing", "image.vllm-missing"),
)
def flashinfer_mismatch(facts: Facts) -> Answers:
    checked = facts.plan.environment.get("FLASHINFER_DISABLE_VERSION_CHECK", "0") in ("0", "")
    yield from judge_flashinfer(look(facts), checked=checked)


def judge_flashinfer(seen: Inside, *, checked: bool) -> Answers:
    """Pure. Local versions ("+cu130") tell the CUDA, not the release."""
    main = seen.packages.get("flashinfer-python")
    parts = {name: seen.packages[name] for name in FLASHINFER_PARTS if name in seen.packages}
    if main is None or not parts:
        return
    wrong = {name: v for name, v in parts.items() if v.partition("+")[0] != main.partition("+")[0]}
    for name, version in wrong.items():
        answer = no if checked else doubtful
        yield answer(f"{name} is {version}, flashinfer-python is {main}" + ("" if checked else " (the check is off)"))
    if not wrong:
        yield yes(f"flashinfer {main}, {' and '.join(parts)} with it")


@check(
    "image.build",
    layer=Layer.IMAGE,
    question="Does the image say what it was built from?",
    how="/workspace/build-metadata.yaml, the image's labels, the version of the installed vLLM",
    means="Before a rebuild for some fix, ask whether the image has it: sparkd build has COMMIT or PULL-REQUEST.",
    remedy="sparkd build",
    sample="the image says nothing about its making",
    after=("docker.unreachable", "image.missing"),
)
def build_known(facts: Facts) -> Answers:
    made = build(facts)
    if not made.knows_anything:
        yield cannot_tell("; ".join(made.unseen) or "the image says nothing about its making")
        return
    requests = ", ".join(f"{project}#{number}" for project, number in made.pull_requests())
    parts = [f"built {made.built_at[:19]}" if made.built_at else "", made.vllm_version and f"vLLM {made.vllm_version}"]
    parts += [f"with {requests}" if requests else ""]
    evidence = tuple(f"{where}: {commit}" for where, commit in made.commits().items())
    yield yes(
        "the image was " + ", ".join(filter(None, parts)) if any(parts) else "the image names its commit",
        evidence=evidence,
    )


@check(
    "image.build-stale",
    layer=Layer.IMAGE,
    question="Is the vLLM in the container the one that the image was built with?",
    how="version and commit in the build metadata against the installed package's",
    means="Somebody installed another vLLM into the container: the metadata is no longer true, and it goes with the container.",
    remedy="docker diff the container; make it anew from the image, or build an image with that vLLM",
    sample="the image was built with vLLM 0.23.1rc1, installed is 0.24.0",
    after=("docker.unreachable", "image.missing", "image.vllm-missing"),
)
def build_stale(facts: Facts) -> Answers:
    yield from judge_stale(build(facts))


def judge_stale(made: Build) -> Answers:
    """Pure. A question only where both sides say something."""
    claimed, installed = made.metadata.get("vllm_version", ""), made.vllm_version
    if claimed in ("", "unknown") or not installed:
        return
    if _release(claimed) == _release(installed):
        yield yes(f"the installed vLLM is the image's own ({installed})")
    else:
        yield doubtful(f"the image was built with vLLM {claimed}, installed is {installed}")


def _release(version: str) -> str:
    """Without what a build adds for its day and CUDA: "0.23.1rc1.dev1388+gb44311b6e.d20260722.cu132" """
    public, _, local = version.partition("+")
    commit = re.match(r"g[0-9a-f]{7,9}", local)
    return public + (f"+{commit.group(0)[:8]}" if commit else "")


@check(
    "image.nccl-conf",
    layer=Layer.IMAGE,
    question="Does no file in the image set NCCL's options behind the recipe's back?",
    how="/etc/nccl.conf in the running container",
    means="Options left from another machine (an interface, GPUDirect) hold wherever the recipe does not name them itself.",
    remedy="remove /etc/nccl.conf from the image; options belong to the recipe's environment",
    sample="/etc/nccl.conf in the image sets NCCL_SOCKET_IFNAME, NCCL_DMABUF_ENABLE",
    after=("docker.unreachable", "image.missing"),
)
def nccl_conf(facts: Facts) -> Answers:
    seen = look(facts)
    if seen.looked:
        yield judge_nccl_conf(seen.nccl_conf or "", facts.plan.environment)


def judge_nccl_conf(text: str, environment: dict[str, str]) -> Finding:
    """Pure. What the environment sets counts before the file."""
    names = re.findall(r"^\s*(NCCL_\w+)\s*=", text, re.MULTILINE)
    hidden = [name for name in names if name not in environment and name != "NCCL_DEBUG"]
    if hidden:
        return doubtful(f"/etc/nccl.conf in the image sets {', '.join(hidden)}", evidence=tuple(text.splitlines()[:5]))
    return yes("no file in the image sets an option of NCCL that the recipe does not set itself")
