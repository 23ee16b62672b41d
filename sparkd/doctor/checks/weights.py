"""Layer weights: are they all there, whole, where the engine looks?"""

from __future__ import annotations

from pathlib import Path

from sparkd.doctor.check import Answers, Gate, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks.container import try_container
from sparkd.doctor.checks.docker import Room, room
from sparkd.doctor.facts import Facts, container, fact
from sparkd.engine import weights
from sparkd.engine.arguments import value_of
from sparkd.engine.weights import some
from sparkd.model.finding import Finding, Layer, Verdict
from sparkd.model.outside import parsed

HUB = "/root/.cache/huggingface/hub"


@fact
def manifest(facts: Facts) -> weights.Manifest | None:
    return weights.plan_manifest(facts.plan)


@fact
def short(facts: Facts) -> tuple[weights.Short, ...]:
    found, directory = manifest(facts), place(facts)
    return () if found is None or directory is None else weights.truncated(directory, found.shards)


def place(facts: Facts) -> Path | None:
    """The weights' directory on this host; None where the model is a repository's name or lies on no volume."""
    plan = facts.plan
    return weights.host_path(plan.container.volumes, plan.model) if plan.model.startswith("/") else None


@check(
    "weights.repository",
    layer=Layer.WEIGHTS,
    question="Are the weights a directory of this host, so that a launch downloads nothing?",
    how="the recipe's `model`",
    means="The engine asks a hub for the newest revision and may load 149 GB before it serves; the nodes may get different ones.",
    remedy="hf download the model into a directory, mount it, and name the path as `model`",
    sample="the model deepseek-ai/DeepSeek-V4-Flash is a repository name: the engine may download it",
)
def repository(facts: Facts) -> Answers:
    model = facts.plan.model
    if not model.startswith("/"):
        yield doubtful(f"the model {model} is a repository name: the engine may download it")


@check(
    "weights.unmounted",
    layer=Layer.WEIGHTS,
    question="Do the weights lie on a volume?",
    how="the recipe's `model` against its `volumes`",
    means="What lies in the image or the container alone cannot be seen from here, and may go with the container.",
    remedy="mount the directory: `volumes` of the recipe",
    sample="no volume of the recipe holds /models/ds4: it cannot be seen from the host",
)
def unmounted(facts: Facts) -> Answers:
    if facts.plan.model.startswith("/") and place(facts) is None:
        yield cannot_tell(f"no volume of the recipe holds {facts.plan.model}: it cannot be seen from the host")


@check(
    "weights.path-missing",
    layer=Layer.WEIGHTS,
    question="Is there a directory on this host where the plan expects the weights?",
    how="looks for the host's side of the volume that holds the recipe's `model`",
    means="Docker makes an empty directory in its place; vLLM takes the path for a repository's name and fails, or downloads.",
    remedy="put the weights there, or correct `model` or `volumes` of the recipe",
    sample="there is no directory /home/milo/models/ds4, where the plan expects the weights (/models/ds4 in the container)",
    gate=Gate.HOST,
)
def path_missing(facts: Facts) -> Answers:
    directory = place(facts)
    if directory is None:
        return
    if directory.is_dir():
        yield yes(f"{directory} is there")
        return
    says = (
        f"there is no directory {directory}, where the plan expects the weights ({facts.plan.model} in the container)"
    )
    yield no(
        says, remedy=f"put the weights there, or correct `model` or `volumes` of the recipe; ls -ld {directory.parent}"
    )


@check(
    "weights.unreadable",
    layer=Layer.WEIGHTS,
    question="Can the weights' directory be read?",
    how="lists it",
    means="Permissions, or a network file system that is away.",
    remedy="ls -ld the directory; mount | grep the file system",
    sample="/home/milo/models/ds4 cannot be read: Stale file handle",
    after=("weights.path-missing",),
)
def unreadable(facts: Facts) -> Answers:
    directory = place(facts)
    if directory is not None and directory.is_dir() and manifest(facts) is None:
        yield cannot_tell(f"{directory} cannot be read by this user", remedy="sudo sparkd doctor")


