"""The engine's log while it is written: bytes in, events out, and how far a start has come. Pure.

Understands vLLM 0.9 to 0.32: prefixes with and without process names, progress bars that end in carriage
returns, colours, and messages whose wording changed. A worker prints few of them, and no "ready".
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from sparkd.model.report import Progress

# In the order in which a start goes through them; not every start has every one.
STEPS = ("imports", "rendezvous", "weights", "draft", "compile", "kv-cache", "graphs", "server")

# Seconds of each step for a 149 GB model on two GB10, 46 shards from local ext4: what is assumed until this
# node has learned its own (measured there: weights, draft, compile, graphs; the others from one-Spark starts).
GB10_DURATIONS_S = {
    "imports": 40.0,
    "rendezvous": 15.0,
    "weights": 164.0,
    "draft": 24.0,
    "compile": 16.0,
    "kv-cache": 30.0,
    "graphs": 180.0,
    "server": 10.0,
}

_PACE_STEPS = ("weights", "draft", "compile", "graphs")  # those whose length comes with the model

_SAYS = {
    "imports": "starting",
    "rendezvous": "waiting for the other ranks",
    "weights": "loading weights",
    "draft": "loading the draft model",
    "compile": "compiling",
    "kv-cache": "sizing the KV cache",
    "graphs": "capturing CUDA graphs",
    "server": "starting the server",
}

_LINE_MAX_CHARS = 64 * 1024  # of a longer line the rest is left out
_MESSAGE_MAX_CHARS = 2000  # of a message: what means something stands at its beginning. Clients can make the rest of it
_NAMES_MAX = 64  # of processes
_FRACTION_MAX = 0.99  # only "ready" is all of it

_LINE_BREAK = re.compile(r"[\r\n]")
_PARTS_MAX = 256
_PREFIXES_MAX = 8
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"\((?P<name>[^()]{1,64}?) pid=\d{1,10}\)\s*")
_STAMP = re.compile(r"(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?")
_BAR = re.compile(r"(?P<what>[^|%\r\n]{0,200}?):?\s{0,8}\d{1,3}%.{0,400}?(?P<done>\d{1,9})/(?P<total>\d{1,9})\s{0,8}\[")

# Message to step. A step begins with the first of its messages and lasts until a later one begins.
_BEGINNINGS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (step, re.compile(pattern))
    for step, pattern in (
        ("rendezvous", r"world_size=\d+ rank=\d+ local_rank=\d+ distributed_init_method="),
        ("weights", r"Starting to load model |Loading model from scratch|Loading \S+ checkpoint shards:"),
        ("draft", r"Loading drafter model"),
        ("compile", r"for vLLM's torch\.compile|Dynamo bytecode transform time|Start compiling"),
        ("compile", r"Compiling a graph|Directly load the compiled graph"),
        ("kv-cache", r"Available KV cache memory|KV cache size: [\d,]+ tokens|for KV cache on node|# GPU blocks"),
        ("graphs", r"Capturing CUDA graph|Graph capturing finished"),
        ("server", r"Starting vLLM (?:API )?server|Started server process|Supported[_ ]tasks"),
    )
)
_READY = re.compile(r"^INFO:\s+Application startup complete\.")
_FACTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("version", re.compile(r"Initializing a V1 LLM engine \(v(?P<value>[^)]+)\)|Launching vLLM \(v(?P<value2>[^)]+)\)")),
    ("kv_cache_tokens", re.compile(r"KV cache size: (?P<value>[\d,]+) tokens")),
    ("max_concurrency", re.compile(r"Maximum concurrency for [\d,]+ tokens per request: (?P<value>[\d.]+)x")),
    ("model_load_s", re.compile(r"Model loading took .*? and (?P<value>[\d.]+) seconds")),
    ("weights_load_s", re.compile(r"Loading weights took (?P<value>[\d.]+) seconds")),
    ("init_engine_s", re.compile(r"init engine \(profile, create kv cache, warmup model\) took (?P<value>[\d.]+) s")),
    ("stalled", re.compile(r"(?P<value>No available shared memory broadcast block found in \d+ seconds)")),
)  # fmt: skip
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): |^Traceback \(most recent call last\)|: error: ")


@dataclass(frozen=True)
class LogEvent:
    """One line that was understood, or was not (`line`).

    phase: `name` is a step that begins. progress: `name` what is counted, `done` of `total`. fact: `name` and
    `value`. ready: the endpoint listens. error: the engine calls it one.
    """

    kind: str  # phase, progress, fact, ready, error, line
    text: str  # the message, without prefix and colours
    process: str = ""  # APIServer, EngineCore, Worker_TP0_EP0, ...
    name: str = ""
    value: str = ""
    done: int = 0
    total: int = 0


class LogReader:
    """Turns what is read from the log into events. Keeps an unfinished line until the rest of it comes."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parts: list[str] = []  # of a line that is not whole yet
        self._chars = 0

    def feed(self, data: bytes) -> list[LogEvent]:
        """The same events, however the log was cut into pieces."""
        *ends, rest = _LINE_BREAK.split(self._decoder.decode(data))
        events: list[LogEvent] = []
        for end in ends:
            self._keep(end)
            events += parse_line("".join(self._parts))
            self._parts, self._chars = [], 0
        self._keep(rest)
        return events

    def _keep(self, part: str) -> None:
        """No more than a line may have: what has no end is not kept."""
        part = part[: _LINE_MAX_CHARS - self._chars]
        if part:
            self._parts.append(part)
            self._chars += len(part)
        if len(self._parts) > _PARTS_MAX:
            self._parts = ["".join(self._parts)]


