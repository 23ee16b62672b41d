"""The command `sparkd`: finds the subcommand, runs it, and says once what went wrong."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from sparkd import __version__
from sparkd.cli import output
from sparkd.model.errors import EXIT_FAILED, EXIT_USAGE, SparkdError

EXIT_INTERRUPTED = 130

# In the order of a day: look, act, explain, prepare. Each is a module of its own, imported when it is asked for.
COMMANDS = {
    "status": "sparkd.cli.status:status",
    "start": "sparkd.cli.intent:start",
    "stop": "sparkd.cli.intent:stop",
    "restart": "sparkd.cli.intent:restart",
    "wait": "sparkd.cli.wait:wait",
    "events": "sparkd.cli.events:events",
    "logs": "sparkd.cli.logs:logs",
    "doctor": "sparkd.cli.doctor:doctor",
    "drift": "sparkd.cli.drift:drift",
    "explain": "sparkd.cli.explain:explain",
    "report": "sparkd.cli.report:report",
    "build": "sparkd.cli.build:build",
    "clean": "sparkd.cli.clean:clean",
    "config": "sparkd.cli.config:config",
    "render": "sparkd.cli.render:render",
    "version": "sparkd.cli.version:version",
    "run": "sparkd.cli.run:run",
    "baseline": "sparkd.cli.baseline:baseline",
    "engine-stop": "sparkd.cli.engine_stop:engine_stop",
}


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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sparkd", message="%(prog)s %(version)s")
def sparkd() -> None:
    """Bring one vLLM engine up across the nodes of a small cluster, prove that it answers, and keep it up.

    Exit status: 0 good, 1 warnings, 2 failed, 3 cannot tell, 64 usage.
    """


def main() -> None:
    """The entry point. No traceback reaches an operator; SPARKD_DEBUG=1 lets it through."""
    status = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
    sys.exit(status)


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
