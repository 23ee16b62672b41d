"""The command `sparkd`: finds the subcommand, runs it, and says once what went wrong."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import click

from sparkd import __version__
from sparkd.cli import output
from sparkd.model.errors import EXIT_FAILED, EXIT_USAGE, SparkdError

EXIT_INTERRUPTED = 130

# Each command is a module of its own, imported when it is called: title -> name -> (where, what it does).
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "Day to day": {
        "status": ("sparkd.cli.status:status", "Show both nodes: phase, progress, proof, what blocks"),
        "start": ("sparkd.cli.intent:start", "Let the cluster serve (again, after a stop)"),
        "stop": ("sparkd.cli.intent:stop", "End the engine on all nodes and keep it ended"),
        "restart": ("sparkd.cli.intent:restart", "End the engine on all nodes and launch it anew"),
        "wait": ("sparkd.cli.wait:wait", "Wait until the cluster serves, proven by an answer"),
        "events": ("sparkd.cli.events:events", "Show what this node decided and did"),
        "logs": ("sparkd.cli.logs:logs", "Show the engine's output on this node"),
    },
    "When something is wrong": {
        "doctor": ("sparkd.cli.doctor:doctor", "Name the incident, its evidence and the command to give"),
        "drift": ("sparkd.cli.drift:drift", "Show what changed since the engine last proved itself"),
        "explain": ("sparkd.cli.explain:explain", "Explain a check, an incident or a reason by its ID"),
        "report": ("sparkd.cli.report:report", "Write a support bundle, secrets taken out"),
        "build": ("sparkd.cli.build:build", "Show what the image was built from; has it this fix?"),
        "clean": ("sparkd.cli.clean:clean", "Remove what engines left behind and is proven ours"),
    },
    "Configuration": {
        "init": ("sparkd.cli.init:init", "Make the cluster key, on the first node"),
        "key": ("sparkd.cli.key:key", "Compare the nodes' keys; replace the key while serving"),
        "config": ("sparkd.cli.config:config", "Check the configuration"),
        "render": ("sparkd.cli.render:render", "Print the launch script of a rank, byte for byte"),
        "version": ("sparkd.cli.version:version", "Print the version of sparkd"),
    },
    "For systemd and the daemon": {
        "run": ("sparkd.cli.run:run", "Run the agent of this node (sparkd.service does)"),
    },
}
HIDDEN = {
    "autopsy": "sparkd.cli.autopsy:autopsy",
    "baseline": "sparkd.cli.baseline:baseline",
    "engine-stop": "sparkd.cli.engine_stop:engine_stop",
}
COMMANDS = {name: where for group in GROUPS.values() for name, (where, _) in group.items()} | HIDDEN


class Commands(click.Group):
    """A group whose commands are imported when they are called, because a status must not wait for a daemon's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """By what one wants to do; without importing any of them."""
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, says) for name, (_, says) in group.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparkd", message="%(prog)s %(version)s")
def sparkd() -> None:
    """Bring one vLLM engine up across the nodes of a small cluster, prove that it answers, and keep it up.

    Exit status: 0 good, 1 warnings, 2 failed, 3 cannot tell, 64 usage. `sparkd COMMAND --help` tells more.
    """


def main() -> None:
    """The entry point. No traceback reaches an operator; SPARKD_DEBUG=1 lets it through."""
    if os.environ.get("SPARKD_CHILD"):
        _expose()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that is not UTF-8 is shown, not died of
    status = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
    sys.exit(status)


def _expose() -> None:
    """The daemon started this one: where memory runs short, it goes before the daemon whose protection it inherits."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # noqa: PTH123  # pathlib is not needed else
            file.write("500")
    except OSError:
        pass


def _run(arguments: list[str]) -> int:
    try:
        result: Any = sparkd.main(arguments, prog_name="sparkd", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "sparkd"
        output.error(error.format_message(), where=where.removeprefix("sparkd "), hint=f"see `{where} --help`")
        return EXIT_USAGE
    except click.ClickException as error:
        output.error(error.format_message())
        return EXIT_FAILED
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except (BrokenPipeError, SystemExit):  # `sparkd events | head`; click makes an exit of a broken pipe
        _silence_stdout()
        return 0
    except SparkdError as error:
        output.report_error(error, as_json="--json" in arguments)
        return error.exit_code
    except Exception as error:  # the edge: nobody is left above us who could do better
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    if os.environ.get("SPARKD_DEBUG"):
        raise error
    hint = "this is a fault of sparkd itself; the same command with SPARKD_DEBUG=1 shows where"
    output.error(f"{type(error).__name__}: {error}", where="unforeseen", hint=hint)
    return EXIT_FAILED


def _silence_stdout() -> None:
    """The reader has gone. Python would complain once more when it closes the stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
