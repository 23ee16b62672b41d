"""What an end means: every recorded failure, and the ones that only the field reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkd.engine.log import classify_end
from sparkd.model.finding import Cure, Verdict

FIELD = Path(__file__).parent.parent / "data" / "field"


@pytest.mark.parametrize(
    ("name", "status", "rank", "id", "cure", "says"),
    [
        ("head-master-port-in-use.log", 1, 0, "engine.port-in-use", Cure.RELAUNCH, "29502"),
        ("head-rendezvous-timeout.log", 1, 0, "engine.rendezvous-timeout", Cure.RELAUNCH, "1/2 clients joined"),
        ("worker-rendezvous-timeout.log", 1, 1, "engine.rendezvous-timeout", Cure.RELAUNCH, "(10.77.0.1, 29503)"),
        ("worker-without-headless.log", 1, 1, "engine.worker-not-headless", Cure.PERSON, "--headless"),
        ("json-quotes-stripped.log", 2, 0, "engine.arguments-rejected", Cure.PERSON, "--compilation-config"),
        ("speculative-config-stripped.log", 2, 0, "engine.arguments-rejected", Cure.PERSON, "--speculative-config"),
        ("unknown-flag.log", 2, 0, "engine.arguments-rejected", Cure.PERSON, "--no-such-flag"),
        ("max-model-len-too-long.log", 1, 0, "engine.max-model-len", Cure.PERSON, "999999"),
        ("memory-below-utilisation.log", 1, 0, "engine.start-out-of-memory", Cure.RELAUNCH, "memory"),
        ("model-path-missing.log", 1, 0, "weights.model-path", Cure.PERSON, "/nonexistent/model"),
        ("pair-head.log", 0, 0, "engine.peer-lost", Cure.RELAUNCH, "10.77.0.2"),
        ("pair-worker.log", 0, 1, "engine.lost", Cure.RELAUNCH, "rank 1 ended with status 0"),
        ("single-cold-start.log", 0, 0, "engine.stopped", Cure.RELAUNCH, "told to stop"),
    ],
)
def test_every_recording_ends_for_its_own_reason(
    name: str, status: int, rank: int, id: str, cure: Cure, says: str
) -> None:
    tail = (FIELD / name).read_bytes()[-32768:].decode(errors="replace")
    finding = classify_end(tail, status=status, signal=None, rank=rank)
    assert (finding.id, finding.cure, finding.verdict) == (id, cure, Verdict.BAD)
    assert says in finding.says and finding.remedy and finding.evidence
    assert "{" not in finding.says.replace("{method", "").replace("{cudagraph", "")


@pytest.mark.parametrize(
    ("line", "id", "cure"),
    [
        (
            "Free memory on device cuda:0 (4.75/119.67 GiB) on startup is less than desired GPU memory utilization",
            "engine.start-out-of-memory",
            Cure.RELAUNCH,
        ),
        (
            "Free memory on device cuda:0 (4.75/119.67 GiB) is less than desired GPU memory utilization (0.9).",
            "engine.start-out-of-memory",
            Cure.RELAUNCH,
        ),
        ("AttributeError: 'ShmRingBuffer' object has no attribute 'shared_memory'", "engine.shm-fork", Cure.PERSON),
        (
            "ValueError: To serve at least one request with the model's max seq len (200000), (3.1 GiB KV cache is needed, ...",
            "engine.kv-cache-too-small",
            Cure.PERSON,
        ),
        ("UnboundLocalError: local variable 'w13' referenced before assignment", "image.mxfp4-doubled", Cure.PERSON),
        (
            "UnboundLocalError: cannot access local variable 'w13_weight' where it is not associated with a value",
            "image.mxfp4-doubled",
            Cure.PERSON,
        ),
        (
            "ERROR 11-21 08:47:13 [m.py:315] Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.",
            "engine.rank-died",
            Cure.RELAUNCH,
        ),
        ("TimeoutError: RPC call to execute_model timed out.", "engine.rpc-timeout", Cure.RELAUNCH),
        ("OSError: [Errno 98] Address already in use", "engine.port-in-use", Cure.RELAUNCH),
        (
            "TimeoutError: Timed out waiting for engine core processes to start. Waited 600s",
            "engine.ready-timeout",
            Cure.RELAUNCH,
        ),
        ("[shutdown] MPClient: engine core exited unexpectedly; starting cleanup", "engine.core-died", Cure.RELAUNCH),
        ("Error response from daemon: Container 1f2e is not running", "container.gone", Cure.RELAUNCH),
        (
            "sparkd: no API key in /workspace/.sparkd-api-key; start the engine with: sparkd start",
            "engine.no-api-key",
            Cure.RELAUNCH,
        ),
        ("RuntimeError: NCCL error: unhandled system error", "engine.cuda-error", Cure.RELAUNCH),
        ("ModuleNotFoundError: No module named 'deep_gemm'", "image.wrong-build", Cure.PERSON),
        (
            "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
            "engine.no-device",
            Cure.PERSON,
        ),
    ],
)
def test_what_the_field_reports(line: str, id: str, cure: Cure) -> None:
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    finding = classify_end(f"INFO something before\n{line}\n{end}", status=1, signal=None, rank=0)
    assert (finding.id, finding.cure) == (id, cure)
    assert finding.evidence[0] in line


def test_a_dead_rank_is_named_with_its_signal() -> None:
    line = "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."
    assert "VllmWorker-1 died: killed by signal 9 (SIGKILL)" in classify_end(line, status=0, signal=None, rank=0).says


@pytest.mark.parametrize(
    ("tail", "status", "signal", "id", "cure"),
    [
        ("bash: /workspace/x.sh: No such file or directory\n", 127, None, "engine.exit-127", Cure.PERSON),
        ("/workspace/x.sh: line 40: exec: vllm: not found\n", 127, None, "engine.exit-127", Cure.PERSON),
        ("OCI runtime exec failed: permission denied", 126, None, "engine.exit-126", Cure.PERSON),
        ("", None, 9, "engine.killed", Cure.RELAUNCH),
        ("", 137, None, "engine.killed", Cure.RELAUNCH),
        ("", 0, None, "engine.lost", Cure.RELAUNCH),
        ("", None, None, "engine.lost", Cure.RELAUNCH),
        ("INFO:     Application startup complete.\n", 127, None, "engine.lost", Cure.RELAUNCH),
    ],
)
def test_the_status_decides_where_the_log_says_nothing(
    tail: str, status: int | None, signal: int | None, id: str, cure: Cure
) -> None:
    finding = classify_end(tail, status=status, signal=signal, rank=0)
    assert (finding.id, finding.cure) == (id, cure)


def test_an_unknown_error_at_the_start_is_quoted() -> None:
    tail = 'Traceback (most recent call last):\n  File "x.py", line 1, in y\nzmq.error.ZMQError: Too many open files\n'
    finding = classify_end(tail, status=1, signal=None, rank=1)
    assert finding.id == "engine.lost"
    assert finding.says == "the engine of rank 1 ended with status 1: zmq.error.ZMQError: Too many open files"
    assert "does not say why" in classify_end(tail, status=0, signal=None, rank=1).says


def test_an_unknown_root_of_a_failed_start_is_quoted() -> None:
    tail = (
        "(VllmWorker-0 pid=9) ERROR 11-21 08:55:02 [multiproc_executor.py:953] ValueError: head size 33 is not supported\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}\n"
    )
    finding = classify_end(tail, status=1, signal=None, rank=0)
    assert finding.id == "engine.start-failed"
    assert finding.says == "the engine failed while it started: ValueError: head size 33 is not supported"


def test_an_engine_that_served_did_not_fail_to_start() -> None:
    complaint = "ImportError: optional thing\nmax_tokens: vllm: error: x\n"
    tail = f"INFO:     Application startup complete.\n{complaint}"
    assert classify_end(tail, status=None, signal=9, rank=0).id == "engine.killed"
    assert classify_end(complaint, status=None, signal=9, rank=0, ready=True).id == "engine.killed"
