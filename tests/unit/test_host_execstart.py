"""ExecStart paths: the programs and scripts of real units, on the host and in the container."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparkd.host.execstart import ID, Wanted, check_exec_paths, wanted_paths
from sparkd.host.units import UnitState
from sparkd.model.finding import Cure, Verdict

HEAD = "vllm-ds4-head.service"
FRAGMENT = f"/etc/systemd/system/{HEAD}"
DROP_IN = f"{FRAGMENT}.d/override.conf"


@pytest.fixture
def docker(tmp_path: Path) -> str:
    """A program named docker, where the machine may have none."""
    program = tmp_path / "docker"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


def unit(*exec_start: str, pre: tuple[str, ...] = (), ignored: tuple[str, ...] = ()) -> UnitState:
    def split(lines: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(shlex.split(line)) for line in lines)

    return UnitState(
        name=HEAD,
        load_state="loaded",
        active_state="inactive",
        sub_state="dead",
        fragment_path=FRAGMENT,
        drop_ins=(DROP_IN,),
        exec_start=split(exec_start),
        exec_start_pre=split(pre),
        ignored=split(ignored),
    )


def holding(*paths: str) -> Callable[[str, str], bool | None]:
    """A container named vllm_ds4 with these files; no other exists."""
    return lambda container, path: path in paths if container == "vllm_ds4" else None


def test_the_deployments_own_incident(docker: str) -> None:
    """ExecStart named a script that had only ever lived in the writable layer of a container since recreated."""
    seed = unit(
        f"{docker} exec vllm_ds4 bash /workspace/vllm-head-090.sh",
        pre=(
            "/bin/bash -c 'sync; echo 3 > /proc/sys/vm/drop_caches; true'",
            f"{docker} start vllm_ds4",
            "/bin/sleep 5",
        ),
    )
    (finding,) = check_exec_paths(seed, in_container=holding("/workspace/vllm-head.sh"))
    assert (finding.id, finding.verdict, finding.cure) == (ID, Verdict.BAD, Cure.PERSON)
    assert finding.says == (
        f"{HEAD}: ExecStart needs /workspace/vllm-head-090.sh in container vllm_ds4, where it does not exist"
    )
    assert finding.evidence == (FRAGMENT, DROP_IN)
    assert f"systemctl edit {HEAD}" in finding.remedy and "docker exec vllm_ds4 ls -l" in finding.remedy

    (finding,) = check_exec_paths(seed, in_container=holding("/workspace/vllm-head-090.sh"))
    assert finding.verdict is Verdict.GOOD and "/workspace/vllm-head-090.sh (in vllm_ds4)" in finding.says


def test_a_container_that_cannot_be_looked_into_is_unknown(docker: str) -> None:
    (finding,) = check_exec_paths(unit(f"{docker} exec gone bash /x.sh"), in_container=holding())
    assert finding.verdict is Verdict.UNKNOWN


def test_programs_and_scripts_on_the_host(tmp_path: Path) -> None:
    script, data = tmp_path / "run.sh", tmp_path / "data"
    script.touch()
    data.touch()

    def verdicts(line: str) -> list[Verdict]:
        return [finding.verdict for finding in check_exec_paths(unit(line), in_container=holding())]

    assert verdicts(f"/bin/bash {script}") == [Verdict.GOOD]
    assert verdicts(f"/bin/bash {tmp_path}/none.sh") == [Verdict.BAD]
    assert verdicts(f"{data} now") == [Verdict.BAD]  # not executable
    assert verdicts(f"{tmp_path}") == [Verdict.BAD]  # a directory
    assert verdicts("/opt/none/bin/x") == [Verdict.BAD]
    assert verdicts("sh -c true") == [Verdict.GOOD]  # a bare name, found along systemd's own path
    assert verdicts("no-such-program-anywhere") == [Verdict.BAD]
    assert verdicts("/bin/bash ${SCRIPT}") == [Verdict.UNKNOWN]
    assert verdicts("") == []


def test_a_relative_script_is_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "run.sh").touch()
    here = unit("/bin/bash run.sh")
    assert check_exec_paths(here, in_container=holding())[0].verdict is Verdict.BAD  # systemd starts in /
    there = replace(here, working_directory=str(tmp_path))
    assert check_exec_paths(there, in_container=holding())[0].verdict is Verdict.GOOD


def test_a_failure_that_the_unit_ignores_is_a_warning_before_the_start_only() -> None:
    line = "/opt/none/warm-up"
    (before,) = check_exec_paths(unit(pre=(line,), ignored=(line,)), in_container=holding())
    (start,) = check_exec_paths(unit(line, ignored=(line,)), in_container=holding())
    assert (before.verdict, start.verdict) == (Verdict.WARNING, Verdict.BAD)
    (prefixed,) = check_exec_paths(unit(pre=(f"-{line}",)), in_container=holding())
    assert prefixed.verdict is Verdict.WARNING and "needs /opt/none/warm-up" in prefixed.says


def test_a_unit_that_systemd_cannot_load_is_bad() -> None:
    masked = replace(unit(), load_state="masked")
    (finding,) = check_exec_paths(masked, in_container=holding())
    assert finding.is_bad and "masked" in finding.says


def test_a_file_that_changed_since_systemd_read_it_is_mentioned() -> None:
    stale = replace(unit("/opt/none/x"), needs_reload=True)
    assert "systemctl daemon-reload" in check_exec_paths(stale, in_container=holding())[0].remedy


HOST = Wanted("/bin/docker", None, program=True)
SCRIPT = Wanted("/w/x.sh", "c", program=False)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("/bin/docker exec c bash /w/x.sh a b", [HOST, SCRIPT]),
        ("/bin/docker exec -i -t c bash /w/x.sh", [HOST, SCRIPT]),
        ("/bin/docker exec -it -e A=b --env=C=d -u 0 --user=root -w /tmp --privileged c bash /w/x.sh", [HOST, SCRIPT]),
        ("/bin/docker exec -ite A=b -eC=d -- c bash -eux -o pipefail /w/x.sh", [HOST, SCRIPT]),
        ("/bin/docker -H unix:///d.sock --log-level=error container exec c sh /w/x.sh", [HOST, SCRIPT]),
        ("@/bin/docker exec c bash -- /w/x.sh", [HOST, SCRIPT]),
        ("-+/bin/docker exec c /w/run", [HOST, Wanted("/w/run", "c", program=True)]),
        (
            "/bin/docker exec c /bin/bash -lc '/w/run a'",
            [HOST, Wanted("/bin/bash", "c", True), Wanted("/w/run", "c", True)],
        ),
        ("/bin/docker exec c env A=b bash /w/x.sh", [HOST, SCRIPT]),
        ("/bin/docker exec c bash -c 'pkill -9 -f \"vllm serve\" || true'", [HOST]),
        ("/bin/docker exec c vllm serve /m", [HOST]),
        ("/bin/docker start c", [HOST]),
        ("/bin/docker exec", [HOST]),
        ("/bin/docker exec -it", [HOST]),
        ("/usr/bin/env -u A B=c bash /x.sh", [Wanted("/usr/bin/env", None, True), Wanted("/x.sh", None, False)]),
        ("/bin/bash -c 'exec /bin/docker exec c bash /w/x.sh'", [Wanted("/bin/bash", None, True), HOST, SCRIPT]),
        ("/bin/bash -c 'A=b; /w/x.sh'", [Wanted("/bin/bash", None, True)]),
        ("/bin/sh -s", [Wanted("/bin/sh", None, True)]),
        ("!!/usr/bin/python3 /x.py", [Wanted("/usr/bin/python3", None, True)]),
    ],
)
def test_what_a_command_needs(line: str, wanted: list[Wanted]) -> None:
    found = wanted_paths(shlex.split(line))
    assert [one for one in found if not one.path.endswith(("/bash", "/sh")) or one in wanted] == wanted
