"""How the lab's tests ask a doctor, and what they tell when its answer is not the right one."""

from __future__ import annotations

import json
from typing import Any

from tests.lab.pair import Pair


def doctor(pair: Pair, node: str, *arguments: str, max_s: float = 30) -> dict[str, Any]:
    """What it says; asked once more where the other node did not answer, as when the machine is too busy to in time."""
    answer = _doctor(pair, node, *arguments, max_s=max_s)
    return _doctor(pair, node, *arguments, max_s=max_s) if answer["absent"] else answer


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
