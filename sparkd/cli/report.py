"""`sparkd report`: the support bundle, for somebody who was not there."""

from __future__ import annotations

import time
from pathlib import Path

import click

from sparkd.cli import output
from sparkd.cli.options import config_option, node_option


@click.command()
@click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to write it. Default: sparkd-report-NODE-TIME.tar.gz in this directory.",
)
@click.option("--peer/--no-peer", default=True, help="Ask the other nodes for their diagnosis too.")
@config_option
@node_option
@output.json_option
def report(path: Path | None, peer: bool, config_path: Path, node: str | None, as_json: bool) -> None:
    """Write a support bundle: diagnosis of all nodes, drift, events, logs, units, the end of the previous boot.

    Keys, tokens and passwords are taken out of every file. It is readable by you alone; look through it before you send it.

    \b
      sudo sparkd report                with what only root may read
      sparkd report -o spark.tar.gz     to this file

    Exit status: 0 written, 2 it could not be.
    """  # fmt: skip
    from sparkd.cli.doctor import examine_here
    from sparkd.doctor import bundle, screen
    from sparkd.doctor.texts import texts

    facts, examination = examine_here(config_path, node, peer=peer)
    found, unseen = texts(facts, thorough=True)
    name = f"sparkd-report-{examination.node or 'node'}-{time.strftime('%Y%m%d-%H%M%S')}"
    packed = bundle.pack(
        path or Path(f"{name}.tar.gz"),
        bundle.contents(facts, examination, screen.lines(examination, verbose=True), found),
        secrets=bundle.keys(facts),
    )
    missing = (*packed.missing, *unseen)
    if as_json:
        output.say_json({"path": str(packed.path), "files": dict(packed.files), "missing": list(missing)})
        return
    for file, size in packed.files:
        output.say(f"{size:>9}  {file}")
    for line in missing:
        output.note(f"not in it: {line}")
    size_mb = packed.path.stat().st_size / 1e6
    output.say(f"wrote {packed.path} ({size_mb:.1f} MB); secrets were taken out, look before you send it")