def parse_line(line: str) -> list[LogEvent]:
    """The events of one line: a line may begin a step and hold two facts. Empty for an empty line."""
    text, process, level = _ANSI.sub("", line).strip(), "", ""
    for _ in range(_PREFIXES_MAX):
        if not (match := _PROCESS.match(text)):
            break
        process, text = match["name"], text[match.end() :]
    if match := _STAMP.match(text):
        level, text = match["level"], text[match.end() :]
    text = text.strip()
    if not text:
        return []
    told = text[:_MESSAGE_MAX_CHARS]
    events = [LogEvent("phase", text, process, name=name) for name, pattern in _BEGINNINGS if pattern.search(told)][:1]
    if match := _BAR.match(told):
        what = match["what"].strip()
        events.append(
            LogEvent("progress", text, process, name=what, done=int(match["done"]), total=int(match["total"]))
        )
    for name, pattern in _FACTS:
        if match := pattern.search(told):
            value = next(group for group in match.groups() if group is not None)
            events.append(LogEvent("fact", text, process, name=name, value=value))
    if _READY.match(told):
        events.append(LogEvent("ready", text, process))
    elif level in ("ERROR", "CRITICAL") or _ERROR.search(told):
        events.append(LogEvent("error", text, process))
    return events or [LogEvent("line", text, process)]


