"""The container image: Python cut out of the node's Debian tree, with the simulated vLLM of tests/lab/image laid over it.

It is put together here, not by a Docker, as the archive that `docker load` reads: both nodes get the very same image id.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .host import architecture, locked, run, say
from .places import CHECKOUT, Places

REFERENCE = "ghcr.io/spark-arena/dgx-vllm-eugr-nightly:lab"
SIMULATION = CHECKOUT / "tests/lab/image"
ROOT_PACKAGES = ("bash", "coreutils", "curl", "findutils", "grep", "iproute2", "procps", "python3", "sed", "util-linux")
LEFT_OUT = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/info/")
EPOCH = "2026-01-01T00:00:00Z"  # no clock takes part: the same files are the same image


Layer = Path | bytes  # a tar archive: a big one lies in the cache, a small one is made anew each time


@dataclass(frozen=True)
class Image:
    reference: str
    id: str
    configuration: bytes
    layers: tuple[Layer, ...]  # lowest first

    def write(self, out: IO[bytes]) -> None:
        """The image as `docker load` wants it."""
        names = [f"layer{number}.tar" for number in range(len(self.layers))]
        manifest = [{"Config": "config.json", "RepoTags": [self.reference], "Layers": names}]
        with tarfile.open(fileobj=out, mode="w|") as archive:
            _add(archive, "manifest.json", json.dumps(manifest).encode())
            _add(archive, "config.json", self.configuration)
            for name, layer in zip(names, self.layers, strict=True):
                if isinstance(layer, Path):
                    archive.add(layer, name)
                else:
                    _add(archive, name, layer)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def build(places: Places, debian: Path) -> Image:
    """The image with the simulated vLLM. Raises LabError."""
    layers = (python_layer(places, debian), overlay(SIMULATION))
    return assemble(REFERENCE, layers, note="simulation: the vllm in this image is not the real one")


def assemble(reference: str, layers: tuple[Layer, ...], *, note: str) -> Image:
    """An image of these layers; `note` is its label io.sparkd.lab."""
    digests = [_digest(layer) for layer in layers]
    configuration = json.dumps(
        {
            "architecture": architecture(),
            "os": "linux",
            "created": EPOCH,
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
                "Cmd": ["bash"],
                "WorkingDir": "/workspace",
                "Labels": {"io.sparkd.lab": note},
            },
            "rootfs": {"type": "layers", "diff_ids": digests},
            "history": [{"created": EPOCH, "created_by": "tests/lab/container_image.py"} for _ in layers],
        },
        sort_keys=True,
    ).encode()
    return Image(reference, _digest(configuration), configuration, layers)


def _digest(content: Layer) -> str:
    if isinstance(content, bytes):
        return "sha256:" + hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def python_layer(places: Places, debian: Path) -> Path:
    """Python and the tools that a shell expects, cut out of the nodes' tree. Cached."""
    key = hashlib.sha256("\n".join((debian.name, *ROOT_PACKAGES, *LEFT_OUT)).encode()).hexdigest()[:12]
    layer = places.cache / f"image-{key}.tar"
    with locked(places.cache / "build.lock"):
        if not layer.exists():
            say("cutting the container image out of the Debian tree")
            partial = layer.with_suffix(".partial")
            names = "\0".join(_files(debian))
            options = ["--null", "--no-recursion", "--numeric-owner", "--sort=name", f"--directory={debian}"]
            run(["tar", "--create", f"--file={partial}", *options, "--files-from=-"], input=names, timeout_s=300)
            partial.rename(layer)
    return layer


def _files(debian: Path) -> list[str]:
    """What ROOT_PACKAGES and all that they depend on have installed, relative to the tree."""
    listed = run(["chroot", debian, "dpkg", "--listfiles", *_with_dependencies(debian)]).stdout
    found = {"bin", "lib", "lib64", "sbin", "tmp", "root", "etc/ld.so.cache", "etc/passwd", "etc/group"}
    for line in listed.splitlines():
        path = debian / line.lstrip("/")
        # /bin and its like are symbolic links into /usr, and packages list files on either side of them
        real = (path.parent.resolve() / path.name).relative_to(debian)
        wanted = path.is_symlink() or path.exists()
        if line.startswith("/") and wanted and not str(real).startswith(LEFT_OUT) and str(real) != ".":
            found.add(str(real))
    return sorted(name for name in found if os.path.lexists(debian / name))


def _with_dependencies(debian: Path) -> list[str]:
    query = ["dpkg-query", "--show", "--showformat", "${Package}\t${Provides}\t${Pre-Depends}, ${Depends}\n"]
    provider: dict[str, str] = {}
    needs: dict[str, list[list[str]]] = {}
    for line in run(["chroot", debian, *query]).stdout.splitlines():
        package, provides, depends = line.split("\t")
        for name in _names(provides):
            provider.setdefault(name, package)
        provider[package] = package
        needs[package] = [_names(alternatives.replace("|", ",")) for alternatives in depends.split(",")]
    found: set[str] = set()
    waiting = list(ROOT_PACKAGES)
    while waiting:
        package = waiting.pop()
        if package in found:
            continue
        found.add(package)
        for alternatives in needs[package]:
            waiting += [provider[name] for name in alternatives if name in provider][:1]
    return sorted(found)


def _names(relations: str) -> list[str]:
    """Package names of a dependency field: `libc6 (>= 2.36), python3:any` gives libc6 and python3."""
    return [relation.split()[0].split(":")[0] for relation in relations.split(",") if relation.strip()]


def overlay(directory: Path) -> bytes:
    """A directory of the checkout as a layer: owned by root, the same bytes for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path in sorted(directory.rglob("*")):
            if "__pycache__" in path.parts:
                continue
            member = archive.gettarinfo(path, str(path.relative_to(directory)))
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if path.is_dir() or member.mode & 0o100 else 0o644
            if member.isfile():
                with path.open("rb") as content:
                    archive.addfile(member, content)
            else:
                archive.addfile(member)
    return out.getvalue()
