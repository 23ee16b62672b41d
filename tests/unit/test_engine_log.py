"""The reader and the progress, on whole recorded starts and on the formats of other versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkd.engine.log import GB10_DURATIONS_S, STEPS, LaunchProgress, LogReader, parse_line

FIELD = Path(__file__).parent.parent / "data" / "field"
STARTS = ["pair-head.log", "single-cold-start.log", *(f"gb10/{p.name}" for p in sorted((FIELD / "gb10").glob("*.log")))]


def timed_lines(name: str) -> list[tuple[float, bytes]]:
    """The recording's lines with their second, or one a second where it has no such column (gb10)."""
    lines: list[tuple[float, bytes]] = []
    for line in (FIELD / name).read_bytes().split(b"\n"):
        match = re.match(rb"^ *(\d+\.\d\d) ", line)
        at = float(match[1]) if match else (lines[-1][0] if lines else 0.0) + (name.startswith("gb10"))
        lines.append((at, line[match.end() :] + b"\n" if match else line + b"\n"))
    return lines


def replayed(name: str, **fields: object) -> tuple[LaunchProgress, list[str], list[str]]:
    progress = LaunchProgress(**fields)  # type: ignore[arg-type]
    steps, says = [progress.step], [""]
    for at, line in timed_lines(name):
        progress.feed(line, at)
        if progress.step != steps[-1]:
            steps.append(progress.step)
        if (said := progress.progress(at).says) != says[-1]:
            says.append(said)
    return progress, steps, says[1:]


@pytest.mark.parametrize("name", STARTS)
def test_every_recorded_start_becomes_ready_step_by_step(name: str) -> None:
    progress, steps, says = replayed(name)
    assert progress.ready and says[-1] == "ready"
    assert steps == sorted(steps, key=STEPS.index), "steps only go forward"
    assert {"imports", "rendezvous", "weights", "kv-cache", "server"} <= set(steps)
    assert int(progress.facts["kv_cache_tokens"]) > 1000 and float(progress.facts["max_concurrency"]) > 1
    assert progress.facts["version"].startswith("0.")
    assert set(progress.durations()) == set(steps)


def test_a_pair_says_what_it_does_and_what_it_learned() -> None:
    progress, _, says = replayed("pair-head.log")
    assert says == [
        "starting",
        "waiting for the other ranks",
        "loading weights",
        "weights 0/6 shards",
        "weights 6/6 shards",
        "sizing the KV cache",
        "starting the server",
        "ready",
    ]
    assert progress.durations()["imports"] == pytest.approx(38.8, abs=0.1)
    assert progress.facts["kv_cache_tokens"] == "2097152"
    assert "Worker_TP0" in progress.processes and progress.errors > 0


def test_a_speculative_start_on_gb10_has_a_draft_and_graphs() -> None:
    progress, steps, says = replayed("gb10/single-spark-speculative.log")
    assert steps == list(STEPS)
    assert "draft model 1/1 shards" in says and "CUDA graphs 32/32" in says
    assert progress.facts["weights_load_s"] == "120.01", "the model's, not its draft's"
    assert progress.facts["model_load_s"].startswith("127.")


def test_a_worker_has_few_marks_and_is_never_ready() -> None:
    progress, steps, says = replayed("pair-worker.log", rank=1)
    assert not progress.ready and steps[:3] == ["imports", "rendezvous", "weights"]
    assert says[-1] == "weights loaded, warming up with the head"
    assert progress.facts["version"] == "0.32.0"
    assert set(progress.durations()) == {"imports", "rendezvous", "weights"}


def test_the_eta_comes_from_what_this_node_learned() -> None:
    learned = replayed("pair-head.log")[0].durations()
    progress = LaunchProgress(learned=learned)
    assert progress.progress(0).fraction == 0.0
    assert progress.progress(0).eta_s == pytest.approx(sum(learned.values()), abs=0.5)
    fractions = []
    for at, line in timed_lines("pair-head.log"):
        progress.feed(line, at)
        fractions.append(progress.progress(at).fraction or 0.0)
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert progress.progress(99).eta_s == 0.0


