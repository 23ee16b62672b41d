"""A validation error becomes one sentence for the person who wrote the file, at the line where it went wrong."""

from __future__ import annotations

import re
from difflib import get_close_matches
from ipaddress import AddressValueError
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sparkd.config.document import Document, Key
from sparkd.model.errors import ConfigError
from sparkd.model.outside import clean

_MISSING = "missing key"
_SECRET = re.compile(r"key|token(?!i|s)|secret|passw|credential", re.IGNORECASE)


def explain(error: ValidationError, document: Document, model: type[BaseModel]) -> ConfigError:
    """The first error by line, and how many more there are. What is missing has no line and comes last."""
    errors = error.errors(include_url=False)
    unknown = [_key(each) for each in errors if each["type"] == "extra_forbidden"]
    meant = {(*key[:-1], _closest(str(key[-1]), _fields(model, key[:-1]))) for key in unknown}
    errors = [each for each in errors if each["type"] != "missing" or _key(each) not in meant]
    told = [_told(each, document, model) for each in errors]
    told.sort(key=lambda each: (each[1] == _MISSING, document.line(each[0])))
    key, message, hint = told[0]
    message = clean(message)
    if len(told) > 1:
        message += f" (and {len(told) - 1} more)"
    return ConfigError(message, where=document.where(key), hint=hint)


def _told(error: ErrorDetails, document: Document, model: type[BaseModel]) -> tuple[Key, str, str]:
    """Key, message and hint of one error."""
    key = _key(error)
    match error["type"]:
        case "extra_forbidden":
            known = _fields(model, key[:-1])
            close = _closest(str(key[-1]), known)
            remedy = f"did you mean {close}?" if close else f"known: {', '.join(known)}"
            return key, f"unknown key ({remedy})", ""
        case "missing":
            return key, _MISSING, ""
        case "string_type" if isinstance(error["input"], (bool, int, float)):
            written = "..." if _is_secret(key) else document.numbers.get(key, str(error["input"]).lower())
            return key, f"must be text, not {_shown(key, error['input'])}", f'write it in quotes: "{written}"'
        case "value_error" if not isinstance(error["ctx"]["error"], AddressValueError):
            culprit, message = _culprit(error["msg"].removeprefix("Value error, "), key, document)
            return culprit, message, ""
        case "ip_v4_address" | "value_error":  # which of them depends on pydantic's version
            return key, f"{_shown(key, error['input'])} is not an IPv4 address", ""
        case "string_pattern_mismatch":
            told = f"{_shown(key, error['input'])} is not allowed here (it must match {error['ctx']['pattern']})"
            return key, told, ""
    message = error["msg"].removeprefix("Input ").replace("should", "must", 1)
    return key, message[0].lower() + message[1:] + f", not {_shown(key, error['input'])}", ""


def _key(error: ErrorDetails) -> Key:
    return tuple(part for part in error["loc"] if part != "[key]")


def _is_secret(key: Key) -> bool:
    return any(isinstance(part, str) and _SECRET.search(part) for part in key)


def _shown(key: Key, value: object) -> str:
    """Where a secret's own text stands in the place of its file's name, the message must not have it."""
    return "what is written there" if _is_secret(key) else _kind(value)


def _kind(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case dict():
            return "keys and values"
        case list():
            return "a list"
        case int() | float():
            return f"the number {value}"
        case str() if len(value) > 60:
            return repr(value[:60]) + "..."
    return repr(value)


def _culprit(message: str, key: Key, document: Document) -> tuple[Key, str]:
    """A validator of several keys names the culprit in front of its message: "nodes[1].link_address: ..."."""
    path, colon, rest = message.partition(": ")
    if not colon:
        return key, message
    parts = re.findall(r"\[\d+\]|[^.\[\]]+", path)
    inner: Key = tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)
    for candidate in ((*key, *inner), (*key, path)):  # an argument's name may itself contain dots
        if candidate in document.lines:
            return candidate, rest
    return key, message


def _closest(name: str, known: list[str]) -> str:
    return next(iter(get_close_matches(name, known, n=1)), "")


def _fields(model: type[BaseModel], key: Key) -> list[str]:
    """The keys that `model` knows at `key`."""
    for part in key:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as `tuple[Node, ...]` speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, list, Union, UnionType, Annotated):
        return next(filter(None, map(_model_in, get_args(annotation))), None)
    return None
