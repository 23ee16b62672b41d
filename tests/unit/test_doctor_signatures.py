"""The catalogue against its own examples, against healthy logs, and against recorded failures: roots first, or silence."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkd.cli.explain import lines
from sparkd.doctor.catalogue import Record, Signature, forget, load, pattern, records, wanted
from sparkd.doctor.declared import find
from sparkd.doctor.needles import needles
from sparkd.doctor.searching import matching
from sparkd.doctor.signatures import Text, classify, sentence
from sparkd.model.diagnosis import Kind, Source
from sparkd.model.errors import SparkdError
from sparkd.model.finding import LAYERS, Verdict

DATA = Path(__file__).parent.parent / "data"
FIELD = DATA / "field"

HEALTHY_LOGS = ["pair-worker.log", "gb10/single-spark-bf16.log", "gb10/single-spark-speculative.log",
                "gb10/single-spark-speculative-long.log"]  # fmt: skip
FAILING_LOGS = {
    "head-master-port-in-use.log": "link-master-port-in-use",
    "head-rendezvous-timeout.log": "link-tcpstore-join-timeout",
    "worker-rendezvous-timeout.log": "link-tcpstore-join-timeout",
    "worker-without-headless.log": "script-worker-without-headless",
    "json-quotes-stripped.log": "script-json-quotes-stripped",
    "speculative-config-stripped.log": "script-json-quotes-stripped",
    "unknown-flag.log": "script-unknown-flag",
    "max-model-len-too-long.log": "script-max-model-len-too-long",
    "memory-below-utilisation.log": "engine-free-memory-below-utilization",
    "model-path-missing.log": "weights-path-missing",
    "pair-head.log": "engine-peer-lost",
}


def signatures() -> Iterator[tuple[Record, Signature]]:
    for record in records().values():
        yield from ((record, signature) for signature in record.signatures)


def examples() -> Iterator[tuple[Record, str]]:
    for record, signature in signatures():
        yield from ((record, text) for text in (signature.example, *signature.examples) if text)


def pieces(name: str) -> Iterator[tuple[str, str]]:
    """(id, text) of each piece of a file of several; the id is empty where none is named."""
    text = (DATA / "incidents" / name).read_text(encoding="utf-8")
    for piece in re.split(r"^(?:---\n|(?==== ))", text, flags=re.M):
        named = re.match(r"=== (\S+)\n(?:# .*\n)*", piece)
        if piece.strip():
            yield (named[1], piece[named.end() :]) if named else ("", piece)


def ids(text: str, source: Source | None = None, *, noise: bool = False) -> list[str]:
    return [one.id for one in classify([Text(source, text)], noise=noise)]


@pytest.mark.parametrize("record", records().values(), ids=list(records()))
def test_a_record_is_whole(record: Record) -> None:
    assert record.layer in LAYERS and record.cause and record.remedy and record.fix
    if "-" in record.id and "." not in record.id:  # dotted names are those of checks and of the daemon's own steps
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", record.id) and record.refs
        assert record.signatures or record.look, "neither a line to find nor a place to look at"
    else:
        assert not record.signatures
    assert record.verdict in (Verdict.BAD, Verdict.WARNING)
    assert "\n" not in record.says.strip() and not record.says.endswith(".")
    groups = {
        name.rstrip("0123456789") for signature in record.signatures for name in pattern(signature.regex).groupindex
    }
    assert set(re.findall(r"\{(\w+)\}", record.says)) <= groups
    assert sentence(record.says, {}) and "{" not in sentence(record.says, {})
    assert all(id in records() for id in record.explains), set(record.explains) - set(records())


@pytest.mark.parametrize(("record", "signature"), list(signatures()), ids=lambda one: getattr(one, "id", ""))
def test_a_signature_has_an_example_that_it_matches(record: Record, signature: Signature) -> None:
    assert signature.example and signature.origin
    assert matching(signature.regex, signature.example)


@pytest.mark.parametrize(("record", "example"), list(examples()), ids=lambda one: getattr(one, "id", ""))
def test_an_example_is_named_by_its_own_record_first(record: Record, example: str) -> None:
    told = ids(example, noise=record.kind is Kind.NOISE)
    assert told, "not recognised at all"
    first = records()[told[0]]
    assert first.id == record.id or record.id in first.explains, told


def test_the_checks_that_a_record_names_exist() -> None:
    assert [(record.id, id) for record in records().values() for id in record.checks if find(id) is None] == []


def test_explain_tells_which_checks_look_at_the_same() -> None:
    told = "\n".join(lines(records()["link-memlock-ibv-reg-mr"]))
    assert re.search(r"checks: +link\.memlock", told)


@pytest.mark.parametrize("name", HEALTHY_LOGS)
def test_nothing_is_told_of_a_healthy_log(name: str) -> None:
    text = (FIELD / name).read_text(encoding="utf-8", errors="replace")
    for source in (None, Source.VLLM_LOG, Source.JOURNAL):
        assert ids(text, source) == []


@pytest.mark.parametrize("name", ["pair-head.log", "single-cold-start.log"])
def test_nothing_is_told_of_a_start_that_became_ready(name: str) -> None:
    text = (FIELD / name).read_text(encoding="utf-8", errors="replace")
    start = text[: text.index("Application startup complete.")]
    assert ids(start) == [] and ids(start + "Application startup complete.\n") == []


def test_an_engine_that_was_told_to_stop_did_not_crash() -> None:
    text = (FIELD / "single-cold-start.log").read_text(encoding="utf-8", errors="replace")
    assert "EngineDeadError" in text and ids(text) == []


@pytest.mark.parametrize(
    "path", [*FIELD.glob("metrics*.txt"), *(FIELD / "http").glob("[chlmprsv]*.txt")], ids=lambda p: p.name
)
def test_nothing_is_told_of_a_healthy_answer(path: Path) -> None:
    assert ids(path.read_text(encoding="utf-8", errors="replace")) == []


@pytest.mark.parametrize("piece", [text for _, text in pieces("healthy.txt")])
def test_nothing_is_told_of_healthy_lines(piece: str) -> None:
    assert ids(piece) == []


@pytest.mark.parametrize(("name", "id"), list(FAILING_LOGS.items()))
def test_a_recorded_failure_is_named_by_its_root(name: str, id: str) -> None:
    text = (FIELD / name).read_text(encoding="utf-8", errors="replace")
    for source in (None, Source.VLLM_LOG):
        incidents = classify([Text(source, text, where=name)])
        assert incidents[0].id == id and incidents[0].current and incidents[0].verdict is Verdict.BAD
        assert incidents[0].where.startswith(f"{name}:")


@pytest.mark.parametrize(("id", "piece"), list(pieces("roots.txt")))
def test_a_published_failure_is_named_by_its_root(id: str, piece: str) -> None:
    assert ids(piece)[0] == id


WRAPPED = [
    (
        "link-master-port-in-use",
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address."
        " port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    ),
    (
        "host-memory-oom-killer",
        "Out of memory: Killed process 3742074 (lmcache) total-vm:81306880kB, anon-rss:1058560kB, oom_score_adj:0",
    ),
    (
        "driver-gsp-rpc-timeout",
        "NVRM: Xid (PCI:000f:01:00): 119, pid=3849, name=KMS thread,"
        " Timeout after 45s of waiting for RPC response from GPU0 GSP!",
    ),
]


@pytest.mark.parametrize(("id", "line"), WRAPPED)
@pytest.mark.parametrize("width", [40, 60, 72, 80])
def test_a_line_that_a_terminal_wrapped_is_still_found(id: str, line: str, width: int) -> None:
    inside_words = "\n".join(line[at : at + width] for at in range(0, len(line), width))
    between_words = re.sub(rf"(.{{1,{width}}})(?: |$)", r"\1\n", line)
    assert ids(inside_words)[0] == id and ids(between_words)[0] == id


ENVELOPES = {
    "docker": '{{"log":"{json}\\n","stream":"stderr","time":"2026-11-21T09:01:41.123456789Z"}}',
    "journal as JSON": '{{"MESSAGE":"{json}","_PID":"12","SYSLOG_IDENTIFIER":"docker"}}',
    "compose": "vllm-head-1  | {line}",
    "kubernetes": "2026-11-21T09:01:41.123456789Z stderr F {line}",
    "journal": "Nov 21 09:01:41 spark1 docker[4711]: {line}",
    "journal, iso": "2026-11-21T09:01:41+0100 spark1 docker[4711]: {line}",
    "dmesg": "[12345.678901] {line}",
    "dmesg -T": "[Fri Nov 21 03:13:04 2026] {line}",
    "dmesg, raw": "<3>[12345.678901] {line}",
    "syslog of a kernel": "Nov 21 09:01:41 spark1 kernel: [12345.678901] {line}",
    "vLLM": "(EngineCore_0 pid=675221) (VllmWorker TP0 pid=675227) ERROR 08-25 11:01:23 [core.py:12] {line}",
    "vLLM in colours": "\x1b[1;36m(EngineCore_DP0 pid=12)\x1b[0;0m ERROR 08-25 11:01:23 [core.py:12] {line}",
    "vLLM, escape lost": "[1;36m(EngineCore_DP0 pid=12)[0;0m ERROR 08-25 11:01:23 [core.py:12] {line}",
    "Ray": "(RayWorkerWrapper pid=91312, ip=10.0.0.2) ERROR 05-28 03:19:56 [worker_base.py:620] {line}",
    "rank": "[rank0]:[E321 02:07:08.408271257 ProcessGroupNCCL.cpp:607] [Rank 0] {line}",
    "quoted": "> > {line}",
    "Python logger": "2026-11-21 09:01:41,123 - vllm.engine - ERROR - {line}",
    "recording": "   41.61 {line}",
    "carriage return": "Loading safetensors:  50% Completed | 3/6\r{line}\r",
    "JSON inside text": "detail=\\\"{line}\\\" status=500",
}  # fmt: skip


@pytest.mark.parametrize("envelope", ENVELOPES.values(), ids=list(ENVELOPES))
@pytest.mark.parametrize(("id", "line"), WRAPPED)
def test_a_line_is_found_in_every_envelope(id: str, line: str, envelope: str) -> None:
    text = envelope.format(line=line, json=line.replace('"', '\\"'))
    incident = classify([Text(None, text)])[0]
    assert incident.id == id
    assert incident.evidence[0].startswith(line[:20]) or "detail=" in envelope or "Loading" in envelope


def test_a_root_in_one_text_silences_consequences_in_another() -> None:
    head = Text(Source.VLLM_LOG, "EngineDeadError: EngineCore encountered an issue.", "head", "spark1")
    kernel = Text(
        Source.KERNEL_LOG, "Out of memory: Killed process 12 (VLLM::Worker_TP) total-vm:1kB", "kernel", "spark2"
    )
    assert [one.id for one in classify([head])] == ["engine-dead"]
    told = classify([head, kernel])
    assert [(one.id, one.node) for one in told] == [("host-memory-oom-killer", "spark2")]
    assert "VLLM::Worker_TP" in told[0].says


def test_what_only_warns_does_not_silence_a_death() -> None:
    text = "NCCL INFO Using network Socket\nEngineDeadError: EngineCore encountered an issue.\n"
    assert ids(text) == ["engine-dead", "link-nccl-socket-fallback"]


def test_a_harmless_warning_that_broke_something_is_bad() -> None:
    change = "NCCL WARN NET/IB : rocep1s0f1:1 GID table changed\n"
    assert classify([Text(None, change)])[0].verdict is Verdict.WARNING
    told = classify([Text(None, change + "TimeoutError: RPC call to sample_tokens timed out.\n")])
    assert (told[0].id, told[0].verdict) == ("link-gid-table-changed", Verdict.BAD)


def test_a_changed_gid_table_is_nothing_while_tokens_advance() -> None:
    busy = (
        "INFO [loggers.py:127] Engine 000: Avg prompt throughput: 1.0 tokens/s, Avg generation throughput: 34.5 tokens/s\n"
        * 60
    )
    assert ids(busy + "NCCL WARN NET/IB : rocep1s0f1:1 GID table changed\n" + busy) == []
    still = busy.replace("34.5", "0.0")
    assert ids(busy + "NCCL WARN NET/IB : rocep1s0f1:1 GID table changed\n" + still) == ["link-gid-table-changed"]


def test_memory_errors_of_the_driver_count_by_their_number() -> None:
    line = "NVRM: nvCheckOkFailedNoLog: Check failed: Out of memory [NV_ERR_NO_MEMORY] (0x00000051) returned from x\n"
    boot = "".join(f"[{n}.5] usb 1-1: new device number {n}\n" for n in range(900))
    assert ids(line) == ["driver-nv-err-no-memory"]
    assert ids(boot + 23 * line) == []
    told = classify([Text(None, boot + 24 * line)])
    assert [(one.id, one.verdict, one.count) for one in told] == [("driver-nv-err-no-memory", Verdict.BAD, 24)]


def test_a_port_that_never_was_up_is_no_incident_of_a_whole_log() -> None:
    boot = "".join(f"[{n}.5] usb 1-1: new device number {n}\n" for n in range(90))
    down, up = (
        "[99.5] mlx5_core 0000:01:00.1 enp1s0f1np1: Link down\n",
        "[99.1] mlx5_core 0000:01:00.1 enp1s0f1np1: Link up\n",
    )
    assert ids(down) == ["link-port-down"]
    assert ids(boot + down) == [] and ids(boot + down + up) == []
    assert ids(boot + up + down) == ["link-port-down"]


def test_a_port_that_goes_down_long_after_the_boot_is_told() -> None:
    units = [f"Sep 19 09:{n % 60:02d}:01 spark-a systemd[1]: Finished job {n}." for n in range(60)]
    down = "Sep 19 09:40:11 spark-a kernel: mlx5_core 0000:01:00.1 enp1s0f1np1: Link down"
    assert ids("\n".join([*units, down, *units])) == ["link-port-down"]
    booting = "Sep 19 09:00:01 spark-a kernel: Linux version 6.17.0-1014-nvidia (buildd@host)"
    assert ids("\n".join([booting, *units, down, *units])) == []
    kernel = [f"[{n:5d}.000001] usb 1-4: new device number {n}" for n in range(60)]
    for seconds, told in (("   31.5", []), (" 9031.5", ["link-port-down"])):
        line = f"[{seconds}] mlx5_core 0000:01:00.1 enp1s0f1np1: Link down"
        assert ids("\n".join([*kernel, line]), Source.KERNEL_LOG) == told


def test_a_few_refused_requests_among_answered_ones_are_no_incident() -> None:
    ok, refused = (
        f'INFO: 10.0.0.7:51234 - "POST /v1/chat/completions HTTP/1.1" {status}' for status in ("200 OK", "401")
    )
    assert ids("\n".join([refused] * 3)) == ["client-unauthorized"]
    assert ids("\n".join([ok] * 40 + [refused] * 3 + [ok] * 40)) == []
    assert ids("\n".join([ok] * 40 + [refused] * 40)) == ["client-unauthorized"]


def test_a_line_that_repeats_without_end_is_counted_whole() -> None:
    line = "INFO 04-06 20:46:01 [shm_broadcast.py:548] No available shared memory broadcast block found in 60 seconds."
    (incident,) = classify([Text(None, "\n".join([line] * 3000))])
    assert incident.id == "engine-shm-broadcast-stall" and incident.count == 3000


def test_a_failed_launch_before_a_good_one_is_history() -> None:
    failed = (
        "RuntimeError: The server socket has failed to listen on any local network address. port: 29501, code: -98\n"
    )
    told = classify([Text(None, f"{failed}EngineDeadError: x\nINFO:     Application startup complete.\n")])
    assert [(one.id, one.current) for one in told] == [("link-master-port-in-use", False)]
    again = classify([Text(None, f"INFO:     Application startup complete.\n{failed}")])
    assert [(one.id, one.current) for one in again] == [("link-master-port-in-use", True)]
    assert not classify([Text(None, failed, current=False)])[0].current


def test_a_normal_line_tells_something_only_as_the_last_one() -> None:
    line = "CustomAllreduce is disabled because this process group spans across nodes.\n"
    assert ids(line) == ["link-nccl-init-hang"]
    assert ids(line + "INFO 08-25 11:01:23 [x.py:1] going on\n" * 7) == []


def test_noise_is_told_only_when_asked_for() -> None:
    line = "mlx5_core 0000:12:00.0: mlx5_pcie_event:299: Detected insufficient power on the PCIe slot (27W)."
    assert ids(line) == [] and ids(line, noise=True) == ["link-mlx5-27w-noise"]


def test_evidence_holds_no_secret_and_no_prefix() -> None:
    line = "(APIServer pid=1) ERROR 08-25 11:01:23 [x.py:1] OSError: [Errno 28] No space left on device: '/c?api_key=secret-1'"
    incident = classify([Text(None, line, where="/var/log/x.log")])[0]
    assert incident.evidence == ("OSError: [Errno 28] No space left on device: '/c?api_key=[redacted]'",)
    assert (incident.where, incident.at) == ("/var/log/x.log:1", "08-25 11:01:23")


def test_lines_are_numbered_as_in_the_file() -> None:
    text = 'one\n{"log":"a\\nb\\n","stream":"stderr"}\nx\r50%\ry\nOut of memory: Killed process 12 (python3) total-vm:1kB\n'
    assert classify([Text(None, text, where="f")])[0].where == "f:4"


@pytest.mark.parametrize("signature", [one for _, one in signatures()], ids=lambda one: one.regex[:40])
def test_a_pattern_does_not_run_away(signature: Signature) -> None:
    """Texts made of what patterns like to repeat: each search stays far below a second."""
    compiled = re.compile(signature.regex, re.IGNORECASE)
    start = signature.example[: len(signature.example) // 2]
    for filler in (
        "a" * 4000,
        "a " * 2000,
        "/" * 4000,
        "1.2" * 1300,
        ("x=1," * 1000),
        start * max(1, 4000 // max(1, len(start))),
    ):
        began = time.perf_counter()
        compiled.search(start + filler)
        assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize(("record", "signature"), list(signatures()), ids=lambda one: getattr(one, "id", ""))
def test_a_needle_is_part_of_what_its_pattern_matches(record: Record, signature: Signature) -> None:
    found = wanted(signature.regex)
    assert found, "without a needle it is tried on every line of every log"


@pytest.mark.parametrize(
    ("regex", "promised"),
    [
        ("foo.*barbar", ("barbar",)),
        ("(?:alpha|omega) longer", (" longer",)),
        ("(?:alphabet|omegapoint) x", ("alphabet", "omegapoint")),
        ("(?:alpha|omega)?xy", ()),
        ("colou?red", ("colo",)),
        ("abcdx*yzyz", ("abcd",)),
        ("abcdx+y", ("abcdx",)),
        (r"a\.b\[c\] \d+defghijk", ("defghijk",)),
        ("(?!never)always(?=later)", ("always",)),
        ("[abc]{3}word{2,4}end", ("word",)),
        ("worn{0,4}endless", ("endless",)),
        ("(?P<x>inside[^)]word)|other", ("inside", "other")),
        (r"(?P<x>abcd)(?P=x)", ("abcd",)),
        ("Word", ("word",)),
        ("abcd|x", ()),
    ],
)
def test_needles_are_read_off_a_pattern(regex: str, promised: tuple[str, ...]) -> None:
    assert needles(regex) == promised


def test_a_pattern_never_matches_without_its_needle() -> None:
    for record, example in examples():
        lowered = " ".join(example.lower().replace("`", "'").split())
        for signature in record.signatures:
            if re.search(signature.regex, lowered, re.I):
                assert any(needle in lowered for needle in wanted(signature.regex)), (record.id, signature.regex)


def test_a_sentence_reads_well_when_nothing_fills_it() -> None:
    assert sentence("port {port} is taken ({by}): {why}", {}) == "port is taken"
    assert sentence("port {port} is taken ({by}): {why}", {"port": "1", "why": "x."}) == "port 1 is taken: x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- id: a-b\n  kind: root\n", "verdict"),
        ("- id: a-b\n  kind: rot\n", "kind"),
        ("just: text\n", "is not a list of records"),
        ("- [\n", "cannot be read"),
        ("- just text\n", "is not a record"),
    ],
)
def test_bad_data_is_named_with_its_file(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "link.yaml").write_text(text)
    with pytest.raises(SparkdError, match=says) as raised:
        load(tmp_path)
    assert raised.value.where.startswith("link.yaml")


def test_the_catalogue_is_read_once_and_can_be_dropped() -> None:
    first = records()
    assert records() is first
    forget()
    assert records() is not first and dict(records()) == dict(first)


def test_megabytes_of_a_healthy_log_cost_little() -> None:
    line = (
        "Nov 21 09:05:40 spark1 docker[12]: (APIServer pid=1) INFO 11-21 09:05:40 [loggers.py:127] Engine 000: "
        "Avg prompt throughput: 1.0 tokens/s, Running: 1 reqs\n"
    )
    text = line * (3_000_000 // len(line))
    records()
    began = time.process_time()
    assert classify([Text(None, text)]) == []
    assert (
        time.process_time() - began < 2.0
    )  # about 0.4 s on two slow cores; a pattern without a needle costs more than that
