"""How the lab's tests ask a doctor, and what they tell when its answer is not the right one."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.pair import Pair

ASKED_MAX = 3


def doctor(pair: Pair, node: str, *arguments: str, max_s: float = 30) -> dict[str, Any]:
    """What it says; asked again where the other node or a check had no answer in its time: on a machine that others use
    too that is true, and passes. What is there to stay is in the last answer as well."""
    for _ in range(ASKED_MAX - 1):
        answer = _doctor(pair, node, *arguments, max_s=max_s)
        if not _is_hurried(answer):
            return answer
    return _doctor(pair, node, *arguments, max_s=max_s)


def _is_hurried(answer: dict[str, Any]) -> bool:
    found = [finding["id"] for node in answer["nodes"] for finding in node["findings"]]
    return bool(answer["absent"]) or "doctor.no-answer" in found


def _doctor(pair: Pair, node: str, *arguments: str, max_s: float) -> dict[str, Any]:
    done = pair.lab.node(node).run(f"sparkd doctor --json {' '.join(arguments)}", timeout_s=max_s, check=False)
    assert done.stdout, f"no answer: {done.stderr}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def told(answer: dict[str, Any]) -> str:
    """Everything that is not good, for a failure's message."""
    lines = [f"headline: {answer['headline']}", f"absent: {answer['absent']}"]
    for node in answer["nodes"]:
        wrong = [finding for finding in node["findings"] if finding["verdict"] in ("bad", "warning")]
        lines += [f"{node['node']}: {finding['verdict']} {finding['id']}: {finding['says']}" for finding in wrong]
        lines += [f"{node['node']}: incident {i['id']} {i['current']}: {i['says']}" for i in node["incidents"]]
    return "\n".join([*lines, *(f"pair: {f['id']}: {f['says']}" for f in answer["pair"])])
