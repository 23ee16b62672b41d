"""Secrets out of everything that sparkd prints or packs: keys, tokens, passwords, private keys. Pure.

What hides a secret keeps its name, so that a reader still sees that it was there. Most text holds none: a quick look
finds the few lines in which something might be, and only those are searched in earnest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

HIDDEN = "[redacted]"

_QUOTE = r"\\{0,3}[\"'`]"  # with the backslashes of JSON inside JSON
_VALUE = r"[^\s\x00\"'`,;&|<>(){}\[\]\\]"
# Words that name a secret, in environment variables, arguments and JSON keys. "tokens", "max_tokens" and
# "tokenizer" name none: the word must end there.
_NAME = (
    r"(?:[A-Za-z0-9]{1,40}[_.-]){0,12}"  # bounded: a line of a hundred thousand dashes must not take for ever
    r"(?:api[_-]?keys?|apikey|access[_-]?keys?|secret(?:[_-]?(?:access[_-]?)?keys?)?|private[_-]?key|client[_-]?secret|cluster[_-]?key"
    r"|(?:auth|access|refresh|bearer|hub|hf|github|gh|bot|api|id|session|login)[_-]?token|token|passwords?|passwd|passphrase|pwd|credentials?)"
)
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9_-])(?:"
    r"sk-(?:[A-Za-z]{2,8}-)?[A-Za-z0-9_-]{8,}"  # OpenAI, Anthropic and what imitates them
    r"|hf_[A-Za-z0-9]{8,}|api_org_[A-Za-z0-9]{8,}"  # Hugging Face
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,}|glpat-[A-Za-z0-9_-]{16,}"
    r"|nvapi-[A-Za-z0-9_-]{16,}|xox[abposr]-[A-Za-z0-9-]{10,}|dckr_pat_[A-Za-z0-9_-]{10,}|pypi-[A-Za-z0-9_-]{32,}"
    r"|A(?:KI|SI)A[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|wandb_v\d_[A-Za-z0-9_]{16,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # JSON web tokens
    r")"
)
_PEM = re.compile(
    r"(-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)(?:(?!-----(?:END|BEGIN) ).){0,20000}"
    r"(-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|(?=-----BEGIN )|\Z)",
    re.S,
)
# Authorization: Bearer abc, "authorization": "Basic abc", -H 'X-Api-Key: abc', Bearer abc
_HEADER = re.compile(
    rf"((?:proxy-)?authorization{_QUOTE}?\s*[:=]\s*{_QUOTE}?(?:(?:bearer|basic|token|digest|apikey)\s+)?|\bx-api-key{_QUOTE}?\s*[:=]\s*{_QUOTE}?"
    rf"|(?:set-)?cookie:\s*)([^\s\"'`,;]+(?:;\s?[^\s\"'`,;]+)*)",
    re.I,
)
_BEARER = re.compile(r"(\bbearer\s+)([A-Za-z0-9._~+/=-]{8,})", re.I)
# A password may hold an @ that nobody escaped: the last one before the host counts.
_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{0,128}:)([^\s/\"']{1,256})(@)", re.I)
_QUERY = re.compile(r"([?&](?:[\w-]*(?:key|token|secret|signature|password)|sig)=)([^&\s\"'#]+)", re.I)
# NAME=value, NAME: value, 'name': 'value', "name": ["value", "other"], --name value, --name=value
_LISTED = re.compile(rf"({_QUOTE}?\b{_NAME}{_QUOTE}?\s*[:=]\s*)(\[[^\[\]]{{1,2000}}\])", re.I)
_QUOTED = re.compile(
    rf"({_QUOTE}?(?<![A-Za-z0-9]){_NAME}{_QUOTE}?\s*[:=]\s*\[?\s*)({_QUOTE})((?:(?!\2)[^\n])*)(\2)", re.I
)
_PLAIN = re.compile(rf"({_QUOTE}?(?<![A-Za-z0-9]){_NAME}{_QUOTE}?(?:\s?=\s?|:\s?))({_VALUE}+)", re.I)
_ENVIRONMENT = re.compile(
    rf"(\b[A-Z][A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?={_QUOTE}?)({_VALUE}+)"
)
_PROSE = re.compile(r"[a-z]{1,15}[.:]?")  # "invalid token: unexpected end"
_ARGUMENT = re.compile(rf"((?<![\w-])--?{_NAME}{_QUOTE}?,?(?:\s+|=|\x00){_QUOTE}?)((?!-){_VALUE}+)", re.I)
_SQUOTE_LIST = re.compile(r"('--[\w-]*(?:api[_-]?key|token|password|secret)',\s*)('[^'\n]*'|\"[^\"\n]*\")", re.I)

# What is plainly no secret although a word before it names one: "token: str", "api_key=None", "***".
_HARMLESS = re.compile(
    r"(?:none|null|true|false|yes|no|not|is|was|unset|empty|missing|required|invalid|str|int|bytes|bool|optional\S*|\*+|x{3,}|\.{2,}|-|\d{1,4}"
    r"|\[redacted\]|%\w|<\S*|\$\S*|/\S*|file:\S*|\S*\.(?:py|go|rs|c|cc))",
    re.I,
)


# Where one of the named patterns could stand at all: the end of a name, then what joins it to a value.
_HINT = re.compile(
    rf"(?:key|token|secret|passw(?:or)?d|passphrase|pwd|credential)s?{_QUOTE}?(?:(?P<joined>\s*[:=])|[\s,\x00])", re.I
)
_OPTION = re.compile(r"(?<![\w-])--?[\w.-]*\Z")
_OPTION_MAX_CHARS = 80
_SPAN_LINES = 8  # a name's value may stand in the lines after it: YAML, pretty JSON, a wrapped command line
_PASSES_MAX = 12  # what a replacement uncovers is hidden too; more than four have not been seen

HINTS = ("key", "token", "secret", "passw", "passphrase", "pwd", "credential")


def redact(text: str) -> str:
    """The text with every secret in it replaced by "[redacted]". Twice is the same as once."""
    for _ in range(_PASSES_MAX):
        hidden = _once(text)
        if hidden == text:
            break
        text = hidden
    return text


def _once(text: str) -> str:
    if "PRIVATE KEY" in text:
        text = _PEM.sub(rf"\1{HIDDEN}\2", text)
    text = _TOKENS.sub(HIDDEN, text)
    lowered = text.lower()
    if any(word in lowered for word in ("authorization", "x-api-key", "cookie")):
        text = _HEADER.sub(_hide, text)
    if "bearer" in lowered:
        text = _BEARER.sub(_hide, text)
    if "://" in text and "@" in text:
        text = _URL.sub(rf"\1{HIDDEN}\3", text)
    if "?" in text or "&" in text:
        text = _QUERY.sub(_hide, text)
    if not any(word in lowered for word in HINTS):
        return text
    parts, at = [], 0
    for first, last in _spans(text):
        parts += [text[at:first], _named(text[first:last])]
        at = last
    return "".join([*parts, text[at:]])


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """From the line of a hint to some lines after it; those that touch are one."""
    first = last = line_end = 0
    for match in _HINT.finditer(text):
        if match.start() < line_end:
            continue  # in the same line: it was looked at for its first hint
        if not match["joined"] and not _OPTION.search(text, max(0, match.start() - _OPTION_MAX_CHARS), match.start()):
            continue  # a word of a sentence
        if match.start() >= last:
            if last:
                yield first, last
            first = text.rfind("\n", last, match.start()) + 1 or last
        line_end = last = _line_end(text, match.end())
        for _ in range(_SPAN_LINES):
            last = _line_end(text, last)
    if last:
        yield first, last


def _line_end(text: str, at: int) -> int:
    return text.find("\n", at) + 1 or len(text)


def _named(text: str) -> str:
    text = _LISTED.sub(_hide_list, text)
    text = _QUOTED.sub(_hide_quoted, text)
    text = _SQUOTE_LIST.sub(rf"\1'{HIDDEN}'", text)
    text = _PLAIN.sub(_hide_plain, text)
    text = _ENVIRONMENT.sub(_hide, text)
    return _ARGUMENT.sub(_hide, text)


def _hide(match: re.Match[str]) -> str:
    return match[0] if _HARMLESS.fullmatch(match[2]) else f"{match[1]}{HIDDEN}"


def _hide_plain(match: re.Match[str]) -> str:
    """A word after "token:" is mostly a sentence of a parser, and no token looks like a word."""
    if re.search(r"token[\"'`]?:\s?$", match[1], re.I) and _PROSE.fullmatch(match[2]):
        return match[0]
    return _hide(match)


def _hide_quoted(match: re.Match[str]) -> str:
    if not match[3] or _HARMLESS.fullmatch(match[3]):
        return match[0]
    return f"{match[1]}{match[2]}{HIDDEN}{match[4]}"


def _hide_list(match: re.Match[str]) -> str:
    """A list keeps its form, so that what prints JSON stays JSON."""
    inner = match[2][1:-1].strip()
    if not inner or inner == HIDDEN[1:-1] or all(_HARMLESS.fullmatch(part.strip(" \"'")) for part in inner.split(",")):
        return match[0]
    quote = inner[0] if inner[0] in "\"'" else ""
    return f"{match[1]}[{quote}{HIDDEN}{quote}]"
