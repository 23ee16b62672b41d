"""The launch script of one rank: one self-contained file, the only layer of quoting between the plan and vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote

from sparkd.model.plan import LAUNCH_ID_VARIABLE

# Inside the container, mode 0600, staged beside the script and never part of it: the script is shown to people.
API_KEY_PATH = "/workspace/.sparkd-api-key"

EXIT_NO_LAUNCH_ID = 64
EXIT_NO_API_KEY = 66

_HEADER = """\
#!/bin/bash
# {title}
# Written by sparkd from its configuration: a change made here is gone at the next launch.
# Its only argument is the launch id, so that this file is the same for every launch.
set -eu

if [ "$#" -ne 1 ] || [ -z "$1" ]; then
    echo "sparkd: this script takes one argument, the launch id; start the engine with: sparkd start" >&2
    exit {exit_no_launch_id}
fi
export {launch_id}="$1"
# vLLM titles its processes; unless told so, setproctitle overwrites with the title what /proc shows of their environment.
export SPT_NOENV=1
"""

_API_KEY = """\
# Read here and passed by the environment: on the command line everybody could see it.
if ! VLLM_API_KEY="$(cat {path})" || [ -z "$VLLM_API_KEY" ]; then
    echo "sparkd: no API key in {path}; start the engine with: sparkd start" >&2
    exit {exit_no_api_key}
fi
export VLLM_API_KEY
"""


def _unset(forbidden: str) -> str:
    """The line that removes "NAME", or "NAME=value" only where it has that value (an image may have set it)."""
    name, equals, value = forbidden.partition("=")
    if not equals:
        return f"unset {name}\n"
    return f'if [ "${{{name}-}}" = {quote(value)} ]; then unset {name}; fi\n'


def _lines(argv: Sequence[str]) -> list[str]:
    """`argv` quoted, each option on a line with its values. Only the look depends on what begins with a dash."""
    lines: list[str] = []
    for index, argument in enumerate(argv):
        if index == 0 or argument.startswith("-"):
            lines.append(quote(argument))
        else:
            lines[-1] += " " + quote(argument)
    return lines


def render_script(
    *,
    cluster: str,
    node: str,
    rank: int,
    size: int,
    recipe: str,
    profile: str | None,
    argv: Sequence[str],
    environment: Mapping[str, str],
    forbidden_environment: Sequence[str] = (),
    with_api_key: bool = False,
) -> str:
    """The text of the script that launches `argv` as rank `rank`, to be stored as UTF-8.

    It exports `environment` and the launch id, removes what is forbidden, and becomes the engine (`exec`).
    Every argument and value arrives byte for byte; only NUL, which neither can carry, is refused (ValueError).
    Without a launch id it exits 64, without its API key 66.
    """
    if any("\0" in text for text in (*argv, *environment.values())):
        raise ValueError("an argument or environment value contains a NUL byte")
    role = "alone" if size == 1 else "head" if rank == 0 else "headless worker"
    title = f"{recipe}, profile {profile or 'none'}: {node} of {cluster}, rank {rank} of {size} ({role})"
    parts = [
        _HEADER.format(
            title=" ".join(title.split()),  # one line, whatever the names are: the next one would be executed
            launch_id=LAUNCH_ID_VARIABLE,
            exit_no_launch_id=EXIT_NO_LAUNCH_ID,
        )
    ]
    if forbidden_environment:
        unsets = "".join(map(_unset, forbidden_environment))
        parts.append("# Known to break the engine, wherever it came from.\n" + unsets)
    if environment:
        parts.append("".join(f"export {name}={quote(value)}\n" for name, value in environment.items()))
    if with_api_key:
        parts.append(_API_KEY.format(path=API_KEY_PATH, exit_no_api_key=EXIT_NO_API_KEY))
    parts.append("exec " + " \\\n    ".join(_lines(argv)) + "\n")
    return "\n".join(parts)
