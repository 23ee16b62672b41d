"""`sparkd version`."""

from __future__ import annotations

import platform

import click

from sparkd import __version__
from sparkd.cli import output


@click.command()
@output.json_option
def version(as_json: bool) -> None:
    """Print the version of sparkd."""
    if as_json:
        output.say_json({"version": __version__, "python": platform.python_version()})
    else:
        output.say(f"sparkd {__version__}")
