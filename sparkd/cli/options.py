"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

KEY_PATH = Path("/etc/sparkd/cluster.key")
CONFIG_PATH = Path("/etc/sparkd/sparkd.yaml")  # as sparkd.config.load has it; importing that costs 0.2 s


def config_option(function: Function) -> Function:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        default=CONFIG_PATH,
        show_default=True,
        envvar="SPARKD_CONFIG",
        metavar="PATH",
        help="The configuration file; recipes and profiles lie beside it.",
    )(function)


def key_option(function: Function) -> Function:
    return click.option(
        "--key",
        "key_path",
        type=click.Path(path_type=Path, readable=False),  # who may not read it is told so in our words
        default=KEY_PATH,
        show_default=True,
        metavar="PATH",
        help="The cluster's key file.",
    )(function)


def profile_option(function: Function) -> Function:
    return click.option("--profile", metavar="NAME", help="Use this profile instead of the configured one.")(function)


def node_option(function: Function) -> Function:
    return click.option(
        "--node", metavar="NAME", envvar="SPARKD_NODE", help="Which node this is, where its addresses do not tell."
    )(function)


class Seconds(click.ParamType[float]):
    """A number of seconds, `infinite` for no limit; 30s, 10m and 2h are understood."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        if text in ("infinite", "infinity", "inf"):
            return float("inf")
        factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:], 0)
        number = text[:-1] if factor else text
        try:
            seconds = float(number) * (factor or 1)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf"):
            self.fail(f"{value!r} is not a time (examples: 90, 30s, 15m, infinite)", param, ctx)
        return seconds
