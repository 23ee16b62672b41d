"""One form for every log: what comes off, what stays, and where a line stood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkd.doctor.normalise import logged_at, normalise, uptime_s, without_prefix


@pytest.mark.parametrize(
    ("line", "normal"),
    [
        ("Nov 21 09:01:41 spark1 systemd[1]: x.service: Failed", "x.service: Failed"),
        ("Jun  7 14:44:32  systemd[1]: x.service: Failed", "x.service: Failed"),
        ("avril 16 21:08:50 systemd-oomd[93234]: Killed /x", "Killed /x"),
        ("Jun 12 06:38:31: mem avail:   607 of   950 MiB", "mem avail: 607 of 950 MiB"),
        ("2026-11-21T09:01:41+0100 spark1 kernel: NVRM: Xid", "NVRM: Xid"),
        (
            "[2025-09-17 15:16:23] host-2:311:405 [0] transport/net_ib.cc:199 NCCL WARN NET/IB : x",
            "NCCL WARN NET/IB : x",
        ),
        ("[ 123.456789] NVRM: Xid", "NVRM: Xid"),
        ("[99.1][ T2793] bond0: up", "bond0: up"),
        ("[Fri Aug  7 03:13:04] mlx5_core 0000:01:00.0: x", "mlx5_core 0000:01:00.0: x"),
        ("<6>[1.0] usb 1-1: x", "usb 1-1: x"),
        (
            "(EngineCore_0 pid=1) (VllmWorker TP0 pid=2) ERROR 08-25 11:01:23 [core.py:12] ValueError: x",
            "ValueError: x",
        ),
        ("INFO 05-01 12:00:00 llm_engine.py:161] text", "text"),
        ("ERROR:    [Errno 98] error while", "[Errno 98] error while"),
        ("INFO:swift:text", "text"),
        ("ERROR hermes_tool_parser.py:136 - Error in x", "Error in x"),
        ("[rank4]:[W810 23:02:42.934129975 TCPStore.cpp:125] [c10d] recvValue failed", "[c10d] recvValue failed"),
        ("W1121 09:05:17.690000 13905 torch/_library/triton.py:53] Triton not available", "Triton not available"),
        ("2025-01-01 12:00:00,123 - vllm.engine - ERROR - text", "text"),
        ('time="2026-11-21T09:01:41.1Z" level=error msg="no space left"', 'no space left"'),
        ("worker-1  | text", "text"),
        ("[pod/vllm-0/engine] text", "text"),
        ("> quoted   text", "quoted text"),
        ("   12.34 recorded", "recorded"),
        ("a `b` \u2018c\u2019 \u201cd\u201d\u00a0e\tf", "a 'b' 'c' \"d\" e f"),
        ("said &quot;x&quot; &lt;y&gt;", 'said "x" <y>'),
        (r"\"x\" it\u0027s", '"x" it\'s'),
        ("RuntimeError: x: y", "RuntimeError: x: y"),
        ("NVRM: Xid (PCI:000f:01:00): 79, GPU", "NVRM: Xid (PCI:000f:01:00): 79, GPU"),
        ("vllm.v1.engine.exceptions.EngineDeadError: x", "vllm.v1.engine.exceptions.EngineDeadError: x"),
        ("/dev/shm/psm_f49f4149", "/dev/shm/psm_f49f4149"),
        ("--enforce-eager", "--enforce-eager"),
        ("Model: x [0]rocep1s0f0:1/RoCE", "Model: x [0]rocep1s0f0:1/RoCE"),
        ('{"error":"Unauthorized"}', '{"error":"Unauthorized"}'),
        (
            '{"object":"error","message":"no such model","code":404}',
            '{"object":"error","message":"no such model","code":404}',
        ),
    ],
)
def test_a_line_has_one_form(line: str, normal: str) -> None:
    assert normalise(line).normal == [normal]


def test_progress_bars_and_escaped_newlines_become_lines_of_their_own() -> None:
    lines = normalise("a\rb\nc\\nd\ne")
    assert lines.normal == ["a", "b", "c", "d", "e"] and lines.numbers == [1, 1, 2, 2, 3]


def test_what_docker_cut_is_put_together() -> None:
    text = '{"log":"Engine core ini","stream":"stderr"}\n{"log":"tialization failed\\n","stream":"stderr"}\nx\n'
    assert normalise(text).normal[:2] == ["Engine core initialization failed", "x"]


def test_what_kubernetes_cut_is_put_together() -> None:
    text = "2026-11-21T09:01:41.1Z stderr P Engine core ini\n2026-11-21T09:01:41.1Z stderr F tialization failed\n"
    assert normalise(text).normal[0] == "Engine core initialization failed"


def test_the_journals_numbers_are_text() -> None:
    codes = ",".join(str(byte) for byte in b"\x1b[31mNVRM: x\x1b[0m")
    assert normalise(f'{{"MESSAGE":[{codes}],"_PID":"1"}}').normal == ["NVRM: x"]


def test_argv_and_environment_of_a_process_are_lines_of_words() -> None:
    assert normalise("vllm\x00serve\x00--port\x008000").normal == ["vllm serve --port 8000"]


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("Nov 21 09:01:41 spark1 systemd[1]: x", "Nov 21 09:01:41"),
        ("2026-11-21T09:01:41+0100 spark1 kernel: x", "2026-11-21T09:01:41+0100"),
        ("(EngineCore pid=1) ERROR 08-25 11:01:23 [core.py:12] x", "08-25 11:01:23"),
        ("[ 123.456789] NVRM: Xid", "123.456789"),
        ("no time at all", ""),
    ],
)
def test_the_time_of_a_line_is_as_it_was_logged(line: str, at: str) -> None:
    assert logged_at(line) == at


def test_evidence_keeps_its_own_quotes() -> None:
    assert without_prefix("ERROR 08-25 11:01:23 [core.py:12] The model `x`  is") == "The model `x`  is"


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=400))
def test_any_text_has_a_form(text: str) -> None:
    lines = normalise(text)
    assert len(lines.bare) == len(lines.normal) == len(lines.numbers)
    assert lines.numbers == sorted(lines.numbers) and (not lines.numbers or lines.numbers[-1] <= text.count("\n") + 1)


def test_line_ends_of_windows_make_no_empty_lines() -> None:
    assert normalise("first\r\nsecond\r\n").normal == ["first", "second", ""]


def test_an_address_that_a_paste_made_a_link_is_an_address_again() -> None:
    pasted = "NCCL WARN NET/IB : Got completion from peer [10.1.3.201](http://10.1.3.201/)<33057> with status=9"
    assert normalise(pasted).normal == ["NCCL WARN NET/IB : Got completion from peer 10.1.3.201<33057> with status=9"]


def test_a_log_without_line_ends_is_cut_and_loses_nothing() -> None:
    words = [f"word{n}" for n in range(20_000)]
    cut = normalise(" ".join(words))
    assert len(cut.normal) > 1 and max(map(len, cut.normal)) <= 33_000 and set(cut.numbers) == {1}
    assert {word for line in cut.normal for word in line.split()} >= set(words)
    assert len(normalise("x" * 100_000).normal) > 1


@pytest.mark.parametrize(
    ("line", "seconds"),
    [("[ 9031.525000] mlx5_core", 9031.525), ("Sep 19 09:40:11 host kernel: [   12.5] x", None), ("plain", None)],
)
def test_the_uptime_in_front_of_a_line(line: str, seconds: float | None) -> None:
    assert uptime_s(line) == seconds
