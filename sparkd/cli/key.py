"""`sparkd key`: which keys the nodes have, and a new one in the place of the old without a node that is not understood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sparkd.cli import daemon, output
from sparkd.cli.options import key_option
from sparkd.model.errors import EXIT_GOOD, EXIT_UNKNOWN, EXIT_WARNINGS, SparkdError

LAST_HEARD_MAX_S = 60.0  # a node that was not heard for longer may have another key by now


@click.group()
def key() -> None:
    """Look at the cluster's keys, and rotate them while the cluster serves.

    \b
    sparkd key rotate       on one node: a second key beside the first
    copy the file, `systemctl restart sparkd`   on every node, in any order
    sparkd key drop, `systemctl restart sparkd`  on every node, in any order

    Each step waits for nobody, and whatever is left undone, the nodes go on understanding each other.
    """


@key.command()
@key_option
@output.json_option
def status(key_path: Path, as_json: bool) -> int:
    """Show fingerprints: of the file, of what the daemon has loaded, and of what each other node last signed with.

    Exit status: 0 one key, and every other node was heard with it, 1 a rotation is under way, 3 a node was not heard.
    """
    from sparkd.peer.keys import fingerprint, load_keys

    held = [fingerprint(each) for each in load_keys(key_path)]
    answer: dict[str, Any] | None = None
    why = ""
    try:
        answer = daemon.ask("keys")
    except SparkdError as error:
        why = error.message
    exit_code, advice = judge(held, answer)
    if as_json:
        output.say_json({"path": str(key_path), "file": held, "daemon": answer, "next": advice, "without_daemon": why})
        return exit_code
    output.say(f"file     {_words(held)}  {key_path}")
    output.say(f"daemon   {_words(answer['keys']) if answer is not None else f'not known: {why}'}")
    for name, shown in (answer["peers"] if answer is not None else {}).items():
        heard = (
            f"{_words(shown['keys'])}  {shown['seconds_ago']:.0f} s ago" if shown else "not heard since sparkd started"
        )
        output.say(f"{name:<8} {heard}")
    output.say(f"next     {advice}")
    return exit_code


@key.command()
@key_option
@output.json_option
def rotate(key_path: Path, as_json: bool) -> None:
    """Add a new key to the file. Both are valid until `sparkd key drop`."""
    from sparkd.peer.keys import KEYS_MAX, fingerprint, load_keys, new_key, write

    held = load_keys(key_path)
    if len(held) >= KEYS_MAX:
        raise SparkdError(
            "a rotation is under way already: the file has two keys",
            where=str(key_path),
            hint="sparkd key status says what comes next; sparkd key drop --new gives it up",
        )
    keys = (*held, bytes.fromhex(new_key()))
    write(key_path, keys)
    _told(
        as_json,
        keys=[fingerprint(each) for each in keys],
        says=f"added {fingerprint(keys[-1])} beside {fingerprint(keys[0])} in {key_path}",
        then=[
            f"on every other node: the same file (sudo cat {key_path} | ssh NODE 'sudo install -m 0600 /dev/stdin {key_path}')",
            "on every node, in any order: systemctl restart sparkd (a serving engine is left alone)",
            "then `sparkd key status`, and `sparkd key drop` where it says so",
        ],
    )


@key.command()
@key_option
@click.option("--new", "drop_new", is_flag=True, help="Give the rotation up: the old key stays.")
@click.option("--force", is_flag=True, help="Even if a node was not heard with the key that stays.")
@output.json_option
def drop(key_path: Path, drop_new: bool, force: bool, as_json: bool) -> None:
    """Take the old key out of the file, once every other node has shown that it has the new one."""
    from sparkd.peer.keys import KEYS_MAX, fingerprint, load_keys, write

    held = load_keys(key_path)
    if len(held) < KEYS_MAX:
        raise SparkdError(
            f"there is one key, {fingerprint(held[0])}: nothing to drop", where=str(key_path), hint="sparkd key rotate"
        )
    stays, goes = (held[0], held[1]) if drop_new else (held[1], held[0])
    if not force:
        _must_be_known_everywhere(fingerprint(stays))
    write(key_path, (stays,))
    _told(
        as_json,
        keys=[fingerprint(stays)],
        says=f"dropped {fingerprint(goes)} from {key_path}; {fingerprint(stays)} stays",
        then=["systemctl restart sparkd (a serving engine is left alone), and the same on every other node"],
    )


# --- deciding ----------------------------------------------------------------------------------------


def lacking(stays: str, answer: dict[str, Any]) -> list[str]:
    """The nodes that have not shown, lately, that they have the key that would stay."""
    return [
        name
        for name, shown in answer["peers"].items()
        if not shown or stays not in shown["keys"] or shown["seconds_ago"] > LAST_HEARD_MAX_S
    ]


def judge(held: Sequence[str], answer: dict[str, Any] | None) -> tuple[int, str]:
    """Exit status and the next step, as a sentence."""
    if answer is None:
        return EXIT_UNKNOWN, "start sparkd: it knows what the other nodes have"
    if list(held) != answer["keys"]:
        return EXIT_WARNINGS, "the file has changed since sparkd started: systemctl restart sparkd takes it"
    without = lacking(held[-1], answer)
    if len(held) > 1:
        if not without:
            return EXIT_WARNINGS, "every node has the new key: sparkd key drop, systemctl restart sparkd, on every node"
        return EXIT_WARNINGS, f"copy the file to {', '.join(without)}, and systemctl restart sparkd there"
    if without:
        return (
            EXIT_UNKNOWN,
            f"{', '.join(without)} was not heard with this key lately: another key, no sparkd, or no link",
        )
    return EXIT_GOOD, "nothing"


def _must_be_known_everywhere(stays: str) -> None:
    try:
        answer = daemon.ask("keys")
    except SparkdError as error:
        raise SparkdError(
            f"whether the other nodes have {stays} is not known: {error.message}",
            hint="systemctl start sparkd, then again; --force drops it anyway",
        ) from None
    without = lacking(stays, answer)
    if stays not in answer["keys"]:
        raise SparkdError(
            f"the daemon of this node does not have {stays} yet", hint="systemctl restart sparkd, then again"
        )
    if without:
        raise SparkdError(
            f"{', '.join(without)} has not shown that it has {stays}: without the other key it would not be understood",
            hint="copy the file there and systemctl restart sparkd on it; sparkd key status shows it",
        )


# --- saying ------------------------------------------------------------------------------------------


def _words(fingerprints: Sequence[str]) -> str:
    return " + ".join(fingerprints) or "none"


def _told(as_json: bool, *, keys: list[str], says: str, then: list[str]) -> int:
    if as_json:
        output.say_json({"keys": keys, "says": says, "next": then})
    else:
        output.say(says)
        for line in then:
            output.say(f"  {line}")
    return EXIT_GOOD
