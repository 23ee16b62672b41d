"""Counting, explaining and repairing the mxfp4 patch: pure, and in a real container."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_shell import Engine, shell_spec

from sparkd.engine.container import Docker
from sparkd.engine.ensure import ensure
from sparkd.engine.patches import check_patch, count, deduplicate, judge, repair
from sparkd.model.finding import Cure, Verdict
from sparkd.model.recipe import PatchInvariant

pytest_plugins = ["engine_docker"]

MXFP4 = PatchInvariant(
    id="mxfp4",
    file="/usr/lib/python3*/dist-packages/vllm/quantization/mxfp4.py",
    needle="empty_cache",
    count=2,
    superseded_by="release_setup_tensors",
    block="del w13, w2",
)
UNPATCHED = """\
import torch


class Backend:
    def process(self, layer):
        w13, w2, scale = layer.w13, layer.w2, layer.scale
        self._setup_kernel(layer, w13, w2, scale)

    def process_marlin(self, layer):
        w13, w2, scale = layer.w13, layer.w2, layer.scale
        self._setup_kernel(layer, w13, w2, scale)
"""
SETUP = "        self._setup_kernel(layer, w13, w2, scale)\n"
BLOCK = "        del w13, w2, scale\n        torch.cuda.empty_cache()\n"
PATCHED = UNPATCHED.replace(SETUP, SETUP + BLOCK)
DOUBLED = UNPATCHED.replace(SETUP, SETUP + BLOCK + BLOCK)
PARTIAL = PATCHED[: PATCHED.rindex(BLOCK)]


@pytest.mark.parametrize(
    ("text", "id", "verdict"),
    [
        (UNPATCHED, "image.mxfp4-unpatched", Verdict.BAD),
        (PARTIAL, "image.mxfp4-partial", Verdict.BAD),
        (PATCHED, "image.mxfp4-patched", Verdict.GOOD),
        (DOUBLED, "image.mxfp4-doubled", Verdict.BAD),
        (UNPATCHED + "release_setup_tensors()\n", "image.mxfp4-superseded", Verdict.GOOD),
        (None, "image.mxfp4-file-missing", Verdict.UNKNOWN),
    ],
)
def test_each_count_is_its_own_incident(text: str | None, id: str, verdict: Verdict) -> None:
    finding = judge(MXFP4, text)
    assert (finding.id, finding.verdict) == (id, verdict)
    if verdict is Verdict.BAD:
        assert finding.cure is Cure.PERSON and finding.remedy
    assert finding.remedy == "sparkd doctor --fix" or not id.endswith("doubled")


@pytest.mark.parametrize(
    "doubled",
    [
        DOUBLED,
        UNPATCHED.replace(SETUP, SETUP + BLOCK * 4),
        PATCHED.replace(BLOCK, BLOCK + "\n" + BLOCK, 1),  # a blank line between, in one place only
        UNPATCHED.replace(SETUP, SETUP + 2 * "        del w13, w2, scale; torch.cuda.empty_cache()\n"),
        UNPATCHED.replace(SETUP, SETUP + 2 * BLOCK.replace("        torch", "        # let go\n        torch")),
        UNPATCHED.replace(SETUP, SETUP + 2 * (BLOCK + "        torch.cuda.synchronize()\n")),
        DOUBLED.replace("\n", "\r\n"),
    ],
    ids=["twice", "four times", "once, a blank line between", "on one line", "with a comment", "more below", "CRLF"],
)
def test_doubled_blocks_are_folded_into_one(doubled: str) -> None:
    mended = deduplicate(doubled, MXFP4)
    assert mended is not None and count(MXFP4, mended) == 2
    assert judge(MXFP4, mended).verdict is Verdict.GOOD
    assert mended.count("del w13") == 2
    assert mended == deduplicate(mended + "", MXFP4) or deduplicate(mended, MXFP4) is None


@pytest.mark.parametrize(
    "text",
    [
        PATCHED,
        UNPATCHED,
        PATCHED + "    torch.cuda.empty_cache()\n    x = 1\n    torch.cuda.empty_cache()\n",  # no repetition
        DOUBLED + "def broken(:\n",
        PARTIAL + BLOCK,  # would leave one
    ],
    ids=["right", "unpatched", "not a repetition", "does not compile", "would leave too few"],
)
def test_what_is_not_certain_is_not_repaired(text: str) -> None:
    assert deduplicate(text, MXFP4) is None


@pytest.fixture
def container(engine: Engine) -> Iterator[tuple[Docker, str]]:
    docker, spec = engine.docker(), shell_spec("t-patches")
    ensure(docker, spec, {}, image_id=None)
    yield docker, spec.name
    docker.remove(spec.name)


def test_a_doubled_file_in_a_container_is_mended_and_the_old_one_kept(container: tuple[Docker, str]) -> None:
    docker, name = container
    path = "/usr/lib/python3.12/dist-packages/vllm/quantization/mxfp4.py"
    assert check_patch(docker, name, MXFP4).id == "image.mxfp4-file-missing"
    docker.write_file(name, path, DOUBLED.encode(), 0o644)
    assert check_patch(docker, name, MXFP4).id == "image.mxfp4-doubled"

    after = repair(docker, name, MXFP4)

    assert after.id == "image.mxfp4-patched"
    assert docker.read_file(name, path, 1 << 20) == PATCHED.encode()
    backup = after.evidence[-1].rpartition(" ")[2]
    assert docker.read_file(name, backup, 1 << 20) == DOUBLED.encode()
    assert repair(docker, name, MXFP4).id == "image.mxfp4-patched"

    docker.write_file(name, path, UNPATCHED.encode(), 0o644)
    assert repair(docker, name, MXFP4).id == "image.mxfp4-unpatched", "only a doubled one is touched"
    assert docker.read_file(name, path, 1 << 20) == UNPATCHED.encode()

    elsewhere = MXFP4.model_copy(update={"superseded_in": "/usr/lib/python3*/dist-packages/vllm/mem_utils.py"})
    assert check_patch(docker, name, elsewhere).id == "image.mxfp4-unpatched"
    fix = b"def release_setup_tensors(): ...\n"
    docker.write_file(name, "/usr/lib/python3.12/dist-packages/vllm/mem_utils.py", fix, 0o644)
    assert check_patch(docker, name, elsewhere).id == "image.mxfp4-superseded"

    docker.stop(name, grace_s=1)
    assert check_patch(docker, name, MXFP4).id == "image.mxfp4-unreadable"
    assert check_patch(docker, name, MXFP4.model_copy(update={"file": path})).id == "image.mxfp4-unpatched"
