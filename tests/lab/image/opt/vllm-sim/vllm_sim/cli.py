"""The command line: what `vllm serve` accepts, and how it refuses the rest.

Messages and statuses are the recorded ones: 2 for what argparse refuses, after the import delay, because the real one
imports for 13 seconds before it looks at its arguments.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import Any

from vllm_sim import NOTE, VERSION, knobs, log
from vllm_sim.options import OPTIONS, Option

COMMANDS = (
    "chat",
    "complete",
    "serve",
    "launch",
    "bench",
    "collect-env",
    "download-kernels",
    "preload",
    "run-batch",
    "snapshot",
)
SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "K": 1024, "M": 1024**2, "G": 1024**3}
DOTTED = re.compile(r"(--?[a-z][a-z_-]*)\.([\w.]+)$")


def main(argv: list[str]) -> int:
    if argv in (["--version"], ["-v"]):
        log.plain(VERSION)
        return 0
    from vllm_sim import serve  # only now: `--version` answers at once

    knobs.pause("imports")
    arguments = parse(argv)
    if arguments is None:
        log.plain(f"vllm {argv[0] if argv else ''}: not part of the simulation {NOTE}")
        return 2
    return serve.run(arguments)


def parse(argv: list[str]) -> argparse.Namespace | None:
    """The arguments of `vllm serve`; None for another command. Exits with 2 where the real one does."""
    top = argparse.ArgumentParser(prog="vllm", description=NOTE)
    top.add_argument("-v", "--version", action="version", version=VERSION)
    commands = top.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        commands.add_parser(name, usage=f"vllm {name} [model_tag] [options]", allow_abbrev=False)
    serve = commands.choices["serve"]
    serve.add_argument("model_tag", nargs="?")
    for option in OPTIONS:
        _add(serve, option)
    arguments = top.parse_args(_normalised(argv))
    if arguments.command != "serve":
        return None
    _print_duplicates(argv)
    arguments.model = arguments.model_tag or arguments.model or "Qwen/Qwen3-0.6B"
    return arguments


def non_default(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the start log prints as `non-default args`, secrets masked as 0.32 masks them."""
    found: dict[str, Any] = {"model_tag": arguments.model_tag} if arguments.model_tag else {}
    for option in OPTIONS:
        value = getattr(arguments, option.dest)
        if value != option.default:
            found[option.dest] = "***" if option.dest in ("api_key", "hf_token") else value
    return found


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    names = [f"--{option.name}", *option.aliases]
    if option.kind == "bool":
        parser.add_argument(*names, action=argparse.BooleanOptionalAction, default=option.default)
    elif option.kind == "flag":
        parser.add_argument(*names, action="store_true")
    elif option.kind == "list":
        parser.add_argument(*names, nargs="+", default=option.default)
    elif option.kind == "choice":
        parser.add_argument(*names, choices=option.choices, default=option.default)
    else:
        parser.add_argument(*names, type=KINDS[option.kind], default=option.default)


def size(text: str) -> int:
    """An integer that may be written 128k (1000), 128K (1024); `auto` is -1."""
    if text in ("auto", "-1"):
        return -1
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", text)
    if found is None or (not found[2] and "." in found[1]):
        raise argparse.ArgumentTypeError(f"invalid human_readable_int value: {text!r}")
    return int(float(found[1]) * SIZE_UNITS[found[2]])


def json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        message = f"Value {text} cannot be converted to <function loads at {hex(id(json.loads))}>."
        raise argparse.ArgumentTypeError(message) from None


def config_value(text: str) -> Any:
    """--compilation-config: pydantic reads it, and complains in its own words."""
    try:
        value = json.loads(text)
    except ValueError:
        reason = "key must be a string at line 1 column 2" if text[:1] == "{" else "expected value at line 1 column 1"
        raise _pydantic_error(f"Invalid JSON: {reason} [type=json_invalid", text, "json_invalid") from None
    if not isinstance(value, dict):
        raise _pydantic_error("Input should be an object [type=dataclass_type", text, "dataclass_type")
    return value


def _pydantic_error(head: str, text: str, kind: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= 50 else f"{text[:25]}...{text[-24:]}"
    return argparse.ArgumentTypeError(
        f"1 validation error for CompilationConfig\n  {head}, input_value={shown!r}, input_type=str]\n"
        f"    For further information visit https://errors.pydantic.dev/2.14/v/{kind}"
    )


def _normalised(argv: list[str]) -> list[str]:
    """--max_model_len as --max-model-len, --a.b=c as --a '{"b": c}', -tp=2 and -O3 as argparse wants them."""
    result: list[str] = []
    dotted: dict[str, dict[str, Any]] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("-") or word == "-":
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-") if "." not in name else name
        found = DOTTED.fullmatch(name)
        if found:
            _put(dotted.setdefault(found[1].replace("_", "-"), {}), found[2], value if equals else next(words, ""))
        elif re.fullmatch(r"-O\d", name):
            result += ["-O", name[2:]]
        else:
            result += [name, value] if equals and not name.startswith("--") else [name + equals + value]
    for name, fields in dotted.items():
        result += [name, json.dumps(fields)]
    return result


def _put(target: dict[str, Any], path: str, text: str) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        target = target.setdefault(parent, {})
    try:
        target[last] = json.loads(text)
    except ValueError:
        target[last] = text


def _print_duplicates(argv: list[str]) -> None:
    names = [word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        print(f"Found duplicate keys {', '.join(duplicates)}", file=sys.stderr, flush=True)


KINDS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "size": size,
    "json": json_value,
    "config": config_value,
}