@check(
    "weights.shards-missing",
    layer=Layer.WEIGHTS,
    question="Is every file there that the index names?",
    how="model.safetensors.index.json against the directory; a link that leads nowhere counts as missing",
    means="The engine fails minutes into the load: a download or copy was interrupted, often on one node only.",
    remedy="download the weights again, or copy them from the other node: rsync -aL",
    sample="/home/milo/models/ds4 lacks 1 of the files that it should hold: model-00017-of-00046.safetensors",
    gate=Gate.HOST,
    after=("weights.path-missing",),
)
def shards_missing(facts: Facts) -> Answers:
    found, directory = manifest(facts), place(facts)
    if found is None:
        return
    if found.missing:
        says = f"{directory} lacks {len(found.missing)} of the files that it should hold: {some(found.missing)}"
        remedy = f"download the weights again into {directory}, or copy them from the peer"
        yield no(says, evidence=found.missing[:10], remedy=remedy)
    else:
        says = f"{found.files} files, {found.bytes / 1e9:.1f} GB in {directory}"
        good = yes(says, evidence=(f"manifest {found.digest[:12]}",))
        yield good.model_copy(update={"id": "weights.present"})


@check(
    "weights.truncated",
    layer=Layer.WEIGHTS,
    question="Is every shard as long as its own header says?",
    how="the header of each safetensors file, some hundred KB of it, against the file's size",
    means="The engine fails minutes into the load: Error while deserializing header: file not fully covered.",
    remedy="fetch the file again, or copy it from the other node",
    sample="model-00017-of-00046.safetensors is cut short: 1.2 of 3.2 GB",
    gate=Gate.HOST,
    after=("weights.path-missing",),
)
def truncated(facts: Facts) -> Answers:
    found = manifest(facts)
    if found is None or not found.shards:
        return
    cut = short(facts)
    if cut:
        first = cut[0]
        size = (
            f"{first.bytes / 1e9:.3g} of {first.wanted_bytes / 1e9:.3g} GB"
            if first.wanted_bytes
            else "its header is broken"
        )
        more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
        evidence = tuple(f"{each.name}: {each.bytes} of {each.wanted_bytes or '?'} bytes" for each in cut[:10])
        remedy = f"fetch {first.name} again into {place(facts)}, or copy it from the peer"
        yield no(f"{first.name} is cut short: {size}{more}", evidence=evidence, remedy=remedy)
    else:
        yield yes(f"all {len(found.shards)} shards are as long as their headers say")


@check(
    "weights.partial",
    layer=Layer.WEIGHTS,
    question="Has every download of the weights ended?",
    how="files named .incomplete, .part, .aria2 or .tmp beside them",
    means="A download runs, or was given up; the directory may still change under the engine.",
    remedy="let it end (hf download resumes), or remove what it left",
    sample="1 file in /home/milo/models/ds4 looks unfinished: model-00017-of-00046.safetensors.incomplete",
    after=("weights.path-missing",),
)
def partial(facts: Facts) -> Answers:
    found = manifest(facts)
    if found is None:
        return
    if found.unfinished:
        files = f"{len(found.unfinished)} file{'s' if len(found.unfinished) > 1 else ''}"
        look = "look" if len(found.unfinished) > 1 else "looks"
        says = f"{files} in {place(facts)} {look} unfinished: {some(found.unfinished)}"
        yield doubtful(says, evidence=found.unfinished[:10])
    else:
        yield yes("no download is under way")


@check(
    "weights.config-missing",
    layer=Layer.WEIGHTS,
    question="Is the model's configuration there, and readable as JSON?",
    how="config.json (params.json for Mistral's format) beside the shards",
    means="vLLM cannot tell what model this is and ends before it loads anything.",
    remedy="fetch config.json again, or copy it from the other node",
    sample="/home/milo/models/ds4 has no config.json",
    gate=Gate.HOST,
    after=("weights.path-missing",),
)
def config_missing(facts: Facts) -> Answers:
    found, directory = manifest(facts), place(facts)
    if found is None or directory is None:
        return
    if not found.has_config:
        yield no(f"{directory} has no config.json")
        return
    config = directory / "config.json"
    if config.is_file():
        try:
            parsed(config.read_bytes())
        except ValueError as error:
            yield no(f"{config} is no JSON: {error}")
            return
    yield yes("the model's configuration is there")


