"""An engine's log is written by its clients too: whatever stands in it, reading it ends, soon, and keeps little."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkd.doctor import normalise
from sparkd.doctor.catalogue import pattern, records
from sparkd.doctor.signatures import Text, classify
from sparkd.engine import log
from sparkd.engine.log import LaunchProgress, LogReader
from sparkd.model import redact
from sparkd.model.diagnosis import Source
from tests.unit.fuzzing import DATA, broken, examples, grows, runs

LOGS = sorted([*(DATA / "field").glob("*.log"), *(DATA / "field" / "gb10").glob("*.log")])

pieces = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            b"\r",
            b"\n",
            b"\r\n",
            b"\x1b[32m",
            b"(EngineCore pid=12) ",
            b"INFO 01-02 03:04:05 [a.py:1] ",
            b"50%",
            b"1/2 [",
            b"9" * 5000,
            b"Loading safetensors checkpoint shards: ",
            b"\xff",
            b"\xc3",
            b"Error: ",
            b"KV cache size: 1,2 tokens",
            b"x" * 70_000,
            "é".encode(),
            b"INFO:     Application startup complete.",
        ]
    ),
)


def state(progress: LaunchProgress) -> object:
    return progress.step, progress.ready, progress.facts, progress.processes, progress.errors, progress.progress(5.0)


@given(st.lists(pieces, max_size=12).map(b"".join), st.lists(st.integers(0, 80_000), max_size=6))
@settings(max_examples=examples(150))
def test_any_bytes_give_the_same_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    whole, parts = LaunchProgress(), LaunchProgress()
    events = whole.feed(data, 1.0)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    cut_events = [event for a, b in itertools.pairwise(places) for event in parts.feed(data[a:b], 1.0)]
    assert cut_events == events and state(parts) == state(whole)


def test_broken_logs_are_read(tmp_path: Path) -> None:
    originals = [path.read_bytes()[:30_000] for path in LOGS]
    for chance in runs(80):
        data = broken(chance.choice(originals), chance)
        progress = LaunchProgress()
        progress.feed(data, 1.0)
        says = progress.progress(2.0)
        assert says.eta_s is not None and says.eta_s >= 0
        if chance.random() < 0.2:
            classify([Text(data.decode("utf-8", "replace"), Source.VLLM_LOG)])


@pytest.mark.parametrize(
    "block",
    [
        b"x" * 65536,
        b"\n" * 8192,
        b"\r" * 8192,
        b"(a pid=1) " * 6553,
        b"\x1b[3" * 16384,
        b"\xff" * 65536,
        b"1" * 65536,
        b"50%|" * 16384,
    ],
    ids=lambda block: repr(block[:8]),
)
def test_a_log_without_an_end_is_not_kept(block: bytes) -> None:
    """Some hundred KiB of it here; what is kept does not depend on how much it was."""
    progress = LaunchProgress()
    progress.feed(block, 1.0)
    tracemalloc.start()
    for number in range(6):
        progress.feed(block, float(number))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 200_000


def test_invented_processes_are_not_counted_for_ever() -> None:
    progress = LaunchProgress()
    for number in range(5000):
        progress.feed(b"(Worker_%d pid=1) INFO hello\n" % number, 1.0)
    assert len(progress.processes) <= 64


def test_a_bar_of_thousands_of_digits_is_no_bar() -> None:
    """Python makes no number of 4300 digits: it took the daemon's watch over the log with it."""
    reader = LogReader()
    reader.feed(b"Loading: 5%| | " + b"9" * 5000 + b"/" + b"9" * 5000 + b" [\n")
    (event,) = reader.feed(b"Loading: 50%| | 23/46 [00:10<00:10]\n")
    assert (event.kind, event.done, event.total) == ("progress", 23, 46)


@pytest.mark.parametrize(
    "odd", ["1", "a", "A", " ", "-", "a.", "1%", "1/1 ", "( pid=1", "[", "\x1b[", "Loading "], ids=repr
)
def test_a_long_line_takes_time_in_proportion(odd: str) -> None:
    def parse(size: int) -> None:
        log.parse_line((odd * size)[:size])

    assert grows(parse, 15_000) < 9


