"""What a text must hold before a pattern can match in it: literals read off the pattern itself. Pure.

Looking for a word in three megabytes takes a millisecond, a regular expression takes a hundred; most logs hold
none of the words of most records.
"""

from __future__ import annotations

_NEEDLE_MIN_CHARS = 4
_CLASSES = "dDwWsSbBAZ"


def needles(regex: str) -> tuple[str, ...]:
    """Lower-case literals of which at least one is part of every match. Empty: the pattern promises none."""
    found, _ = _alternatives(regex, 0)
    return found if found and min(map(len, found)) >= _NEEDLE_MIN_CHARS else ()


def _alternatives(regex: str, at: int) -> tuple[tuple[str, ...], int]:
    """The best needles of `a|b|c` up to its closing bracket, and where it ends. One branch without any spoils all."""
    branches: list[tuple[str, ...]] = []
    while True:
        best, at = _sequence(regex, at)
        branches.append(best)
        if at < len(regex) and regex[at] == "|":
            at += 1
            continue
        return (sum(branches, ()) if all(branches) else ()), at


def _sequence(regex: str, at: int) -> tuple[tuple[str, ...], int]:
    best: tuple[str, ...] = ()
    run = ""
    while at < len(regex) and regex[at] not in "|)":
        literal, inner, at = _atom(regex, at)
        may_miss, repeats, at = _quantifier(regex, at)
        if literal and not may_miss:
            run += literal
            if not repeats:
                continue
        elif inner and not may_miss:
            best = _better(best, inner)
        best, run = _better(best, (run,) if run else ()), ""
    return _better(best, (run,) if run else ()), at


def _better(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    """The longer the shortest, the rarer in a log."""
    return b if b and (not a or min(map(len, b)) > min(map(len, a))) else a


def _atom(regex: str, at: int) -> tuple[str, tuple[str, ...], int]:
    """One literal character, or what a group promises, and where the atom ends."""
    char = regex[at]
    if char == "\\":
        escaped = regex[at + 1]
        if escaped == "x":
            return "", (), at + 4
        return ("" if escaped.isalnum() else escaped), (), at + 2
    if char == "[":
        return "", (), _class_end(regex, at)
    if char == "(":
        return _group(regex, at)
    return ("" if char in ".^$" else char.lower()), (), at + 1


def _class_end(regex: str, at: int) -> int:
    at += 2 if regex[at + 1] == "^" else 1
    at += 1  # the first may be a bracket itself
    while regex[at - 1] == "\\" or regex[at] != "]":
        at += 2 if regex[at] == "\\" else 1
    return at + 1


def _group(regex: str, at: int) -> tuple[str, tuple[str, ...], int]:
    at += 1
    promises = True
    if regex[at] == "?":
        if regex.startswith(("?P<", "?P="), at):
            promises = regex[at + 2] == "<"
            at = regex.index(">", at) + 1 if promises else at
        elif regex[at + 1] in ":>":
            at += 2
        else:
            promises = False  # it looks around or sets flags
            at += 2
    inner, at = _alternatives(regex, at)
    return "", inner if promises else (), at + 1


def _quantifier(regex: str, at: int) -> tuple[bool, bool, int]:
    """Whether the atom before may be missing, whether it may repeat, and where its quantifier ends."""
    may_miss = repeats = False
    if at < len(regex) and regex[at] in "?*+":
        may_miss, repeats, at = regex[at] != "+", True, at + 1
    elif (
        at < len(regex)
        and regex[at] == "{"
        and (end := regex.find("}", at)) > 0
        and regex[at + 1 : at + 2] in "0123456789,"
    ):
        may_miss, repeats, at = regex[at + 1] in "0,", True, end + 1
    else:
        return False, False, at
    return may_miss, repeats, at + 1 if at < len(regex) and regex[at] in "?+" else at
