"""Weights on a real file system."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_plan import plan

from sparkd.engine.weights import Short, host_path, manifest, plan_manifest, truncated
from sparkd.model.plan import Plan


def shard(tensor_bytes: int) -> bytes:
    """A safetensors file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [tensor_bytes], "data_offsets": [0, tensor_bytes]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0" * tensor_bytes


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    directory = tmp_path / "models" / "tiny"
    directory.mkdir(parents=True)
    names = [f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)]
    for name in names:
        (directory / name).write_bytes(shard(1000))
    index = {"metadata": {"total_size": 3000}, "weight_map": {f"layer{n}": name for n, name in enumerate(names)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text("{}")
    return directory


def tiny(weights: Path) -> Plan:
    spec = plan().container.model_copy(update={"volumes": (f"{weights.parent}:/models:ro",)})
    return plan(container=spec, model="/models/tiny")


def test_whole_weights_have_a_digest_that_only_names_and_sizes_change(weights: Path) -> None:
    first = manifest(weights)
    assert first.files == 5 and not first.missing and not first.unfinished and len(first.shards) == 3
    (weights / "README.md").write_text("notes")
    (weights / ".cache").mkdir()
    assert manifest(weights).digest == first.digest
    (weights / "config.json").write_text("{ }")
    assert manifest(weights).digest != first.digest
    assert plan_manifest(tiny(weights)) == manifest(weights)


def test_missing_unfinished_and_short_files_are_named(weights: Path) -> None:
    (weights / "model-00002-of-00003.safetensors").unlink()
    cut = weights / "model-00003-of-00003.safetensors"
    whole_bytes = cut.stat().st_size
    cut.write_bytes(shard(1000)[:500])
    (weights / "model-00002-of-00003.safetensors.incomplete").write_bytes(b"x")
    found = manifest(weights)
    assert found.missing == ("model-00002-of-00003.safetensors",)
    assert found.unfinished == ("model-00002-of-00003.safetensors.incomplete",)
    assert truncated(weights, found.shards) == (Short(cut.name, 500, whole_bytes),)


def test_a_link_that_leads_nowhere_is_a_missing_file(weights: Path) -> None:
    shard_path = weights / "model-00001-of-00003.safetensors"
    shard_path.unlink()
    shard_path.symlink_to("../blobs/none")
    assert manifest(weights).missing == (shard_path.name,)


def test_one_file_without_an_index_and_none_at_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert manifest(tmp_path).missing == ("*.safetensors",)
    (tmp_path / "model.safetensors").write_bytes(shard(10))
    assert manifest(tmp_path).missing == ()


def test_a_directory_that_is_not_there_has_no_manifest(weights: Path) -> None:
    assert plan_manifest(tiny(weights).model_copy(update={"model": "/models/none"})) is None


@pytest.mark.parametrize(
    ("path", "host"),
    [
        ("/models/x", "/home/m/x"),
        ("/models", "/home/m"),
        ("/models/deep/x", "/other/x"),
        ("/modelsx/y", None),
        ("/models/../etc", None),
    ],
)
def test_container_paths_map_through_the_deepest_volume(path: str, host: str | None) -> None:
    volumes = ("/home/m:/models", "/other:/models/deep/:ro", "named:/data")
    assert host_path(volumes, path) == (Path(host) if host else None)
