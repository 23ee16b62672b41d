"""What the end of an engine means: the root before its consequences. Pure; the patterns are data.

vLLM exits 0 after several kinds of crash, and its last lines are consequences ("Engine core initialization
failed. See root cause above."), so the log's tail decides, and the status only where the log says nothing.
"""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Sequence
from dataclasses import dataclass

from sparkd.model.finding import Cure, Finding, bad

_EVIDENCE_MAX_CHARS = 300
_PREFIX = re.compile(
    r"^\s*(?:\d+\.\d\d )?(?:\([^()]+? pid=\d+\)\s*)*(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?"
)
_PYTHON_ERROR = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception): .")
_CONSEQUENCE = re.compile(r"Engine core initialization failed|WorkerProc initialization failed|EngineDeadError")
_READY = "Application startup complete."


@dataclass(frozen=True)
class Ending:
    """One way to end. `says` may name groups of the pattern. A `startup` one cannot happen to an engine that served."""

    id: str
    pattern: re.Pattern[str]
    says: str
    cure: Cure
    remedy: str
    startup: bool = True


def _ending(id: str, pattern: str, says: str, cure: Cure, remedy: str, *, startup: bool = True) -> Ending:
    return Ending(id, re.compile(pattern), says, cure, remedy, startup)


# The first that matches is the answer: roots in order of how specific they are, consequences last.
ENDINGS: tuple[Ending, ...] = (
    _ending(
        "engine.arguments-rejected",
        r"vllm(?: serve)?: error: (?P<what>.+)",
        "vLLM refuses its arguments: {what}",
        Cure.PERSON,
        "correct the argument in the recipe or profile: sparkd render shows the script, vllm serve --help=all the names",
    ),
    _ending(
        "engine.max-model-len",
        r"User-specified max_model_len \((?P<asked>\d+)\) is greater than the derived max_model_len",
        "max-model-len {asked} is more than the model was made for",
        Cure.PERSON,
        "lower max-model-len, or set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in the recipe's environment",
    ),
    _ending(
        "weights.model-path",
        r"HFValidationError: .*?: '(?P<path>[^']+)'"
        r"|(?P<path2>\S+) is not a local folder and is not a valid model identifier"
        r"|Can't load the configuration of '(?P<path3>[^']+)'",
        "there are no weights at {path}",
        Cure.PERSON,
        "check that the weights are mounted there: the recipe's model and volumes",
    ),
    _ending(
        "weights.damaged",
        r"(?P<what>Safetensor\w*Error: .+|.*Error while deserializing header: .+)",
        "a file of the weights is damaged: {what}",
        Cure.PERSON,
        "download the weights again, or copy them from the peer",
    ),
    _ending(
        "engine.worker-not-headless",
        r"collective_rpc should not be called on follower node",
        "a worker was started without --headless: both nodes tried to be the head",
        Cure.PERSON,
        "start workers with the script that sparkd renders; does another unit start vllm on this node?",
    ),
    _ending(
        "engine.shm-fork",
        r"'ShmRingBuffer' object has no attribute 'shared_memory'",
        "the engine crashed in its shared memory ring: VLLM_WORKER_MULTIPROC_METHOD=fork does this",
        Cure.PERSON,
        "remove VLLM_WORKER_MULTIPROC_METHOD from the recipe, the image and the container's environment",
    ),
    _ending(
        "image.mxfp4-doubled",
        r"UnboundLocalError: .*(?:variable|local) '?w(?:13|2)\w*'?",
        "the mxfp4 patch is in the image twice: its second copy uses variables that the first deleted",
        Cure.PERSON,
        "sparkd clean --fix",
    ),
    _ending(
        "engine.kv-cache-too-small",
        r"To serve at least one request with the model's max seq len \((?P<asked>\d+)\)"
        r"|(?P<none>No available memory for the cache blocks)",
        "the memory left for the KV cache does not hold one request of full length {asked}",
        Cure.PERSON,
        "lower max-model-len or raise gpu-memory-utilization in the profile",
    ),
    _ending(
        "engine.start-out-of-memory",
        r"(?P<what>(?:Free|Available) memory on \S+ \S+ \([\d.]+/[\d.]+ GiB\) (?:on startup )?is less than desired)"
        r"|(?P<cuda>(?:torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory))",
        "not enough memory was free when the engine started",
        Cure.RELAUNCH,
        "sparkd clean; free -g; memory can take minutes to come back after a crash",
    ),
    _ending(
        "engine.port-in-use",
        r"server socket has failed to listen on any local network address\. port: (?P<port>\d+).*EADDRINUSE"
        r"|(?P<any>EADDRINUSE|\[Errno 98\] [Aa]ddress already in use)",
        "a port of the engine was taken: {port}",
        Cure.RELAUNCH,
        "sparkd clean; ss -tlnp shows who holds it",
    ),
    _ending(
        "engine.rendezvous-timeout",
        r"Timed out after \d+ seconds waiting for clients\. (?P<joined>\d+/\d+ clients joined)"
        r"|client socket has timed out after \d+ms while trying to connect to (?P<address>\([^)]*\))"
        r"|(?P<store>wait timeout after \d+ms, keys: )",
        "the ranks did not find each other: {joined}",
        Cure.RELAUNCH,
        "check the link: ping the peer over it, both ways, with packets of full MTU; sparkd status on both nodes",
    ),
    _ending(
        "engine.no-api-key",
        r"sparkd: no API key in (?P<path>\S+?);",
        "the API key was not in the container: {path}",
        Cure.RELAUNCH,
        "sparkd restart stages it again",
    ),
    _ending(
        "container.gone",
        r"(?P<what>[Nn]o such container: \S+|[Cc]ontainer \S+ is not running|container is not running)",
        "the engine's container went away: {what}",
        Cure.RELAUNCH,
        "docker ps -a; who stopped it? journalctl -u docker",
        startup=False,
    ),
    _ending(
        "engine.no-device",
        r"Failed to infer device type",
        "vLLM finds no device to run on: the container sees no GPU, or the image was built for another one",
        Cure.PERSON,
        "nvidia-smi on the host and inside the container; docker restart where only the host sees the GPU",
    ),
    _ending(
        "image.wrong-build",
        r"(?P<what>no kernel image is available for execution on the device|operator \S+ does not exist"
        r"|(?:ModuleNotFoundError|ImportError): .+)",
        "the image does not fit this machine or this model: {what}",
        Cure.PERSON,
        "use the image that the recipe names",
    ),
    _ending(
        "engine.rank-died",
        r"Worker proc (?P<worker>\S+) died unexpectedly(?: \(exit code: (?P<code>-?\d+)\))?",
        "{worker} died{code}",
        Cure.RELAUNCH,
        "journalctl -k: was it the out-of-memory killer? sparkd logs",
        startup=False,
    ),
    _ending(
        "engine.peer-lost",
        r"(?P<what>(?:Read|Write) error \[[^\]]*\]:?\d*: Connection (?:reset|closed) by peer"
        r"|Connection closed by peer \[[^\]]*\]:?\d*|remote process exited or there was a network error)",
        "the connection to the other rank broke: {what}",
        Cure.RELAUNCH,
        "look at the other node's engine first: sparkd logs there",
        startup=False,
    ),
    _ending(
        "engine.rpc-timeout",
        r"RPC call to (?P<call>\w+) timed out",
        "the ranks stopped answering each other: {call} timed out",
        Cure.RELAUNCH,
        "check the link and the other node's engine",
        startup=False,
    ),
    _ending(
        "engine.cuda-error",
        r"(?P<what>CUDA error: [^\n]+|NCCL error[^\n]*|ncclSystemError[^\n]*|ncclUnhandledCudaError[^\n]*)",
        "the GPU or its network failed: {what}",
        Cure.RELAUNCH,
        "journalctl -k | grep -i -e nvrm -e mlx5; nvidia-smi",
        startup=False,
    ),
    _ending(
        "engine.ready-timeout",
        r"Timed out waiting for engine core processes to start",
        "the engine core did not come up in time",
        Cure.RELAUNCH,
        "raise VLLM_ENGINE_READY_TIMEOUT_S if loading simply takes longer; sparkd logs",
    ),
    _ending(
        "engine.stopped",
        r"\[shutdown\] API server: shutdown triggered",
        "the engine was told to stop by somebody else than sparkd",
        Cure.RELAUNCH,
        "sparkd stop is the way to stop it for good; journalctl shows who else did",
        startup=False,
    ),
    _ending(
        "engine.core-died",
        r"engine core exited unexpectedly|EngineCore encountered a fatal error|EngineDeadError",
        "the engine core died",
        Cure.RELAUNCH,
        "sparkd logs; journalctl -k",
        startup=False,
    ),
    _ending(
        "engine.start-failed",
        r"Engine core initialization failed|WorkerProc initialization failed|Engine process failed to start",
        "the engine failed while it started{why}",
        Cure.RELAUNCH,
        "sparkd logs on both nodes",
    ),
)

