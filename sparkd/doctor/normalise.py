"""One form for every log: the same failure reads alike whichever program wrote, wrapped or pasted it. Pure.

Colours, envelopes (Docker's JSON, the journal's JSON, compose, Kubernetes) and prefixes (time, host, process, level,
source line) come off, escapes are undone, quotes are all `'`, and runs of blanks are one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sparkd.model.outside import parsed

# A colour, also where the escape character was lost in a paste or written out by syslog.
_COLOUR = re.compile(r"(?:\x1b|#033|\\x1b|\\033|\\u001b|\^\[)\[[0-9;?]*[A-Za-z]|\[\d{1,2}(?:;\d{1,3}){0,4}m")
_COLOURED = ("\x1b", "#033[", "\\x1b", "\\033", "\\u001b", "^[[", "[0m", "[m", "[0;", "[1;", "[39m")
_ESCAPE = re.compile(r"(?<!\\)\\++(?:u(?P<code>[0-9a-fA-F]{4})|(?P<letter>[nrt\"'/]))")
_LETTERS = {"n": "\n", "r": "\n", "t": " "}
_ENTITY = re.compile(r"&(?:lt|gt|quot|amp|apos|#\d{2,4}|#x[0-9a-fA-F]{2,4});")
_ENVELOPES = {
    "log": ("stream", "time"),
    "MESSAGE": (),
    "message": ("level", "timestamp", "ts"),
    "msg": ("level", "time", "ts"),
}
_PARTIAL = re.compile(r"^\d{4}-\d\d-\d\dT\S+ std(?:out|err) P ", re.M)  # Kubernetes cuts long lines

_LINE_MAX_CHARS = 32 * 1024
_LINE_OVERLAP_CHARS = 400

_STAMP = (
    r"\d{4}[-/]\d\d[-/]\d\d[T ,]+\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?"
    r"|(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun),? )?[A-Za-z\u00e9\u00fb\u00e4]{3,9}\.? \d{1,2},? (?:\d{4} )?\d\d:\d\d:\d\d(?:[.,]\d+)?"
    r"(?: \d{4})?(?: [A-Z]{3,4}(?= ))?"
)
_LEVEL = r"DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL|TRACE"
_PREFIX = re.compile(
    r"^(?:"
    r"[ \t|>]+"  # indentation, a quoted or tabulated paste
    rf"|\[?(?:{_STAMP})\]?[:,]?(?: (?:[\w.-]+ )?(?:[^\s\[\]:(]+\[\d+\]|kernel|systemd|dockerd|containerd|earlyoom):)?(?= |$)"
    r"|\d+\.\d\d (?=\S)"  # seconds since the start, of a recording
    r"|\[ *\d+\.\d+\](?:\[ *[CT]\d+\])?"  # of the kernel
    r"|<\d{1,2}>"
    r"|[\w./@-]+\[\d+\]:"  # earlyoom[845]:
    r"|kernel:"
    r"|\((?:[^()\n]{1,40} )?pid=\d+(?:, ip=[\d.]+)?\)"  # (EngineCore_0 pid=12), of Ray with its address
    rf"|(?:{_LEVEL})(?: \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?(?: \[[^\]\n]{{1,80}}\]| [\w./]+\.py:\d+\])?|:)?(?= |$)"
    rf"|(?:{_LEVEL}):[\w.]{{1,60}}:"
    rf"|\[(?:{_LEVEL})\]:?"
    r"|\[[Rr]ank ?\d+\]:?"
    r"|\[?[EWIF]\d{3,4} \d\d:\d\d:\d\d\.\d+(?: +\d+)? [\w./]+:\d+\]"  # of torch, C++ and Python
    r"|[\w./-]+\.(?:py|cc|cpp|cu|c|h):\d+[\]:]?(?= )"
    r"|\[[\w./-]+\.(?:py|cc|cpp):\d+\]"
    r"|[\w.-]+:\d+:\d+ \[\d+\](?= )"  # host:pid:tid [0], of NCCL
    r"|[\w.-]{1,60} +\|(?= |$)"  # of compose
    r"|\[pod/[^\]\n]{1,160}\]"
    r"|std(?:out|err) [FP](?= )"
    r"|time=[\"'][^\"'\n]{1,40}[\"'] level=\w+ msg=[\"']?"
    r"|-+ (?:[\w.]{1,60} - )?"  # of a Python logger: name - LEVEL - text; of a list
    r")++",
    re.M,
)
_QUOTES = (
    ("\u2018", "'"),
    ("\u2019", "'"),
    ("\u201c", '"'),
    ("\u201d", '"'),
    ("\u2032", "'"),
    ("`", "'"),
    ("\u00b4", "'"),
)
_TIME = re.compile(
    rf"^(?:\d+\.\d\d )?[^\n]{{0,60}}?\b(?P<stamp>{_STAMP}|\d\d-\d\d \d\d:\d\d:\d\d)|^\[ *(?P<uptime>\d+\.\d+)\]"
)


@dataclass(frozen=True, slots=True)
class Lines:
    """A text in one form. `bare[i]` is a line as it was logged, without envelope and colours, `normal[i]` its form to
    search in, `numbers[i]` its line in the file."""

    bare: list[str]
    normal: list[str]
    numbers: list[int]


def normalise(text: str) -> Lines:
    """Every line of a text in its searchable form."""
    if "\r\n" in text:
        text = text.replace("\r\n", "\n")
    if "\x00" in text:
        text = text.replace("\x00", " ")  # /proc's argv and environment
    if any(sign in text for sign in _COLOURED):
        text = _COLOUR.sub("", text)
    if "](http" in text:
        text = _LINK.sub(r"\1", text)
    if " P " in text and _PARTIAL.search(text):
        text = _joined(text)
    bare, numbers = _cut(*_unwrapped(text.split("\n")))
    return Lines(bare, _forms("\n".join(bare)), numbers)


_LINK = re.compile(r"\[([^\[\]\n]{1,80})\]\(https?://[^()\s]{1,300}\)")  # a paste in which addresses became links


def without_prefix(line: str) -> str:
    """A line as it was logged, but for time, host, process and level in front: what evidence shows."""
    return _PREFIX.sub("", line).strip()


def logged_at(line: str) -> str:
    """The time in front of a line, as it was logged; nothing where it has none."""
    match = _TIME.match(line)
    return "" if match is None else (match["stamp"] or match["uptime"] or "")


def uptime_s(line: str) -> float | None:
    """Seconds since the boot in front of a line of the kernel; nothing where it has none."""
    match = _TIME.match(line)
    return float(match["uptime"]) if match is not None and match["uptime"] else None


def _forms(text: str) -> list[str]:
    """Searchable forms of lines, line by line: the number of lines does not change."""
    for quote, plain in _QUOTES:
        if quote in text:
            text = text.replace(quote, plain)
    for blank in ("\t", "\u00a0"):
        text = text.replace(blank, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    text = _PREFIX.sub("", text)
    return [line.strip() for line in text.split("\n")]


def _unwrapped(lines: list[str]) -> tuple[list[str], list[int]]:
    """Envelopes off, escapes undone, carriage returns split: one line of a file may become several."""
    bare: list[str] = []
    numbers: list[int] = []
    open_ended = False  # the last piece of Docker's JSON had no newline: the next one goes on with it
    for number, line in enumerate(lines, 1):
        if "\\" not in line and "\r" not in line and "&" not in line and line[:1] != "{":
            bare.append(line)
            numbers.append(number)
            open_ended = False
            continue
        message, ends = _message(line) if line[:1] == "{" else (line, True)
        pieces = re.split(r"[\r\n]+", _plain(message))
        if open_ended and bare:
            bare[-1] += pieces.pop(0)
        bare.extend(pieces)
        numbers.extend([number] * len(pieces))
        open_ended = not ends
    return bare, numbers


def _cut(bare: list[str], numbers: list[int]) -> tuple[list[str], list[int]]:
    """A log without line ends, in pieces that overlap a little: a pattern is not run over megabytes."""
    if all(len(line) <= _LINE_MAX_CHARS for line in bare):
        return bare, numbers
    pieces = [(piece, number) for line, number in zip(bare, numbers, strict=True) for piece in _pieces(line)]
    return [piece for piece, _ in pieces], [number for _, number in pieces]


def _pieces(line: str) -> Iterator[str]:
    first = 0
    while len(line) - first > _LINE_MAX_CHARS:
        blank = line.rfind(" ", first + _LINE_MAX_CHARS // 2, first + _LINE_MAX_CHARS)
        end = blank if blank > 0 else first + _LINE_MAX_CHARS
        yield line[first:end]
        first = end - _LINE_OVERLAP_CHARS
    yield line[first:]


def _message(line: str) -> tuple[str, bool]:
    """What an envelope holds, and whether its line ends there. Other JSON is what it is."""
    try:
        envelope = parsed(line)
    except ValueError:
        return line, True
    if not isinstance(envelope, dict):
        return line, True
    for key, beside in _ENVELOPES.items():
        value = envelope.get(key) if not beside or any(name in envelope for name in beside) else None
        if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
            value = bytes(value).decode(errors="replace")  # journald writes what is not plain text as numbers
        if isinstance(value, str):
            partial = key == "log" and not value.endswith("\n")
            return _COLOUR.sub("", value).rstrip("\r\n"), not partial
    return line, True


def _plain(line: str) -> str:
    if "\\" in line:
        line = _COLOUR.sub("", _ESCAPE.sub(_unescaped, line))
    if "&" in line and _ENTITY.search(line):
        line = html.unescape(line)
    return line


def _unescaped(match: re.Match[str]) -> str:
    if match["code"]:
        return chr(int(match["code"], 16))
    return _LETTERS.get(match["letter"], match["letter"])


def _joined(text: str) -> str:
    """Pieces that Kubernetes cut a line into (P) put together again with their end (F)."""
    piece = re.compile(r"^(?P<head>\d{4}-\d\d-\d\dT\S+ std(?:out|err)) (?P<kind>[PF]) (?P<rest>.*)$")
    lines: list[str] = []
    is_open = False
    for line in text.split("\n"):
        match = piece.match(line)
        if match and is_open:
            lines[-1] += match["rest"]
        else:
            lines.append(line)
        is_open = bool(match and match["kind"] == "P")
    return "\n".join(lines)