# --- the catalogue --------------------------------------------------------------------------------

PUMPS = (
    "1",
    "a",
    "A",
    "-",
    ".",
    "/",
    " ",
    "1.",
    "a.",
    "a-",
    "a_",
    "[",
    "(",
    "'",
    "=",
    ":",
    "a:",
    "1/1 ",
    "\\",
    "a b ",
    "1,",
    "ib",
)


def pumps(regex: str) -> list[str]:
    """What may send a search back and forth: what the pattern itself is made of, and single characters, without an end."""
    plain = re.sub(r"\\[A-Za-z]|\(\?(?:P<\w+>|[:=!<]+)|[\[\](){}|?*+^$.]|\\.", " ", regex)
    words = [word for word in plain.split() if len(word) > 1][:4]
    return [*PUMPS, *words, *(word + end for word in words[:2] for end in ("1", " ", "a"))]


def is_slow(compiled: re.Pattern[str], pump: str) -> bool:
    """Much longer than in proportion. What is fast with a long line is not measured: there, the clock would decide."""

    def search(size: int) -> None:
        for _ in compiled.finditer((pump * (size // len(pump) + 1))[:size]):
            pass

    return _seconds(search, 6000) > 0.03 and grows(search, 1500) > 9


def _seconds(work: object, size: int) -> float:
    from tests.unit.fuzzing import _took

    return _took(work, size)  # type: ignore[arg-type]


def test_no_pattern_of_the_catalogue_can_be_made_to_take_for_ever() -> None:
    """A quadratic one holds a doctor for a minute over one line of 32 KiB, and an autopsy with it."""
    regexes = {signature.regex for record in records().values() for signature in record.signatures}
    assert len(regexes) > 400
    slow = [(regex, pump) for regex in sorted(regexes) for pump in pumps(regex) if is_slow(pattern(regex), pump)]
    assert not slow


@pytest.mark.parametrize(
    "odd", ["\\", "a", "1", " ", "[", "\x1b[", "&#1", "12:34:56 ", '{"log":', "-", "INFO ", "\\u00", "'"], ids=repr
)
def test_bringing_a_line_into_one_form_takes_time_in_proportion(odd: str) -> None:
    def work(size: int) -> None:
        normalise.normalise((odd * size)[:size])

    assert grows(work, 8000) < 9


# --- secrets --------------------------------------------------------------------------------------

SECRETS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "api_key",
            "token",
            "--api-key",
            "=",
            ":",
            '"',
            "'",
            "[",
            "]",
            ",",
            "{",
            "}",
            "(",
            ")",
            "Authorization:",
            "Bearer",
            "sk-abcdefghijk",
            "hf_abcdefgh12345",
            "https://",
            "user",
            "@",
            "host",
            "?",
            "&",
            "sig=",
            "-----BEGIN",
            "SOME_KEY=",
            "password",
            "cookie:",
            "x-api-key",
            "eyJabcdefgh.",
            "[redacted]",
            "none",
            "a.b.",
            "-",
            "--",
            "_",
            ";",
            "secret",
            "pwd",
            "AKIAABCDEFGHIJKLMNOP",
            "S3cr3t",
            "1234567",
            "`",
            "basic",
        ]
    ),
    st.sampled_from(["\n", " ", "\0", '\\"', "\\\\'", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"]),
)


@given(st.lists(SECRETS, max_size=14).map("".join))
@settings(max_examples=examples(400))
def test_redaction_is_done_once_and_for_all(text: str) -> None:
    from sparkd.model.outside import clean

    hidden = redact.redact(text)
    assert redact.redact(hidden) == hidden
    assert len(hidden) <= 11 * len(text) + 20
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    cleaned.encode()


@pytest.mark.parametrize(
    "odd",
    ["a-", "key=[", "key='", "token: ", "sk-", "--api-key ", 'a.b.key\\"', "https://a:b@", "?key=", "eyJaaaaaaaa."],
)
def test_redaction_takes_time_in_proportion(odd: str) -> None:
    def work(size: int) -> None:
        redact.redact((odd * size)[:size])

    assert grows(work, 10_000) < 9