@check(
    "weights.tokenizer-missing",
    layer=Layer.WEIGHTS,
    question="Is there a tokenizer with the weights?",
    how="tokenizer.json and its like beside the shards, unless --tokenizer names another place",
    means="Offline, vLLM has nowhere to get one from and ends at its start.",
    remedy="fetch the tokenizer's files too: not only *.safetensors",
    sample="/home/milo/models/ds4 has no tokenizer",
    after=("weights.path-missing",),
)
def tokenizer_missing(facts: Facts) -> Answers:
    found = manifest(facts)
    elsewhere = (
        value_of(facts.plan.argv, "--tokenizer") or value_of(facts.plan.argv, "--skip-tokenizer-init") is not None
    )
    if found is None or elsewhere:
        return
    if found.has_tokenizer:
        yield yes("a tokenizer is there")
    else:
        yield doubtful(f"{place(facts)} has no tokenizer")


@check(
    "weights.link-outside",
    layer=Layer.WEIGHTS,
    question="Does every link among the weights stay within the mounted directory?",
    how="resolves symbolic links of the shards against the host's side of the volume",
    means="The host sees the file, the container does not: a snapshot of the Hugging Face cache was mounted without its blobs.",
    remedy="mount the directory that holds both snapshots and blobs, or copy with rsync -aL",
    sample="model-00001-of-00046.safetensors links to /home/milo/.cache/huggingface/hub/blobs/3f2a, outside the volume",
    gate=Gate.HOST,
    after=("weights.path-missing",),
)
def link_outside(facts: Facts) -> Answers:
    found = manifest(facts)
    if found is None:
        return
    out = weights.leading_out(facts.plan, found.shards)
    if out:
        name, target = out[0]
        more = f" (and {len(out) - 1} more)" if len(out) > 1 else ""
        evidence = tuple(f"{each} -> {where}" for each, where in out[:5])
        yield no(f"{name} links to {target}, outside the volume{more}", evidence=evidence)
    else:
        yield yes(f"the container sees all {len(found.shards)} shards")


@check(
    "weights.unseen",
    layer=Layer.WEIGHTS,
    question="Does the container see the weights where the script looks for them?",
    how="looks for the plan's model path in the running container",
    means="A mount is missing or points elsewhere; vLLM would take the path for a repository name and try to download it.",
    remedy="compare the recipe's `model` and `volumes`",
    sample="the container does not see /models/ds4",
    gate=Gate.CONTAINER,
    after=("docker.unreachable", "weights.path-missing"),
)
def unseen(facts: Facts) -> Answers:
    """Its bad answer is called weights.path-missing too: for a person it is one question, asked at two times."""
    plan, state = facts.plan, container(facts)
    if state is None or not state.running or not plan.model.startswith("/"):
        return
    if facts.docker.path_exists(plan.container.name, plan.model) is False:
        remedy = f"docker exec {plan.container.name} ls {plan.model}"
        yield Finding(
            id="weights.path-missing",
            verdict=Verdict.BAD,
            says=f"the container does not see {plan.model}",
            remedy=remedy,
        )
    else:
        yield yes(f"the container sees {plan.model}")


