"""Reading a `vllm serve` command line: of the plan, of a living process, of somebody's script. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sparkd.model.outside import parsed

# Arguments whose value is JSON (an object, or for the first a level from 0 to 3).
JSON_FLAGS = frozenset(
    (
        *("--compilation-config", "-cc", "--speculative-config", "-sc", "--default-chat-template-kwargs"),
        *("--kv-transfer-config", "--kv-events-config", "--ec-transfer-config", "--override-generation-config"),
        *("--additional-config", "--attention-config", "--structured-outputs-config", "--model-loader-extra-config"),
        *(
            "--mm-processor-kwargs",
            "--pooler-config",
            "--override-pooler-config",
            "--hf-overrides",
            "--profiler-config",
        ),
    )
)
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_SCRIPT_MAX_CHARS = 256 * 1024


@dataclass(frozen=True)
class JsonFault:
    """An argument whose value should be JSON and is none. `stripped`: it looks like JSON that lost its quotes."""

    flag: str
    value: str
    stripped: bool


def values(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(flag, value) pairs; the value is None for a bare flag. Further values of a flag that has several are left out."""
    for index, word in enumerate(argv):
        if not _is_flag(word):
            continue
        name, equals, value = word.partition("=")
        flag = canonical(name)
        if equals:
            yield flag, value
        else:
            following = argv[index + 1] if index + 1 < len(argv) else None
            yield flag, None if following is None or _is_flag(following) else following


def canonical(flag: str) -> str:
    """vLLM takes "_" for "-" in a flag; what stands behind a dot is a field's name."""
    name, dot, rest = flag.partition(".")
    return (name.replace("_", "-") if name.startswith("--") else name) + dot + rest


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """The last one counts, as for vLLM. Empty for a bare flag, None where the flag is not there."""
    found = [value for name, value in values(argv) if name == flag]
    return None if not found else found[-1] or ""


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not word[1].isdigit() and " " not in word.partition("=")[0]


def json_faults(argv: Sequence[str]) -> list[JsonFault]:
    """Every argument that should carry JSON and does not. A shell that ate the quotes also splits at commas."""
    found = []
    for flag, value in values(argv):
        if value is None or not (flag in JSON_FLAGS or _begins_like_json(value)):
            continue
        try:
            parsed(value)
        except ValueError:
            found.append(JsonFault(flag, value, stripped=_looks_stripped(value)))
    return found


def _begins_like_json(value: str) -> bool:
    """A chat template may be given as text, and begins with two braces or a brace and a sign."""
    return value.startswith(("{", "[{")) and not value.startswith(("{{", "{%", "{#"))


def json_arguments(argv: Sequence[str]) -> dict[str, str]:
    """Flag -> value, of those that carry a JSON object or list."""
    return {flag: value for flag, value in values(argv) if value is not None and value.startswith(("{", "["))}


def _looks_stripped(value: str) -> bool:
    return '"' not in value and re.match(r"\{?\s*[A-Za-z_]\w*\s*:", value) is not None


def forbidden(environment: Mapping[str, str], entries: Sequence[str]) -> list[str]:
    """Which of the recipe's entries ("NAME" or "NAME=value") an environment violates, as "NAME=value"."""
    parts = [entry.partition("=") for entry in entries]
    return [
        f"{name}={environment[name]}"
        for name, exact, value in parts
        if name in environment and (not exact or environment[name] == value)
    ]


# --- scripts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Script:
    """What a launch script was seen to do. A script that cannot be read so far has no commands."""

    commands: tuple[tuple[str, ...], ...]  # each `vllm serve ...`
    environment: Mapping[str, str]  # what it exports or sets before them


def read_script(text: str) -> Script:
    """The `vllm serve` commands of a plain shell script. Variables and substitutions are left as they are written."""
    commands: list[tuple[str, ...]] = []
    environment: dict[str, str] = {}
    for line in _logical_lines(text[:_SCRIPT_MAX_CHARS]):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        environment |= _assignments(words)
        for index, word in enumerate(words[:-1]):
            if PurePosixPath(word).name == "vllm" and words[index + 1] == "serve":
                commands.append(tuple(_until_separator(words[index:])))
                break
    return Script(tuple(commands), environment)


def _logical_lines(text: str) -> Iterator[str]:
    """A comment does not go on behind a backslash."""
    held = ""
    for line in text.splitlines():
        if not held and line.lstrip().startswith("#"):
            continue
        if line.endswith("\\"):
            held += line[:-1] + " "
        else:
            yield held + line
            held = ""
    if held:
        yield held


def _assignments(words: Sequence[str]) -> dict[str, str]:
    """`export A=b C=d`, and `A=b command`."""
    rest = list(words)
    exported = rest[:1] == ["export"]
    found = {}
    for word in rest[1:] if exported else rest:
        match = _ASSIGNMENT.fullmatch(word)
        if match is None:
            break
        found[match.group(1)] = match.group(2)
    return found


def _until_separator(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word in ("|", "||", "&&", "&", ";") or re.match(r"\d?>", word):
            return
        yield word
