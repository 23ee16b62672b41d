"""`sparkd init`: the cluster's first key. Needs no daemon and no configuration."""

from __future__ import annotations

from pathlib import Path

import click

from sparkd.cli import output
from sparkd.cli.options import key_option


@click.command()
@key_option
@output.json_option
def init(key_path: Path, as_json: bool) -> None:
    """Make the cluster key, once, on one node; every other node gets a copy of the file.

    Nodes know each other by this key alone. An existing one is never touched.
    """
    from sparkd.peer.keys import KEY_MODE, fingerprint, make

    print_ = fingerprint(make(key_path))
    if as_json:
        output.say_json({"path": str(key_path), "mode": f"{KEY_MODE:04o}", "fingerprint": print_})
        return
    output.say(f"made {key_path} (mode {KEY_MODE:04o}), fingerprint {print_}")
    output.say("every other node needs the same file, owned by root and of the same mode, over a way that you trust:")
    output.say(f"    sudo cat {key_path} | ssh NODE 'sudo install -D -m 0600 /dev/stdin {key_path}'")
    output.say("then `sparkd key status` says on each node which key it has")
