"""What the image says about its own making: `build-metadata.yaml`, which some builds bake in."""

from __future__ import annotations

import yaml

from sparkd.engine.container import Docker
from sparkd.model.errors import SparkdError

BUILD_METADATA_PATH = "/workspace/build-metadata.yaml"
_MAX_BYTES = 64 * 1024


def read_build(docker: Docker, container: str, path: str = BUILD_METADATA_PATH) -> dict[str, str]:
    """Its entries as text (`vllm_commit`, `build_date`, ...); nested ones as "build_args.vllm_prs".

    Empty where the image has none. Raises SparkdError where there is one that cannot be read.
    """
    data = docker.read_file(container, path, _MAX_BYTES)
    return {} if data is None else parse_build(data.decode("utf-8", "replace"), where=path)


def parse_build(text: str, *, where: str = BUILD_METADATA_PATH) -> dict[str, str]:
    """Pure part of `read_build`."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SparkdError("is not YAML", where=where, hint=str(error).splitlines()[0]) from error
    if not isinstance(raw, dict):
        raise SparkdError("is not a mapping", where=where)
    flat: dict[str, str] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": str(entry) for inner, entry in value.items()}
        else:
            flat[str(key)] = str(value)
    return flat
