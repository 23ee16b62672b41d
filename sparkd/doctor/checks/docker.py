"""Layer docker: the daemon that runs the engine's container."""

from __future__ import annotations

from sparkd.doctor.check import Answers, Gate, check, no, yes
from sparkd.doctor.facts import Facts, runtimes
from sparkd.model.errors import UnreachableError
from sparkd.model.finding import Cure, Layer


@check(
    "docker.unreachable",
    layer=Layer.DOCKER,
    question="Does the Docker daemon answer?",
    how="GET /info on its socket",
    means="Without Docker no container can be looked at or started. While a node boots it may still come.",
    remedy="systemctl status docker",
    sample="Docker does not answer: no such file or directory (/var/run/docker.sock)",
    cure=Cure.WAIT,
    gate=Gate.HOST,
)
def unreachable(facts: Facts) -> Answers:
    try:
        known = runtimes(facts)
    except UnreachableError as error:
        yield no(str(error), remedy=error.hint)
    else:
        yield yes(f"Docker answers (runtimes: {', '.join(known)})")
