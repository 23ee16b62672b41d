"""What an end means: every recorded failure, and the ones that only the field reports, by the catalogue's ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkd.doctor.catalogue import forget, record
from sparkd.doctor.endings import classify_end
from sparkd.model.finding import Cure, Verdict

FIELD = Path(__file__).parent.parent / "data" / "field"


@pytest.mark.parametrize(
    ("name", "status", "rank", "id", "cure", "says"),
    [
        ("head-master-port-in-use.log", 1, 0, "link-master-port-in-use", Cure.RELAUNCH, "29502"),
        ("head-rendezvous-timeout.log", 1, 0, "link-tcpstore-join-timeout", Cure.RELAUNCH, "1/2 clients joined"),
        ("worker-rendezvous-timeout.log", 1, 1, "link-tcpstore-join-timeout", Cure.RELAUNCH, "(10.77.0.1, 29503)"),
        ("worker-without-headless.log", 1, 1, "script-worker-without-headless", Cure.PERSON, "--headless"),
        ("json-quotes-stripped.log", 2, 0, "script-json-quotes-stripped", Cure.PERSON, "--compilation-config"),
        ("speculative-config-stripped.log", 2, 0, "script-json-quotes-stripped", Cure.PERSON, "--speculative-config"),
        ("unknown-flag.log", 2, 0, "script-unknown-flag", Cure.PERSON, "--no-such-flag"),
        ("max-model-len-too-long.log", 1, 0, "script-max-model-len-too-long", Cure.PERSON, "999999"),
        ("memory-below-utilisation.log", 1, 0, "engine-free-memory-below-utilization", Cure.RELAUNCH, "9.47"),
        ("model-path-missing.log", 1, 0, "weights-path-missing", Cure.PERSON, "/nonexistent/model"),
        ("pair-head.log", 0, 0, "engine-peer-lost", Cure.RELAUNCH, "10.77.0.2"),
        ("pair-worker.log", 0, 1, "engine-lost", Cure.RELAUNCH, "rank 1 ended with status 0"),
        ("single-cold-start.log", 0, 0, "engine-stopped", Cure.RELAUNCH, "told to stop"),
    ],
)
def test_every_recording_ends_for_its_own_reason(
    name: str, status: int, rank: int, id: str, cure: Cure, says: str
) -> None:
    tail = (FIELD / name).read_bytes()[-32768:].decode(errors="replace")
    finding = classify_end(tail, status=status, signal=None, rank=rank)
    assert (finding.id, finding.cure, finding.verdict) == (id, cure, Verdict.BAD)
    assert says in finding.says and finding.remedy and finding.evidence and finding.layer
    assert "{" not in finding.says.replace("{method", "").replace("{cudagraph", "")
    assert finding.says.endswith("(rank 1)") == (rank == 1 and id != "engine-lost")


@pytest.mark.parametrize(
    ("line", "id", "cure"),
    [
        (
            "Free memory on device cuda:0 (4.75/119.67 GiB) on startup is less than desired GPU memory utilization",
            "engine-free-memory-below-utilization",
            Cure.RELAUNCH,
        ),
        (
            "Free memory on device cuda:0 (4.75/119.67 GiB) is less than desired GPU memory utilization (0.9).",
            "engine-free-memory-below-utilization",
            Cure.RELAUNCH,
        ),
        (
            "AttributeError: 'ShmRingBuffer' object has no attribute 'shared_memory'",
            "vllm-multiproc-fork-shmringbuffer",
            Cure.PERSON,
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (200000), (3.1 GiB KV cache is needed, ...",
            "engine-kv-cache-smaller-than-max-len",
            Cure.PERSON,
        ),
        ("ValueError: No available memory for the cache blocks.", "engine-no-cache-blocks", Cure.PERSON),
        (
            "UnboundLocalError: local variable 'w13' referenced before assignment",
            "image-mxfp4-patch-applied-twice",
            Cure.PERSON,
        ),
        (
            "UnboundLocalError: cannot access local variable 'w13_weight' where it is not associated with a value",
            "image-mxfp4-patch-applied-twice",
            Cure.PERSON,
        ),
        (
            "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
            "weights-truncated-safetensors",
            Cure.PERSON,
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "engine-oom-weights",
            Cure.RELAUNCH,
        ),
        (
            "ERROR 11-21 08:47:13 [m.py:315] Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.",
            "engine-core-died",
            Cure.RELAUNCH,
        ),
        ("TimeoutError: RPC call to execute_model timed out.", "engine-sample-tokens-timeout", Cure.RELAUNCH),
        ("OSError: [Errno 98] Address already in use", "endpoint-port-in-use", Cure.RELAUNCH),
        (
            "TimeoutError: Timed out waiting for engine core processes to start. Waited 600s",
            "engine-ready-timeout",
            Cure.RELAUNCH,
        ),
        ("[shutdown] MPClient: engine core exited unexpectedly; starting cleanup", "engine-dead", Cure.RELAUNCH),
        ("Error response from daemon: Container 1f2e is not running", "container-gone", Cure.RELAUNCH),
        ("Error: No such container: vllm-head", "container-gone", Cure.RELAUNCH),
        (
            "sparkd: no API key in /workspace/.sparkd-api-key; start the engine with: sparkd start",
            "engine-no-api-key",
            Cure.RELAUNCH,
        ),
        ("RuntimeError: NCCL error: unhandled system error", "link-nccl-unhandled-system-error", Cure.RELAUNCH),
        ("RuntimeError: CUDA error: unknown error", "engine-cuda-error", Cure.RELAUNCH),
        ("ModuleNotFoundError: No module named 'deep_gemm'", "image-deepgemm-missing", Cure.PERSON),
        ("ModuleNotFoundError: No module named 'some_module'", "image-python-module-missing", Cure.PERSON),
        (
            "RuntimeError: CUDA error: no kernel image is available for execution on the device",
            "image-no-kernel-image",
            Cure.PERSON,
        ),
        (
            "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
            "container-gpu-not-visible",
            Cure.PERSON,
        ),
    ],
)
def test_what_the_field_reports(line: str, id: str, cure: Cure) -> None:
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    finding = classify_end(f"INFO something before\n{line}\n{end}", status=1, signal=None, rank=0)
    assert (finding.id, finding.cure) == (id, cure)
    assert finding.evidence[0].strip("'") in line.replace("ERROR 11-21 08:47:13 ", "")


def test_a_dead_rank_is_named_with_its_signal() -> None:
    line = "Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor."
    said = classify_end(line, status=0, signal=None, rank=0).says
    assert "VllmWorker-1" in said and "killed by signal 9 (SIGKILL)" in said


@pytest.mark.parametrize(
    ("tail", "status", "signal", "id", "cure"),
    [
        ("", 126, None, "engine-exit-126", Cure.PERSON),
        ("", 127, None, "engine-exit-127", Cure.PERSON),
        ("/workspace/x.sh: line 40: exec: vllm: not found\n", 127, None, "engine-exit-127", Cure.PERSON),
        ("", 64, None, "engine-no-launch-id", Cure.PERSON),
        ("usage: vllm serve [model_tag] [options]\n", 2, None, "engine-arguments-rejected", Cure.PERSON),
        ("", None, 9, "engine-killed", Cure.RELAUNCH),
        ("", 137, None, "engine-killed", Cure.RELAUNCH),
        ("", 0, None, "engine-lost", Cure.RELAUNCH),
        ("", None, None, "engine-lost", Cure.RELAUNCH),
        ("INFO:     Application startup complete.\n", 127, None, "engine-lost", Cure.RELAUNCH),
    ],
)
def test_the_status_decides_where_the_log_says_nothing(
    tail: str, status: int | None, signal: int | None, id: str, cure: Cure
) -> None:
    finding = classify_end(tail, status=status, signal=signal, rank=0)
    assert (finding.id, finding.cure) == (id, cure)


def test_a_missing_script_is_named_by_its_path() -> None:
    tail = "bash: /workspace/x.sh: No such file or directory\n"
    finding = classify_end(tail, status=127, signal=None, rank=0)
    assert (finding.id, finding.cure) == ("unit-execstart-missing-script", Cure.PERSON)
    assert "/workspace/x.sh" in finding.says


def test_an_unknown_error_at_the_start_is_quoted() -> None:
    tail = 'Traceback (most recent call last):\n  File "x.py", line 1, in y\nodd.OddError: never seen before\n'
    finding = classify_end(tail, status=1, signal=None, rank=1)
    assert finding.id == "engine-lost"
    assert finding.says == "the engine of rank 1 ended with status 1: odd.OddError: never seen before"
    assert "does not say why" in classify_end(tail, status=0, signal=None, rank=1).says


def test_an_unknown_root_of_a_failed_start_is_quoted() -> None:
    tail = (
        "(VllmWorker-0 pid=9) ERROR 11-21 08:55:02 [multiproc_executor.py:953] ValueError: the moon is in the wrong house\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}\n"
    )
    finding = classify_end(tail, status=1, signal=None, rank=0)
    assert finding.id == "engine-core-init-failed"
    assert finding.says.endswith(": ValueError: the moon is in the wrong house")


def test_an_engine_that_served_did_not_fail_to_start() -> None:
    complaint = "ModuleNotFoundError: No module named 'x'\nmax_tokens: vllm: error: unrecognized arguments: --x\n"
    tail = f"INFO:     Application startup complete.\n{complaint}"
    assert classify_end(tail, status=None, signal=9, rank=0).id == "engine-killed"
    assert classify_end(complaint, status=None, signal=9, rank=0, ready=True).id == "engine-killed"


def test_a_fault_of_the_launch_before_is_not_this_ones() -> None:
    tail = "OSError: [Errno 98] Address already in use\nINFO:     Application startup complete.\n"
    assert classify_end(tail, status=0, signal=None, rank=0).id == "engine-lost"


def test_a_key_in_the_tail_is_never_told() -> None:
    tail = "non-default args: {'api_key': ['k-very-secret-1']}\nodd.OddError: token=k-very-secret-1\n"
    finding = classify_end(tail, status=1, signal=None, rank=0)
    assert "very-secret" not in f"{finding.says} {finding.evidence}"


@pytest.mark.parametrize(
    "id",
    [
        "engine-killed",
        "engine-lost",
        "engine-exit-126",
        "engine-exit-127",
        "engine-arguments-rejected",
        "engine-no-launch-id",
    ],
)
def test_what_no_log_shows_has_a_record_to_explain_it(id: str) -> None:
    known = record(id)
    assert known is not None and known.remedy and known.look and not known.signatures


def test_the_catalogue_can_be_dropped_between_two_ends() -> None:
    first = classify_end("", status=127, signal=None, rank=0)
    forget()
    assert classify_end("", status=127, signal=None, rank=0) == first


def test_what_has_served_is_tried_again_unless_the_hardware_is_broken() -> None:
    """A configuration that served an hour ago was not wrong then: blocking on a log's words alone would cost the night."""
    tail = "RuntimeError: CUDA error: no kernel image is available for execution on the device\n"
    assert classify_end(tail, status=1, signal=None, rank=0).cure is Cure.PERSON
    served = classify_end(tail, status=0, signal=None, rank=0, ready=True)
    assert served.cure is Cure.RELAUNCH
