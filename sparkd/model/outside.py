"""What comes from outside (a log, a process title, a peer, a file) before it is kept, shown or sent. Pure."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any, NoReturn

# All that a terminal obeys or that no JSON can carry: control characters, directions of writing, halves of characters.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# Words that stand in, or beside, whatever model/redact.py hides: without one of them it need not even be imported.
# fmt: off
_SUSPECT = (
    "key", "token", "secret", "passw", "passphrase", "pwd", "credential", "authorization", "bearer", "cookie", "://",
    "sig=", "signature=", "sk-", "hf_", "api_org_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-",
    "nvapi-", "xox", "dckr_pat_", "pypi-", "akia", "asia", "aiza", "wandb_", "eyj",
)
# fmt: on


def visible(text: str) -> str:
    """The text with its control characters, and whatever else no terminal or JSON should meet, as escapes."""
    return text if text.isprintable() else _UNSHOWABLE.sub(_escaped, text)


@lru_cache(maxsize=256)  # the same few sentences are told again and again
def clean(text: str) -> str:
    """The text visible, and without secrets. Twice is the same as once."""
    text = visible(text)
    lowered = text.lower()
    if any(word in lowered for word in _SUSPECT):
        from sparkd.model.redact import redact

        return redact(text)
    return text


def parsed(text: str | bytes) -> Any:
    """JSON from outside. Raises ValueError for all that is none: nested without end or NaN, which no other reader takes."""
    try:
        return json.loads(text, parse_constant=_refused)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