_BY_STATUS = {
    64: ("engine.no-launch-id", "the launch script was started without a launch id", Cure.PERSON, "sparkd start"),
    126: ("engine.exit-126", "a program or script could not be executed", Cure.PERSON, "check its mode and interpreter"),
    127: (
        "engine.exit-127",
        "a program or script was not found: vLLM never started",
        Cure.PERSON,
        "systemctl cat the unit: does the path that it runs exist, and vllm inside the container?",
    ),
    2: ("engine.arguments-rejected", "vLLM refuses its arguments", Cure.PERSON, "sparkd logs; sparkd render"),
}  # fmt: skip


def classify_end(tail: str, *, status: int | None, signal: int | None, rank: int, ready: bool = False) -> Finding:
    """What ended an engine, from the end of its log, its exit status or the signal that killed it.

    `ready`: it had served, so failures that only a start can have are not looked for (the tail itself shows
    it where the start is still in it). Always a bad finding: an engine that is gone is a failure at status 0 too.
    """
    if status is not None and status > 128 and signal is None:
        signal = status - 128  # how a shell and `docker exec` tell of a signal
    ready = ready or _READY in tail
    for ending in ENDINGS:
        if not (ready and ending.startup) and (match := ending.pattern.search(tail)):
            return _found(ending, match, tail, rank)
    last = _last_lines(tail)
    who = "the head's engine" if rank == 0 else f"the engine of rank {rank}"
    if signal is not None:
        return bad(
            "engine.killed",
            f"{who} was killed by {_signal_name(signal)}",
            cure=Cure.RELAUNCH,
            remedy="journalctl -k: was it the out-of-memory killer?" if signal == signals.SIGKILL else "sparkd logs",
            evidence=last,
        )
    if status in _BY_STATUS and not ready:
        id, says, cure, remedy = _BY_STATUS[status]
        return bad(id, says, cure=cure, remedy=remedy, evidence=last)
    told = "" if status is None else f" with status {status}"
    return bad(
        "engine.lost",
        f"{who} ended{told}" + _why(() if ready or not status else _errors(tail)[-1:]),
        cure=Cure.RELAUNCH,
        remedy="sparkd logs; journalctl -k",
        evidence=last,
    )


