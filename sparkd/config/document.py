"""One YAML file becomes plain data, with the line of every key beside it.

Read by the rules of YAML 1.2, not those of 1.1 that PyYAML has built in: `yes`, `012` or `1:30` mean different things
to different readers, so they are refused with a request to say it plainly. Anchors and `<<` merges work.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sparkd.model.errors import ConfigError

BYTES_MAX = 400_000  # some seconds of reading, at the worst
VALUES_MAX = 50_000  # anchors multiply: a small file can stand for billions of values
DEPTH_MAX = 50  # of keys in keys; anchors multiply here too
DIGITS_MAX = 40
KEY_MAX_CHARS = 200

Key = tuple[str | int, ...]  # ("cluster", "nodes", 1, "name")

_Told = TypeVar("_Told")

_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")


@dataclass(frozen=True)
class Document:
    """`data` holds only dict, list, str, int, float, bool and None; `lines` and `numbers` speak of places in it."""

    path: Path
    content: bytes
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)  # 1-based; of the key where there is one
    numbers: dict[Key, str] = field(default_factory=dict)  # how the author wrote a number: 0.90

    def line(self, key: Key) -> int:
        """The line of `key`, or of the nearest thing around it that the file does have."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def where(self, key: Key) -> str:
        return f"{self.path}:{self.line(key)}" + (f": {dotted(key)}" if key else "")


def dotted(key: Key) -> str:
    """("cluster", "nodes", 1) as people write it: cluster.nodes[1]."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(path: Path) -> Document:
    """The file's mapping. ConfigError, with the line, for whatever stands in the way."""
    content = _content(path)
    text = _text(path, content)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"is not YAML: {told}", where=f"{path}:{mark.line + 1 if mark else 1}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        told = f"is not YAML: the character {chr(error.character)!r} is not allowed"
        raise ConfigError(told, where=f"{path}:{line}") from None
    except RecursionError:
        raise ConfigError("is nested too deeply", where=str(path)) from None
    if root is None:
        raise ConfigError("the file is empty", where=str(path))
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError("is not a list of keys and values (`key: value`)", where=f"{path}:{_line(root)}")
    builder = _Builder(path)
    data = builder.mapping(root, ())
    return Document(path=path, content=content, data=data, lines=builder.lines, numbers=builder.numbers)


