"""The weights' checks on a real file system."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from checks_facts import asked, container, facts, given
from engine_plan import plan
from test_engine_weights import shard, weights

from sparkd.doctor.check import Gate
from sparkd.doctor.checks import weights as checks
from sparkd.doctor.checks.docker import Room
from sparkd.doctor.declared import of_layer
from sparkd.doctor.facts import Facts
from sparkd.doctor.facts import container as container_fact
from sparkd.engine.weights import manifest
from sparkd.model.finding import Finding, Layer, Verdict

BAD, WARNING, GOOD, UNKNOWN = Verdict.BAD, Verdict.WARNING, Verdict.GOOD, Verdict.UNKNOWN

__all__ = ["weights"]  # the fixture


def node(tmp_path: Path, weights: Path, **changes: object) -> Facts:
    spec = plan().container.model_copy(update={"volumes": (f"{weights.parent}:/models:ro",)})
    here = facts(tmp_path, **({"container": spec, "model": "/models/tiny"} | changes))
    given(here, container_fact, None)
    return here


def wrong(here: Facts) -> list[Finding]:
    """All that is not good, without what must be asked of a container."""
    found = [
        answer for each in of_layer(Layer.WEIGHTS) if each.gate is not Gate.CONTAINER for answer in each.asked(here)
    ]
    return [answer for answer in found if answer.verdict is not GOOD]


def test_whole_weights_are_good_and_say_what_was_seen(tmp_path: Path, weights: Path) -> None:
    (weights / "tokenizer.json").write_text("{}")
    here = node(tmp_path, weights)
    assert wrong(here) == []
    answer = asked(checks.shards_missing, here)
    assert answer.id == "weights.present" and "6 files" in answer.says and answer.evidence[0].startswith("manifest ")


def test_a_shard_that_is_missing(tmp_path: Path, weights: Path) -> None:
    (weights / "model-00002-of-00003.safetensors").unlink()
    answer = asked(checks.shards_missing, node(tmp_path, weights))
    assert answer.verdict is BAD and answer.evidence == ("model-00002-of-00003.safetensors",)
    assert "lacks 1 of the files" in answer.says and str(weights) in answer.remedy


def test_a_shard_that_lost_its_last_byte(tmp_path: Path, weights: Path) -> None:
    """Less than all headers together: the sum of sizes would not show it."""
    path = weights / "model-00003-of-00003.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    answer = asked(checks.truncated, node(tmp_path, weights))
    assert answer.verdict is BAD and answer.says.startswith("model-00003-of-00003.safetensors is cut short")
    assert answer.evidence == (f"{path.name}: {path.stat().st_size} of {path.stat().st_size + 1} bytes",)


@pytest.mark.parametrize("left", [0, 5, 40])
def test_a_shard_without_its_header(tmp_path: Path, weights: Path, left: int) -> None:
    os.truncate(weights / "model-00001-of-00003.safetensors", left)
    answer = asked(checks.truncated, node(tmp_path, weights))
    assert answer.verdict is BAD and "its header is broken" in answer.says


def test_a_download_that_did_not_end(tmp_path: Path, weights: Path) -> None:
    (weights / "model-00009.safetensors.incomplete").write_bytes(b"x")
    cache = weights / ".cache/huggingface/download"
    cache.mkdir(parents=True)
    (cache / "abc.incomplete").write_bytes(b"x")
    answer = asked(checks.partial, node(tmp_path, weights))
    assert answer.verdict is WARNING and answer.id == "weights.partial" and "2 files" in answer.says


def test_no_directory(tmp_path: Path, weights: Path) -> None:
    here = node(tmp_path, weights, model="/models/none")
    answer = asked(checks.path_missing, here)
    assert answer.verdict is BAD and str(weights.parent / "none") in answer.says
    assert {each.id for each in wrong(here)} == {"weights.path-missing"}, "nothing else is asked of it"


def test_what_cannot_be_seen_from_the_host(tmp_path: Path, weights: Path) -> None:
    (repository,) = wrong(node(tmp_path, weights, model="openai/gpt-oss-20b"))
    assert (repository.id, repository.verdict) == ("weights.repository", WARNING)
    (unmounted,) = wrong(node(tmp_path, weights, model="/elsewhere/x"))
    assert (unmounted.id, unmounted.verdict) == ("weights.unmounted", UNKNOWN)


def test_the_models_configuration(tmp_path: Path, weights: Path) -> None:
    (weights / "config.json").write_text("{")
    assert "is no JSON" in asked(checks.config_missing, node(tmp_path, weights)).says
    (weights / "config.json").unlink()
    assert asked(checks.config_missing, node(tmp_path / "2", weights)).verdict is BAD


def test_a_tokenizer(tmp_path: Path, weights: Path) -> None:
    assert asked(checks.tokenizer_missing, node(tmp_path, weights)).verdict is WARNING
    elsewhere = node(tmp_path, weights, argv=("vllm", "serve", "/models/tiny", "--tokenizer", "/models/other"))
    assert checks.tokenizer_missing.asked(elsewhere) == []


def test_links_that_the_container_cannot_follow(tmp_path: Path, weights: Path) -> None:
    """A snapshot of the Hugging Face cache: fine where its blobs are mounted with it, broken where they are not."""
    inside, outside = weights.parent / "blobs", tmp_path / "blobs"
    first, second = (weights / f"model-0000{n}-of-00003.safetensors" for n in (1, 2))
    for directory, link, target in ((inside, first, "../blobs/a"), (outside, second, "../../blobs/a")):
        directory.mkdir()
        (directory / "a").write_bytes(shard(1000))
        link.unlink()
        link.symlink_to(target)
    answer = asked(checks.link_outside, node(tmp_path, weights))
    assert answer.verdict is BAD and answer.says.startswith(f"{second.name} links to {outside}/a, outside")
    assert len(answer.evidence) == 1
    second.unlink()
    second.symlink_to(inside / "a")
    absolute = asked(checks.link_outside, node(tmp_path / "2", weights))
    assert absolute.verdict is BAD, "an absolute path means another place in the container"
    same = plan().container.model_copy(update={"volumes": (f"{weights.parent}:{weights.parent}",)})
    alike = facts(tmp_path, container=same, model=str(weights))
    assert asked(checks.link_outside, alike).verdict is GOOD


def test_room_for_what_is_missing(tmp_path: Path, weights: Path) -> None:
    (weights / "model-00002-of-00003.safetensors").unlink()
    found = manifest(weights)

    def of(free_bytes: int) -> Finding | None:
        return checks.judge_room(found, Room(weights, 1, free_bytes, 10**12, None), weights)

    few, plenty = of(10), of(10**9)
    assert few is not None and few.verdict is WARNING and plenty is not None and plenty.verdict is GOOD
    assert checks.judge_room(found, None, weights) is None
    whole = node(tmp_path, weights)
    (weights / "model-00002-of-00003.safetensors").write_bytes(shard(1000))
    assert checks.disk_room.asked(whole) == [], "nothing is missing"


def test_a_container_of_another_user(tmp_path: Path, weights: Path) -> None:
    here = node(tmp_path, weights)
    assert checks.permission.asked(here) == []
    state = container()
    given(here, container_fact, type(state)(**{**state.__dict__, "user": "4711"}))
    assert asked(checks.permission, here).verdict is GOOD
    (weights / "model-00002-of-00003.safetensors").chmod(0o600)
    assert "has mode 0600" in asked(checks.permission, here).says


def test_a_cache_without_its_ref(tmp_path: Path, weights: Path) -> None:
    hub = tmp_path / "hf/hub"
    spec = plan().container.model_copy(update={"volumes": (f"{tmp_path}/hf:/root/.cache/huggingface",)})
    here = facts(tmp_path, container=spec, model="openai/gpt-oss-20b", environment={"HF_HUB_OFFLINE": "1"})
    assert "there is no" in asked(checks.offline_refs, here).says
    cached = hub / "models--openai--gpt-oss-20b"
    (cached / "snapshots/abc").mkdir(parents=True)
    assert "has no refs/main" in asked(checks.offline_refs, here).says
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("def")
    assert "names a snapshot that is not there" in asked(checks.offline_refs, here).says
    (cached / "refs/main").write_text("abc")
    assert asked(checks.offline_refs, here).verdict is GOOD
    online = facts(tmp_path, container=spec, model="openai/gpt-oss-20b", environment={})
    assert checks.offline_refs.asked(online) == []


def test_the_index_itself_is_no_shard(weights: Path) -> None:
    assert len(manifest(weights).shards) == len(
        json.loads((weights / "model.safetensors.index.json").read_text())["weight_map"]
    )