@check(
    "weights.permission",
    layer=Layer.WEIGHTS,
    question="May the engine read every shard?",
    how="mode and owner of the shards against the container's user",
    means="Root in the container reads them all the same; another user, or a network file system that squashes root, does not.",
    remedy="chmod -R a+rX the directory",
    sample="model-00001-of-00046.safetensors has mode 0600 and belongs to user 1001, the container runs as user 1000",
    after=("weights.path-missing",),
)
def permission(facts: Facts) -> Answers:
    found, directory, state = manifest(facts), place(facts), try_container(facts)
    user = state.user.partition(":")[0] if state is not None else ""
    if found is None or directory is None or user in ("", "0", "root"):
        return
    for name in found.shards:
        about = (directory / name).stat()
        if not about.st_mode & 0o004 and str(about.st_uid) != user:
            says = f"{name} has mode {about.st_mode & 0o7777:04o} and belongs to user {about.st_uid}"
            yield no(f"{says}, the container runs as user {user}", remedy=f"chmod -R a+rX {directory}")
            return
    yield yes(f"user {user} may read the shards")


@check(
    "weights.disk-room",
    layer=Layer.WEIGHTS,
    question="Is there room for what is still missing of the weights?",
    how="total_size of the index and the files that are there, against statvfs of their disk",
    means="The download or copy that would mend it cannot end: Disk quota exceeded, No space left on device.",
    remedy="df -h the directory; remove other models or old images",
    sample="82.1 GB are still missing in /home/milo/models/ds4, and only 40.0 GB are free",
    after=("weights.path-missing",),
)
def disk_room(facts: Facts) -> Answers:
    found, directory = manifest(facts), place(facts)
    if found is None or directory is None or not (found.missing or found.unfinished or short(facts)):
        return
    answer = judge_room(found, room(directory), directory)
    if answer is not None:
        yield answer


def judge_room(found: weights.Manifest, there: Room | None, directory: Path) -> Finding | None:
    """Pure. None where the index does not say how much there should be."""
    lacking = found.wanted_bytes - sum(found.shards.values())
    if found.wanted_bytes == 0 or there is None:
        return None
    if lacking > there.free_bytes:
        says = f"{lacking / 1e9:.1f} GB are still missing in {directory}, and only {there.free_bytes / 1e9:.1f} GB are free"
        return doubtful(says, remedy=f"df -h {directory}; remove other models or old images")
    return yes(f"there is room for what is missing in {directory} ({there.free_bytes / 1e9:.0f} GB are free)")


@check(
    "weights.offline-refs",
    layer=Layer.WEIGHTS,
    question="Can the engine find the model in the Hugging Face cache without a network?",
    how="models--ORG--NAME/refs/main and its snapshot, where the model is a repository's name and HF_HUB_OFFLINE is set",
    means="A cache that was copied or filled in parts lacks the ref: Cannot find an appropriate cached snapshot folder.",
    remedy="write the snapshot's name into refs/main, or serve the plain directory",
    sample="models--openai--gpt-oss-20b has no refs/main, and HF_HUB_OFFLINE is set",
)
def offline_refs(facts: Facts) -> Answers:
    plan = facts.plan
    offline = "1" in (plan.environment.get("HF_HUB_OFFLINE"), plan.environment.get("TRANSFORMERS_OFFLINE"))
    if plan.model.startswith("/") or not offline:
        return
    hub = plan.environment.get("HF_HUB_CACHE") or (
        f"{plan.environment['HF_HOME']}/hub" if "HF_HOME" in plan.environment else HUB
    )
    directory = weights.host_path(plan.container.volumes, hub)
    if directory is None:
        yield cannot_tell(f"no volume of the recipe holds {hub}: the cache cannot be seen from the host")
        return
    cached = directory / f"models--{plan.model.replace('/', '--')}"
    ref = cached / "refs/main"
    if not cached.is_dir():
        yield no(f"there is no {cached}, and HF_HUB_OFFLINE is set", remedy=f"hf download {plan.model}")
    elif not ref.is_file():
        remedy = f"ls {cached}/snapshots; printf %s NAME > {ref}"
        yield no(f"{cached.name} has no refs/main, and HF_HUB_OFFLINE is set", remedy=remedy)
    elif not (cached / "snapshots" / ref.read_text().strip()).is_dir():
        yield no(f"refs/main of {cached.name} names a snapshot that is not there", remedy=f"hf download {plan.model}")
    else:
        yield yes(f"{plan.model} can be found in the cache")
