"""What an engine's environment variable may be called and may carry: checked where it is written."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from pydantic import AfterValidator

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# bash assigns or counts these itself: what the launch script exports would not be what the engine gets.
# fmt: off
_OWNED_BY_BASH = frozenset((
    "_", "COMP_WORDBREAKS", "DIRSTACK", "EPOCHREALTIME", "EPOCHSECONDS", "EUID", "FUNCNAME", "GROUPS", "HISTCMD", "IFS",
    "LINENO", "OLDPWD", "OPTARG", "OPTERR", "OPTIND", "POSIXLY_CORRECT", "PPID", "PS4", "PWD", "RANDOM", "SECONDS",
    "SHELLOPTS", "SHLVL", "SRANDOM", "UID",
))
# fmt: on

_Value = TypeVar("_Value", str, str | None)


def check_name(name: str) -> str:
    """`name`, where the launch script can export it. ValueError otherwise."""
    if not _NAME.match(name):
        raise ValueError(f"{name}: is not a name that an environment variable can have")
    if name in _OWNED_BY_BASH or name.startswith("BASH"):
        raise ValueError(f"{name}: bash sets this variable itself, a recipe cannot")
    if name == "SPARKD_LAUNCH_ID":
        raise ValueError(f"{name}: is sparkd's own, new for each launch")
    if name == "VLLM_API_KEY":
        raise ValueError(f"{name}: is a secret; put it in a file and name that file in the recipe's api_key_file")
    return name


def _check(environment: dict[str, _Value]) -> dict[str, _Value]:
    for name, value in environment.items():
        check_name(name)
        if value is not None and "\0" in value:
            raise ValueError(f"{name}: no environment variable can carry a NUL byte")
    return environment


Environment = Annotated[dict[str, str], AfterValidator(_check)]
EnvironmentChanges = Annotated[dict[str, str | None], AfterValidator(_check)]  # None removes the variable