def _found(ending: Ending, match: re.Match[str], tail: str, rank: int) -> Finding:
    groups = {name.rstrip("0123456789"): value for name, value in match.groupdict().items() if value is not None}
    match ending.id:
        case "engine.rendezvous-timeout":
            groups.setdefault("joined", f"no answer from {groups['address']}" if "address" in groups else "timed out")
        case "engine.start-failed":
            groups["why"] = _why(_errors(tail)[:1])  # the first is the root
        case "engine.rank-died":
            groups["code"] = _exit_words(groups.get("code"))
    says = re.sub(r"\{(\w+)\}", lambda name: groups.get(name[1], "").rstrip(), ending.says)
    where = "" if rank == 0 else f" (rank {rank})"
    return bad(
        ending.id,
        says.rstrip(": ").replace(" :", ":") + where,
        cure=ending.cure,
        remedy=ending.remedy,
        evidence=(_line_around(tail, match.start()),),
    )


def _exit_words(code: str | None) -> str:
    number = int(code or 0)
    return f": killed by {_signal_name(-number)}" if number < 0 else f" with status {number}" if number else ""


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signals.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _line_around(text: str, at: int) -> str:
    start = max(text.rfind("\n", 0, at), text.rfind("\r", 0, at)) + 1
    end = text.find("\n", at)
    return _bare(text[start : end if end >= 0 else len(text)])


def _last_lines(tail: str, lines_max: int = 3) -> tuple[str, ...]:
    lines = [bare for line in re.split(r"[\r\n]+", tail) if (bare := _bare(line))]
    return tuple(lines[-lines_max:])


def _errors(tail: str) -> list[str]:
    """What Python called errors, in the order of the log. No signatures, but better than none."""
    lines = (_bare(line) for line in tail.splitlines())
    return [line for line in lines if _PYTHON_ERROR.match(line) and not _CONSEQUENCE.search(line)]


def _why(errors: Sequence[str]) -> str:
    return f": {errors[0]}" if errors else " and its log does not say why"


def _bare(line: str) -> str:
    return _PREFIX.sub("", line).strip()[:_EVIDENCE_MAX_CHARS]
