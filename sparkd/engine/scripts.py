"""The launch script, from the plan into the container, and proof that it arrived as it left."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sparkd.engine.container import Docker
from sparkd.model.finding import Cure, Finding, FindingError, bad, good
from sparkd.model.plan import Plan
from sparkd.model.render import API_KEY_PATH

SCRIPT_MODE, API_KEY_MODE = 0o755, 0o600
_SCRIPT_MAX_BYTES = 1 << 20
_SYNTAX_MAX_S = 10


@dataclass(frozen=True)
class Staged:
    """The script in the container. `written` is False where it was there already, byte for byte."""

    path: str
    sha256: str
    written: bool


def stage(docker: Docker, container: str, plan: Plan, *, api_key: str | None) -> Staged:
    """Puts the script (and the API key, readable by root alone) into the container and reads both back.

    Equal files are left as they are. Raises FindingError `script.not-staged` where what is read back
    is not what was written: a mount over the path, a full disk.
    """
    written = _put(docker, container, plan.script_path, plan.script.encode(), SCRIPT_MODE)
    if api_key is not None:
        written |= _put(docker, container, API_KEY_PATH, api_key.encode(), API_KEY_MODE)
    return Staged(plan.script_path, _sha256(plan.script.encode()), written)


def verify(docker: Docker, container: str, plan: Plan) -> Finding:
    """Whether the script in the container is the plan's. Writes nothing."""
    actual = docker.read_file(container, plan.script_path, _SCRIPT_MAX_BYTES)
    if actual is None:
        return bad(
            "script.missing",
            f"{plan.script_path} is not in container {container}",
            cure=Cure.RELAUNCH,  # the next launch stages it
            remedy="sparkd restart",
        )
    if actual != plan.script.encode():
        return bad(
            "script.differs",
            f"{plan.script_path} in container {container} is not the plan's script",
            cure=Cure.RELAUNCH,
            remedy="sparkd restart",
            evidence=(f"plan {_sha256(plan.script.encode())[:12]}, container {_sha256(actual)[:12]}",),
        )
    return good("script.staged", f"{plan.script_path} in container {container} is the plan's script")


def check_syntax(docker: Docker, container: str, path: str) -> Finding:
    """`bash -n` with the container's own bash. Works for an operator's script as for ours."""
    status, output = docker.exec_run(container, ["bash", "-n", path], timeout_s=_SYNTAX_MAX_S)
    lines = tuple(line for line in output.strip().splitlines() if line)[:5]
    if status == 0:
        return good("script.syntax", f"{path} parses")
    if status == 127:
        return bad(
            "script.missing",
            f"{path} is not in container {container}",
            cure=Cure.PERSON,
            remedy=f"docker exec {container} ls -l {path}",
            evidence=lines,
        )
    what = "there is no bash to run it" if status == 126 else "bash cannot parse it"
    return bad(
        "script.syntax",
        f"{path} in container {container}: {what}",
        cure=Cure.PERSON,
        remedy=f"docker exec {container} bash -n {path}",
        evidence=lines,
    )


def _put(docker: Docker, container: str, path: str, data: bytes, mode: int) -> bool:
    """True where it had to be written."""
    if _stands(docker, container, path, data, mode):
        return False
    docker.write_file(container, path, data, mode)
    if not _stands(docker, container, path, data, mode):
        raise FindingError(
            bad(
                "script.not-staged",
                f"{path} in container {container} does not hold what was written to it",
                cure=Cure.PERSON,
                remedy=f"docker exec {container} ls -l {path}; df inside the container; is something mounted over it?",
            )
        )
    return True


def _stands(docker: Docker, container: str, path: str, data: bytes, mode: int) -> bool:
    found = docker.path_stat(container, path)
    if found is None or found.is_directory or found.link_target or found.mode != mode or found.size != len(data):
        return False
    actual = docker.read_file(container, path, len(data))
    return actual is not None and _sha256(actual) == _sha256(data)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