@dataclass
class LaunchProgress:
    """How far one start has come on this node.

    `started` and every `now` are seconds of one monotonic clock. `learned` are the durations of the last good
    launch here, as `durations` gave them; without any the fraction is unknown and the ETA is GB10's.
    """

    rank: int = 0
    started: float = 0.0
    learned: Mapping[str, float] | None = None
    ready: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    processes: set[str] = field(default_factory=set)  # names seen; "Worker_TP0_EP0" proves expert parallelism
    errors: int = 0
    _reader: LogReader = field(default_factory=LogReader, repr=False)
    _began: dict[str, float] = field(default_factory=dict)
    _step: str = "imports"
    _done: int = 0
    _total: int = 0
    _ready_at: float = 0.0

    @property
    def step(self) -> str:
        return self._step

    def feed(self, data: bytes, now: float) -> list[LogEvent]:
        """Reads more of the log; returns its events."""
        events = self._reader.feed(data)
        for event in events:
            self.observe(event, now)
        return events

    def observe(self, event: LogEvent, now: float) -> None:
        if event.process and len(self.processes) < _NAMES_MAX:
            self.processes.add(event.process)
        match event.kind:
            case "phase":
                self._enter(event.name, now)
            case "progress":
                self._count(event)
            case "fact":
                self.facts.setdefault(event.name, event.value.replace(",", ""))  # the model first, its draft later
            case "ready" if not self.ready:
                self._enter("server", now)
                self.ready, self._ready_at = True, now
            case "error":
                self.errors += 1

    def progress(self, now: float) -> Progress:
        if self.ready:
            return Progress(says="ready", fraction=1.0, eta_s=0.0)
        assumed = self.learned or self._scaled_durations()
        spent = now - self._began.get(self._step, self.started)
        step_left = self._left_by_count(spent)
        if step_left is None:
            step_left = max(0.0, assumed.get(self._step, 0.0) - spent)
        later = STEPS[STEPS.index(self._step) + 1 :]
        left = step_left + sum(assumed.get(step, 0.0) for step in later)
        fraction = None
        if self.learned and (total := sum(self.learned.values())) > 0:
            fraction = max(0.0, min(_FRACTION_MAX, 1 - left / total))
        return Progress(says=self._says(), fraction=fraction, eta_s=round(left, 1))

    def durations(self) -> dict[str, float]:
        """Seconds that each step took. Empty until ready; a worker, which never says so, gives those it finished."""
        if self.rank == 0 and not self.ready:
            return {}
        steps = [("imports", self.started), *((step, self._began[step]) for step in STEPS if step in self._began)]
        ends = [began for _, began in steps[1:]]
        if self.ready:
            ends.append(self._ready_at)
        return {step: round(end - began, 1) for (step, began), end in zip(steps, ends, strict=False)}

    def _enter(self, step: str, now: float) -> None:
        """Steps only go forward: a draft model compiles after the model did, and that is still compiling."""
        if STEPS.index(step) > STEPS.index(self._step):
            self._step, self._done, self._total = step, 0, 0
            self._began[step] = now

    def _count(self, event: LogEvent) -> None:
        counted = {"weights": "shards", "draft": "shards", "graphs": "Capturing"}.get(self._step)
        if counted and counted in event.name:
            self._done, self._total = event.done, event.total

    def _scaled_durations(self) -> dict[str, float]:
        """GB10's, by the pace that this start has shown since it began to load: a small model is faster in everything."""
        spans = [(step, self._began[step]) for step in STEPS if step in self._began]
        spent = {step: end - began for (step, began), (_, end) in pairwise(spans)}
        assumed = sum(GB10_DURATIONS_S[step] for step in spent if step in _PACE_STEPS)
        if not assumed:
            return GB10_DURATIONS_S
        pace = sum(seconds for step, seconds in spent.items() if step in _PACE_STEPS) / assumed
        return {step: seconds * pace for step, seconds in GB10_DURATIONS_S.items()}

    def _left_by_count(self, spent: float) -> float | None:
        """Shards are of one size, so their own pace tells better than the last launch's."""
        if self._step not in ("weights", "draft") or not 0 < self._done <= self._total or self._total == 1:
            return None
        return spent * (self._total - self._done) / self._done

    def _says(self) -> str:
        if self._step in ("weights", "draft") and self._total:
            what = "weights" if self._step == "weights" else "draft model"
            return f"{what} {self._done}/{self._total} shards"
        if self._step == "graphs" and self._total:
            return f"CUDA graphs {self._done}/{self._total}"
        if self.rank and "weights_load_s" in self.facts:
            return "weights loaded, warming up with the head"  # a worker never says that it is ready
        return _SAYS[self._step]
