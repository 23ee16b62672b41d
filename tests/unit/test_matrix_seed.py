"""The published deployment is run as it was published: what the lab changes is listed, and nothing else differs."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.lab.host import LabError
from tests.lab.matrix.seed_units import CHANGES, SEED, adapted, first_act, published, unit, wall_clock
from tests.lab.pair import NODES

FILES = ("vllm-head.sh", "vllm-worker.sh", "container.sh", "cleanup.sh")


@pytest.mark.parametrize("node", NODES)
def test_the_units_restart_on_failure_after_30_s(node: str) -> None:
    parsed = configparser.RawConfigParser(strict=False, interpolation=None)
    parsed.read_string(published(unit(node)))
    service = parsed["Service"]
    assert (service["Restart"], service["RestartSec"]) == ("on-failure", "30")
    assert 'pkill -9 -f "vllm serve"' in service["ExecStop"]


@pytest.mark.parametrize("file", FILES)
def test_an_adapted_file_differs_in_the_lines_that_a_change_names(file: str) -> None:
    before, after = published(file).splitlines(), adapted(file).splitlines()
    changes = [change for change in CHANGES if change.file == file]
    assert changes
    assert set(after) != set(before)
    for line in set(before) - set(after):
        assert any(re.search(change.pattern, line) for change in changes), line


@pytest.mark.parametrize("file", FILES)
def test_a_script_parses(file: str) -> None:
    done = subprocess.run(["bash", "-n"], input=adapted(file), text=True, capture_output=True, timeout=10)
    assert (done.returncode, done.stderr) == (0, "")


def test_ranks_differ_as_published() -> None:
    head, worker = (adapted(f"vllm-{role}.sh").splitlines() for role in ("head", "worker"))
    differing = [(a, b) for a, b in zip(head, worker, strict=False) if a != b]
    assert [a.split("=")[0].split()[0] for a, _ in differing] == ["export", "--nnodes", "--master-addr"]
    assert worker[-1] == "--headless"


def test_the_container_has_the_image_that_is_asked_for() -> None:
    assert " lab/image:1 sleep infinity" in adapted("container.sh", image="lab/image:1")


def test_a_change_that_finds_nothing_is_told(tmp_path: Path) -> None:
    for file in SEED.glob("*.sh"):
        (tmp_path / file.name).write_text(file.read_text().replace("192.168.1.11", "host"))
    with pytest.raises(LabError, match="192"):
        adapted("vllm-head.sh", seed=tmp_path)


def test_the_first_act_is_the_first_word_since_the_fault() -> None:
    journal = "".join(
        json.dumps({"__REALTIME_TIMESTAMP": f"{at}000000", "MESSAGE": "x"}) + "\n" for at in (99, 105, 102)
    )
    assert first_act(journal, 100.5) == 102.0
    assert first_act(journal, 106.0) is None
    assert first_act("", 0.0) is None


def test_what_never_was_has_no_time() -> None:
    assert wall_clock("\n") is None
    assert wall_clock("n/a\n") is None
    assert wall_clock("Thu 1970-01-01 00:00:01.500000 UTC\n") == 1.5