def test_without_learning_the_eta_is_that_of_gb10_and_the_fraction_unknown() -> None:
    first = LaunchProgress().progress(0)
    assert first.fraction is None and first.eta_s == pytest.approx(sum(GB10_DURATIONS_S.values()))


def test_shards_tell_their_own_pace() -> None:
    progress = LaunchProgress()
    progress.feed(b"INFO 06-07 23:15:22 [gpu_model_runner.py:4766] Starting to load model /m...\n", 100)
    progress.feed(b"\rLoading safetensors checkpoint shards:  26% Completed | 12/46 [00:42<01:59,  3.51s/it]\r", 142)
    after = sum(GB10_DURATIONS_S[step] for step in STEPS[STEPS.index("weights") + 1 :])
    assert progress.progress(142).says == "weights 12/46 shards"
    assert progress.progress(142).eta_s == pytest.approx(42 * 34 / 12 + after, abs=0.1)


def test_a_small_model_that_nobody_knows_yet_soon_has_a_small_eta() -> None:
    progress, etas = LaunchProgress(), []
    for at, line in timed_lines("pair-head.log"):
        progress.feed(line, at)
        if progress.step == "kv-cache":
            etas.append(progress.progress(at).eta_s)
    assert etas and max(etas) < 10, "it took 3 s more"


@pytest.mark.parametrize(
    ("line", "kind", "name"),
    [
        ("(EngineCore_0 pid=1) (VllmWorker TP0 pid=2) INFO 08-25 11:01:23 [x.py:267] Loading drafter model...", "phase", "draft"),
        ("INFO 06-07 19:47:52 [kv_cache_utils.py:1766] GPU KV cache size: 519,920 tokens", "fact", "kv_cache_tokens"),
        ("\x1b[36m(Worker_TP0_EP0 pid=7)\x1b[0m INFO 06-07 19:47:52 [a.py:1] Starting to load model /m...", "phase", "weights"),
        ("Capturing CUDA graph shapes:  50%|█████     | 4/8 [00:01<00:01,  3.1it/s]", "progress", "Capturing CUDA graph shapes"),
        ("Loading pt checkpoint shards:  50% Completed | 1/2 [00:00<00:00, 1.1it/s]", "progress", "Loading pt checkpoint shards"),
        ("(APIServer pid=1) INFO:     Application startup complete.", "ready", ""),
        ("(Worker pid=1) ERROR 11-21 09:05:40 [multiproc_executor.py:1063] WorkerProc hit an exception.", "error", ""),
        ("torch.distributed.DistStoreError: Timed out after 31 seconds waiting for clients.", "error", ""),
        ("INFO:     127.0.0.1:58564 - \"GET /health HTTP/1.1\" 200 OK", "line", ""),
    ],
)  # fmt: skip
def test_lines_of_several_versions(line: str, kind: str, name: str) -> None:
    assert (kind, name) in [(event.kind, event.name) for event in parse_line(line)]


def test_the_process_name_shows_expert_parallelism() -> None:
    progress = LaunchProgress()
    progress.feed(b"(Worker_TP0_EP0 pid=7) INFO 06-07 19:47:52 [a.py:1] Starting to load model /m...\n", 1)
    assert progress.processes == {"Worker_TP0_EP0"}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=400), min_size=1, max_size=60))
def test_how_the_bytes_are_cut_does_not_matter(cuts: list[int]) -> None:
    data = b"".join(line for _, line in timed_lines("pair-head.log"))[:12000]
    whole = LogReader().feed(data)
    reader, pieces, at = LogReader(), [], 0
    for cut in cuts:
        pieces += reader.feed(data[at : at + cut])
        at += cut
    pieces += reader.feed(data[at:])
    assert pieces == whole


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    reader = LogReader()
    for _ in range(100):
        reader.feed(b"x" * 10000)
    assert sum(map(len, reader._parts)) <= 64 * 1024
    (only,) = reader.feed(b"\n")
    assert len(only.text) <= 64 * 1024
