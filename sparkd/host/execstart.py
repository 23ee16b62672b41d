"""Do the programs and scripts that a unit starts exist, on the host and inside the container?

A path that exists nowhere is exit status 127 in a loop, with an empty engine log: the most expensive small mistake there
is. Judges what systemd has loaded, drop-ins included; starts nothing.
"""

from __future__ import annotations

import shlex
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sparkd.host.units import UnitState
from sparkd.model.finding import Cure, Finding, bad, good, unknown, warning

ID = "unit.execstart-path"
PREFIXES = "-@:+!"  # systemd's, in front of a program's path: how to run it, not what
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # systemd's own, for a bare name
SHELLS = ("bash", "sh", "dash")

# `docker exec` and `docker` options that take a value as the next word; the others stand alone.
EXEC_VALUES = ("-e", "--env", "-u", "--user", "-w", "--workdir", "--env-file", "--detach-keys")
DOCKER_VALUES = ("-H", "--host", "-c", "--context", "--config", "-l", "--log-level", "--tlscert", "--tlskey")
SHELL_VALUES = ("-o", "+o", "-O", "+O", "--rcfile", "--init-file")
SHELL_SYNTAX = frozenset("|&;<>()`\n*?[]{}")  # in a -c text: more than one plain command
ANY_EXECUTE = 0o111

InContainer = Callable[[str, str], bool | None]


@dataclass(frozen=True)
class Wanted:
    """A path that a command needs. `container` is None on the host. A `program` must be executable as well."""

    path: str
    container: str | None
    program: bool


def check_exec_paths(unit: UnitState, *, in_container: InContainer) -> list[Finding]:
    """One finding for each path that cannot be found or could not be looked for; one good finding when all exist.

    `in_container(container, path)` tells whether a path exists in a container: None when it could not look.
    """
    evidence = tuple(path for path in (unit.fragment_path, *unit.drop_ins) if path)
    if unit.load_state != "loaded":
        says = f"{unit.name} cannot be started: systemd has it as {unit.load_state}"
        return [bad(ID, says, cure=Cure.PERSON, remedy=f"systemctl status {unit.name}", evidence=evidence)]
    found: list[Finding] = []
    seen: list[Wanted] = []
    for setting, commands in (("ExecStartPre", unit.exec_start_pre), ("ExecStart", unit.exec_start)):
        for command in commands:
            optional = setting == "ExecStartPre" and (command in unit.ignored or "-" in _prefix(command))
            for wanted in wanted_paths(command):
                if wanted in seen:
                    continue
                seen.append(wanted)
                trouble = _trouble(unit, wanted, in_container)
                if trouble:
                    found.append(_finding(unit, setting, wanted, trouble, optional, evidence))
    if found or not seen:
        return found
    return [good(ID, f"{unit.name}: {_list(seen)} {'exists' if len(seen) == 1 else 'exist'}", evidence=evidence)]


@dataclass(frozen=True)
class Trouble:
    says: str
    known: bool  # False: could not look


MISSING = Trouble("where it does not exist", known=True)
NO_PROGRAM = Trouble("which is not an executable file", known=True)
VARIABLE = Trouble("which cannot be looked for: the path is made of variables or of the working directory", known=False)
CLOSED = Trouble("which could not be looked into", known=False)


def _trouble(unit: UnitState, wanted: Wanted, in_container: InContainer) -> Trouble | None:
    """What is wrong with a path, None when it is as it should be."""
    path = wanted.path
    if wanted.container is None and not path.startswith("/"):
        path = str(PurePosixPath(unit.working_directory.lstrip("!") or "/") / path)
    if "$" in path or not path.startswith("/"):
        return VARIABLE
    if wanted.container is not None:
        exists = in_container(wanted.container, path)
        return CLOSED if exists is None else None if exists else MISSING
    try:
        about = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return CLOSED  # not ours to look into
    is_program = stat.S_ISREG(about.st_mode) and about.st_mode & ANY_EXECUTE
    return NO_PROGRAM if wanted.program and not is_program else None


