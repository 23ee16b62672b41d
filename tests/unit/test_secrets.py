"""No exit shows a secret: each kind of secret, in the form in which it really comes, through each door where text leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkd.agent.journal import Journal
from sparkd.cli import output
from sparkd.config.load import load, plan_for
from sparkd.doctor.bundle import pack
from sparkd.doctor.endings import classify_end
from sparkd.doctor.signatures import Text, classify
from sparkd.engine.process import argument_differences
from sparkd.model.diagnosis import Source
from sparkd.model.errors import SparkdError
from sparkd.model.finding import Cure, bad
from tests.unit.fuzzing import ROOT
from tests.unit.peer_pair import report

SECRET = "S3cr3tValue99"
PLANTED = [
    f"(APIServer pid=1) INFO 11-21 10:00:00 [utils.py:253] non-default args: {{'model': '/m', 'api_key': ['{SECRET}']}}",
    f"Error: HF_TOKEN={SECRET} is not valid",
    f"docker run -e VLLM_API_KEY={SECRET} image",
    f"vllm serve /m --api-key {SECRET} --port 8000",
    f"curl -H 'Authorization: Bearer {SECRET}' http://x",
    f"postgres://user:p@{SECRET}@host/x",
    f"aws_secret_access_key = {SECRET}",
    f'{{"api_key": ["a1", "{SECRET}"]}}',
    f"SPARKD_CLUSTER_KEY={SECRET}",
]


def of_render(line: str, folder: Path) -> str:
    etc = folder / "etc"
    subprocess.run(["cp", "-r", str(ROOT / "config"), str(etc)], check=True)
    recipe = etc / "recipes" / "deepseek-v4-flash.yaml"
    recipe.write_text(
        recipe.read_text().replace("environment:\n", f"environment:\n  HF_TOKEN: {json.dumps(SECRET)}\n", 1)
    )
    assert SECRET in plan_for(load(etc / "sparkd.yaml")).ranks[0].script
    argv = [sys.executable, "-m", "sparkd", "render", "--rank", "0", "--config", str(etc / "sparkd.yaml")]
    shown = [
        subprocess.run([*argv, *more], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
        for more in ([], ["--json"])
    ]
    assert all("HF_TOKEN" in each for each in shown)
    return "".join(shown)


def of_logs(line: str, folder: Path) -> str:
    engine = folder / "log" / "engine"
    engine.mkdir(parents=True)
    (engine / "0f0f0f0f-18.log").write_text(f"a\n{line}\x1b]0;owned\x07\nb\n")
    environment = {
        "LOGS_DIRECTORY": str(folder / "log"),
        "STATE_DIRECTORY": str(folder),
        "RUNTIME_DIRECTORY": str(folder),
        "PATH": "/usr/bin:/bin",
    }
    argv = [sys.executable, "-m", "sparkd", "logs", "--launch", "0f0f0f0f-18"]
    shown = [
        subprocess.run(
            [*argv, *more], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60, env=environment
        ).stdout
        for more in ([], ["--json"], ["--raw"])
    ]
    assert SECRET in shown[2] and "\x1b]" not in shown[0]
    return shown[0] + shown[1]


def of_events(line: str, folder: Path) -> str:
    Journal(folder / "events.jsonl").add("engine.lost", line, epoch=1, phase="idle")
    return (folder / "events.jsonl").read_text()


def of_finding(line: str, folder: Path) -> str:
    return bad("engine.lost", line, cure=Cure.RELAUNCH, remedy=line, evidence=(line,)).model_dump_json()


def of_report(line: str, folder: Path) -> str:
    return report(reason=line).model_dump_json()


def of_bundle(line: str, folder: Path) -> str:
    def broken() -> str:
        raise SparkdError(line)

    packed = pack(folder / "b.tar.gz", [("a.txt", lambda: line), ("b.txt", broken)])
    done = subprocess.run(["tar", "xzOf", str(packed.path)], capture_output=True, text=True, check=True)
    assert "[redacted]" in done.stdout
    return done.stdout


def of_doctor(line: str, folder: Path) -> str:
    log = f"INFO start\n{line}\nRuntimeError: {line}\nEngine core initialization failed. See root cause above.\n"
    found = classify([Text(log, Source.VLLM_LOG)])
    return (
        "".join(one.model_dump_json() for one in found)
        + classify_end(log, status=1, signal=None, rank=0).model_dump_json()
    )


def of_drift(line: str, folder: Path) -> str:
    return "".join(argument_differences(("vllm", "--api-key", SECRET), ("vllm", "--port", "1")))


EXITS: list[Callable[[str, Path], str]] = [of_events, of_finding, of_report, of_bundle, of_doctor, of_drift]


@pytest.mark.parametrize("exit_", EXITS, ids=lambda exit_: exit_.__name__)
@pytest.mark.parametrize("line", PLANTED, ids=lambda line: line[:20])
def test_no_exit_shows_a_secret(line: str, exit_: Callable[[str, Path], str], tmp_path: Path) -> None:
    assert SECRET not in exit_(line, tmp_path)


@pytest.mark.parametrize("exit_", [of_render, of_logs], ids=lambda exit_: exit_.__name__)
def test_no_command_shows_a_secret_unasked(exit_: Callable[[str, Path], str], tmp_path: Path) -> None:
    assert SECRET not in exit_(PLANTED[0], tmp_path)


def test_no_error_shows_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for line in PLANTED:
        output.report_error(SparkdError(line, where=line, hint=line), as_json=True)
    told = capsys.readouterr()
    assert SECRET not in told.out + told.err and "[redacted]" in told.out and "[redacted]" in told.err