def _content(path: Path) -> bytes:
    try:
        # Without waiting: a FIFO, whose other end nobody holds, is no configuration.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb", closefd=True) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError("is not a file", where=str(path))
            content = file.read(BYTES_MAX + 1)
    except IsADirectoryError:
        raise ConfigError("is not a file", where=str(path)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        told = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {told}", where=str(path)) from None
    if len(content) > BYTES_MAX:
        raise ConfigError(f"is larger than {BYTES_MAX} bytes: not a configuration of sparkd", where=str(path))
    return content


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ConfigError(f"is not UTF-8: byte 0x{byte:02x}", where=f"{path}:{line}") from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Builder:
    """Walks the node tree once and remembers where everything stood."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, int] = {}
        self.numbers: dict[Key, str] = {}
        self._open: set[int] = set()  # ids of the nodes that are being walked: an anchor inside itself never ends
        self._values = 0

    def _fail(self, message: str, node: yaml.Node, key: Key, hint: str = "") -> ConfigError:
        where = f"{self.path}:{_line(node)}" + (f": {dotted(key)}" if key else "")
        return ConfigError(message, where=where, hint=hint)

    def value(self, node: yaml.Node, key: Key) -> Any:
        self._values += 1
        if self._values > VALUES_MAX:
            raise self._fail(f"has more than {VALUES_MAX} values", node, key)
        if len(key) > DEPTH_MAX:
            raise self._fail("is nested too deeply", node, key[:3])
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if id(node) in self._open:
            raise self._fail("this anchor contains itself", node, key)
        self._open.add(id(node))
        built = self.mapping(node, key) if isinstance(node, yaml.MappingNode) else self._sequence(node, key)
        self._open.remove(id(node))
        return built

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        self._expect(node, "map", key)
        built: dict[str, Any] = {}
        seen: dict[str, int] = {}
        merged: list[yaml.MappingNode] = []
        for name_node, value_node in node.value:
            if name_node.tag == _TAG + "merge":
                merged += self._merged(value_node, key)
                continue
            name = self._name(name_node, key)
            if name in seen:
                raise self._fail(f"duplicate key, first given in line {seen[name]}", name_node, (*key, name))
            seen[name] = self.lines[(*key, name)] = _line(name_node)
            built[name] = self.value(value_node, (*key, name))
        for other in merged:  # what stands here wins over what is merged in, an earlier merge over a later one
            values = self.value(other, (*key, "<<"))
            adopted = {name: value for name, value in values.items() if name not in built}
            built |= adopted
            self._adopt((*key, "<<"), key, adopted)
        return built

    def _merged(self, node: yaml.Node, key: Key) -> Iterator[yaml.MappingNode]:
        for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(each, yaml.MappingNode):
                raise self._fail("`<<` takes keys and values, or a list of such", node, key)
            yield each

    def _adopt(self, merged: Key, key: Key, names: Container[str]) -> None:
        """What was learnt of merged values holds for the keys that they became. It stands last in the tables, in one piece."""
        _move_last(self.lines, merged, key, names)
        _move_last(self.numbers, merged, key, names)

    def _name(self, node: yaml.Node, key: Key) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._fail("a key must be text", node, key)
        name = self._scalar(node, key)
        if not isinstance(name, str):
            told = _short(node.value)
            raise self._fail(f"the key {told!r} must be text", node, key, hint=f'write "{told}": in quotes')
        if len(name) > KEY_MAX_CHARS:
            raise self._fail(f"the key {_short(name)!r} has more than {KEY_MAX_CHARS} characters", node, key)
        return name

    def _sequence(self, node: yaml.Node, key: Key) -> list[Any]:
        self._expect(node, "seq", key)
        built = []
        for index, item in enumerate(node.value):
            self.lines[(*key, index)] = _line(item)
            built.append(self.value(item, (*key, index)))
        return built

    def _expect(self, node: yaml.Node, tag: str, key: Key) -> None:
        if node.tag != _TAG + tag:
            raise self._fail(f"the tag {node.tag!r} has no meaning here", node, key)

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        text: str = node.value
        match node.tag.removeprefix(_TAG):
            case "str" | "value" | "timestamp":
                return self._clean(text, node, key)
            case "null":
                return None
            case "bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "bool":
                raise self._fail(f"{text} is true or false to some and text to others", node, key, _plainly(text))
            case "int" if _WHOLE.match(text) and len(text) <= DIGITS_MAX:
                self.numbers[key] = text
                return int(text)
            case "float" if _DECIMAL.match(text) and isfinite(float(text)):
                self.numbers[key] = text
                return float(text)
            case "int" | "float":
                raise self._fail(f"{_short(text)} is not a plain decimal number", node, key, _plainly(text))
        raise self._fail(f"the tag {node.tag!r} has no meaning here", node, key)

    def _clean(self, text: str, node: yaml.Node, key: Key) -> str:
        if "\0" in text:
            raise self._fail("contains a NUL byte, which nothing here can carry", node, key)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise self._fail("contains half of a character (a lone surrogate)", node, key)
        return text


def _move_last(table: dict[Key, _Told], old: Key, new: Key, names: Container[str]) -> None:
    moved: dict[Key, _Told] = {}
    for key in reversed(table):
        if key[: len(old)] != old:
            break
        if len(key) > len(old) and key[len(old)] in names:
            moved[new + key[len(old) :]] = table[key]
    table |= moved


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "..."


def _plainly(text: str) -> str:
    text = _short(text)
    return f'write true, false or a decimal number, or "{text}" in quotes if text is meant'