def _finding(
    unit: UnitState, setting: str, wanted: Wanted, trouble: Trouble, optional: bool, evidence: tuple[str, ...]
) -> Finding:
    side = f"in container {wanted.container}" if wanted.container else "on the host"
    says = f"{unit.name}: {setting} needs {wanted.path} {side}, {trouble.says}"
    look = f"ls -l {wanted.path}" if wanted.container is None else f"docker exec {wanted.container} ls -l {wanted.path}"
    remedy = f"{look}; systemctl cat {unit.name}; put the file there, or correct the path: systemctl edit {unit.name}"
    if unit.needs_reload:
        remedy = f"its files changed since systemd read them: systemctl daemon-reload; {remedy}"
    if not trouble.known:
        return unknown(ID, says, remedy=remedy, evidence=evidence)
    if optional:
        return warning(ID, f"{says}; the unit ignores that", remedy=remedy, evidence=evidence)
    return bad(ID, says, cure=Cure.PERSON, remedy=remedy, evidence=evidence)


def _list(wanted: Sequence[Wanted]) -> str:
    return ", ".join(f"{one.path} (in {one.container})" if one.container else one.path for one in wanted)


# --- what a command needs -------------------------------------------------------------------------


def wanted_paths(command: Sequence[str], container: str | None = None) -> list[Wanted]:
    """The programs and scripts that this command line needs, on the host or in `container`, in the order of their use.

    Follows `bash SCRIPT`, `bash -c "one plain command"`, `env`, and `docker exec` into its container. What a longer
    shell text needs is not guessed.
    """
    if not command:
        return []
    program = command[0].lstrip(PREFIXES)
    if container is None and "/" not in program:
        program = shutil.which(program, path=SEARCH_PATH) or f"{SEARCH_PATH.split(':')[1]}/{program}"
    found = []
    if container is None or "/" in program:  # a bare name in a container is looked up along a PATH that we do not know
        found.append(Wanted(program, container, program=True))
    name, words = PurePosixPath(program).name, list(command[1:])
    if name in SHELLS:
        found += _of_shell(words, container)
    elif name == "env":
        words = _without_options(words, ("-u", "--unset", "-C", "--chdir"))
        while words and "=" in words[0]:
            del words[0]
        found += wanted_paths(words, container)
    elif name == "exec":
        found = wanted_paths(words, container)
    elif name == "docker" and container is None:
        found += _of_docker(words)
    return found


def _of_docker(words: list[str]) -> list[Wanted]:
    words = _without_options(words, DOCKER_VALUES)
    if words[:1] == ["container"]:
        del words[0]
    if words[:1] != ["exec"]:
        return []
    words = _without_options(words[1:], EXEC_VALUES)
    return wanted_paths(words[1:], container=words[0]) if words else []


def _of_shell(words: list[str], container: str | None) -> list[Wanted]:
    """`bash [options] SCRIPT` or `bash [options] -c TEXT`; `-lc` and its like too."""
    while words and words[0][:1] in ("-", "+") and words[0] != "--":
        option = words.pop(0)
        if option.startswith("-") and not option.startswith("--") and "c" in option:
            return _of_text(words[0], container) if words else []
        if option.startswith("-") and not option.startswith("--") and "s" in option:
            return []  # the script is standard input
        if option in SHELL_VALUES and words:
            del words[0]
    if words[:1] == ["--"]:
        del words[0]
    return [Wanted(words[0], container, program=False)] if words else []


def _of_text(text: str, container: str | None) -> list[Wanted]:
    if SHELL_SYNTAX.intersection(text) or "$" in text:
        return []
    try:
        words = shlex.split(text)
    except ValueError:
        return []
    while words and (words[0] == "exec" or "=" in words[0]):
        del words[0]
    # a shell's own words (cd, sleep, true, ...) have no path of their own to look for
    return wanted_paths(words, container) if words and ("/" in words[0] or words[0] == "docker") else []


def _without_options(words: Sequence[str], with_value: Sequence[str]) -> list[str]:
    """What follows the options: "-it -e A=b --user=0 -- NAME ..." gives ["NAME", ...]."""
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        option = rest.pop(0)
        if option == "--":
            break
        short = not option.startswith("--")
        # "-ite A=b": the last letter of a group takes the value; "-eA=b" and "--env=A=b" carry it along
        takes = option in with_value or (short and len(option) > 2 and _group_takes_value(option, with_value))
        if takes and rest:
            del rest[0]
    return rest


def _group_takes_value(option: str, with_value: Sequence[str]) -> bool:
    """Whether the first letter in "-ite" that takes a value is the last one, so that its value is the next word."""
    for at, letter in enumerate(option[1:], start=1):
        if f"-{letter}" in with_value:
            return at == len(option) - 1
    return False


def _prefix(command: Sequence[str]) -> str:
    program = command[0] if command else ""
    return program[: len(program) - len(program.lstrip(PREFIXES))]
