"""Every command as the operator meets it: a real process, a real control socket, its output and its exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cli_daemon import BLOCKED, BLOCKED_THERE, CHECKOUT, LOADING, SERVING, STOPPED, Daemon, Home

from sparkd.cli.main import GROUPS

CONFIG = CHECKOUT / "config/sparkd.yaml"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def errors(done: subprocess.CompletedProcess[str]) -> str:
    """What was said on stderr; never a traceback."""
    assert "Traceback" not in done.stderr
    return done.stderr


# --- status and wait ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "code"), [(SERVING, 0), (LOADING, 1), (STOPPED, 1), (BLOCKED, 2), (BLOCKED_THERE, 2)]
)
def test_status_tells_by_its_exit_status(home: Home, state: object, code: int) -> None:
    with home.daemon(Daemon([state])):  # type: ignore[list-item]
        for_people, for_programs = home.sparkd("status"), home.sparkd("status", "--json")
    assert (for_people.returncode, for_programs.returncode) == (code, code)
    assert json.loads(for_programs.stdout)["phase"] in for_people.stdout
    assert "\033" not in for_people.stdout, "colours are for terminals"
    assert not errors(for_people)


def test_status_without_a_daemon_cannot_tell_and_says_what_it_sees(home: Home) -> None:
    done = home.sparkd("status")
    assert done.returncode == 3
    assert "sparkd is not running on this node" in errors(done) and "hint: systemctl start sparkd" in done.stderr
    assert "sparkd-engine.service: " in done.stdout
    answer = json.loads(home.sparkd("status", "--json").stdout)
    assert answer["serving"] is None and answer["error"]["hint"]


def test_wait_returns_with_the_proof(home: Home) -> None:
    with home.daemon(Daemon([LOADING, LOADING, SERVING])):
        done = home.sparkd("wait", "--ready", "--timeout", "1m")
    assert (done.returncode, errors(done)) == (0, "")
    assert SERVING.endpoint in done.stdout


def test_wait_does_not_wait_for_a_person(home: Home) -> None:
    with home.daemon(Daemon([LOADING, BLOCKED])):
        done = home.sparkd("wait", "--ready", "--timeout", "infinite", "--json")
    assert done.returncode == 2 and "weights.missing: /models" in errors(done)
    assert json.loads(done.stdout)["error"]["where"] == "weights.missing"


def test_wait_goes_on_through_a_block_when_asked_to(home: Home) -> None:
    with home.daemon(Daemon([BLOCKED, LOADING, SERVING])):
        done = home.sparkd("wait", "--ready", "--even-blocked")
    assert done.returncode == 0


def test_wait_has_a_limit_and_says_how_far_it_came(home: Home) -> None:
    with home.daemon(Daemon([LOADING])):
        done = home.sparkd("wait", "--ready", "--timeout", "0")
    assert done.returncode == 2
    assert "spark1 loading (weights 12/46 shards)" in errors(done)
    assert home.sparkd("wait", "--ready", "--timeout", "0.1s").returncode == 3  # no daemon: cannot tell


def test_watching_into_a_pipe_is_a_line_for_each_change(home: Home) -> None:
    with home.daemon(Daemon([LOADING, LOADING, SERVING])), home.running("status", "--watch") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert "spark1 loading (weights 12/46 shards), spark2 loading" in lines[0]
    assert "spark1 serving, spark2 serving" in lines[1]
    assert (process.returncode, out, err.strip()) == (130, "", "")


# --- asking for something ------------------------------------------------------------------------------


def test_start_passes_the_profile_on_and_says_what_came_of_it(home: Home) -> None:
    daemon = Daemon([SERVING])
    with home.daemon(daemon):
        done = home.sparkd("start", "--profile", "latency")
        refused = home.sparkd("start", "--profile", "nope", "--json")
    assert (done.returncode, done.stdout) == (0, "start is under way\n")
    assert [request["profile"] for request in daemon.asked] == ["latency", "nope"]
    assert refused.returncode == 64 and "hint: known profiles: balanced" in errors(refused)
    assert json.loads(refused.stdout)["error"]["message"] == "there is no profile 'nope'"


def test_clean_asks_the_daemon(home: Home) -> None:
    daemon = Daemon([SERVING])
    with home.daemon(daemon):
        done = home.sparkd("clean", "--dry-run", "--json")
    assert daemon.asked[0]["dry_run"] is True
    assert "psm_0123abcd" in json.loads(done.stdout)["lines"][0]


# --- events ----------------------------------------------------------------------------------------------

EVENTS = [
    {"at": "2026-11-21T10:53:04.123+00:00", "id": "node.phase", "says": "preflight", "epoch": 18, "phase": "preflight"},
    {"at": "2026-11-21T10:53:05.123+00:00", "id": "engine.gone", "says": "gone", "epoch": 18, "phase": "loading"},
]


def test_events_are_lines(home: Home) -> None:
    with home.daemon(Daemon([SERVING], EVENTS)):
        done, last = home.sparkd("events"), home.sparkd("events", "-n", "1", "--json")
    assert done.stdout.splitlines()[0] == "11-21 10:53:04.123  epoch 18   preflight  node.phase: preflight"
    assert [json.loads(line)["id"] for line in last.stdout.splitlines()] == ["engine.gone"]


def test_events_are_followed_until_the_reader_goes(home: Home) -> None:
    with home.daemon(Daemon([SERVING], EVENTS)), home.running("events", "-f") as process:
        assert process.stdout is not None
        assert "node.phase" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "")


def test_events_of_a_daemon_that_is_gone_come_from_its_file(home: Home) -> None:
    state = home.directory / "state"
    state.mkdir()
    whole = "".join(json.dumps(event) + "\n" for event in EVENTS)
    (state / "events.jsonl").write_text(whole + '{"at": "2026-11-21T10:5')
    done = home.sparkd("events")
    assert done.returncode == 0 and "engine.gone: gone" in done.stdout
    assert "from the disk" in errors(done)


def test_events_that_break_off_are_told_once_and_not_as_the_whole(home: Home) -> None:
    (home.directory / "run").mkdir()
    (home.directory / "state").mkdir()
    lines = [json.dumps(event) + "\n" for event in EVENTS]
    (home.directory / "state/events.jsonl").write_text("".join(lines))
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(home.directory / "run/sparkd.sock"))
        daemon.listen()
        with home.running("events") as process:
            client, _ = daemon.accept()
            with client:
                client.recv(4096)
                client.sendall((lines[0] + lines[1][:20]).encode())
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out.count("node.phase"), "engine.gone" in out) == (3, 1, False)
    assert "sparkd ended before its answer did" in err


def test_a_reader_that_has_enough_is_no_error(home: Home) -> None:
    with home.daemon(Daemon([SERVING], EVENTS * 5000)), home.running("events", "-n", "10000") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


# --- without a daemon --------------------------------------------------------------------------------------


def test_config_check_and_render_need_no_daemon(home: Home) -> None:
    checked = home.sparkd("config", "check", "--config", str(CONFIG))
    assert checked.returncode == 0 and "deepseek-v4-flash" in checked.stdout
    told = json.loads(home.sparkd("config", "check", "--json", SPARKD_CONFIG=str(CONFIG)).stdout)
    assert told["profile"] == "balanced" and told["nodes"] == ["spark1", "spark2"]
    script = home.sparkd("render", "--rank", "1", "--config", str(CONFIG))
    plan = json.loads(home.sparkd("render", "--rank", "1", "--config", str(CONFIG), "--json").stdout)
    assert script.stdout == plan["script"] and "--headless" in script.stdout and plan["digest"] == told["plan"]
    assert home.sparkd("render", "--rank", "2", "--config", str(CONFIG)).returncode == 64


def test_a_configuration_that_is_wrong_is_one_error_with_its_place(home: Home) -> None:
    shutil.copytree(CONFIG.parent, home.directory / "config")
    broken = home.directory / "config/sparkd.yaml"
    broken.write_text(broken.read_text().replace("mtu: 9000", "mtu: nine"))
    line = next(n for n, text in enumerate(broken.read_text().splitlines(), 1) if "mtu:" in text)
    done = home.sparkd("config", "check", "--config", str(broken))
    assert done.returncode == 64 and not done.stdout
    assert f"{broken}:{line}: cluster.link.mtu" in errors(done)


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["wait"], ["wait", "--ready", "--timeout", "soon"], ["render", "--rank", "-1"], ["stop", "now"], []],
)
def test_a_wrong_call_is_64_and_says_where_help_is(home: Home, arguments: list[str]) -> None:
    done = home.sparkd(*arguments)
    assert done.returncode == 64
    assert "--help" in errors(done)


def test_version_and_help(home: Home) -> None:
    assert home.sparkd("version").stdout == home.sparkd("--version").stdout
    assert "version" in json.loads(home.sparkd("version", "--json").stdout)
    listed = home.sparkd("--help")
    assert listed.returncode == 0 and "engine-stop" not in listed.stdout  # the unit's, not a person's
    assert "..." not in listed.stdout.partition("Options:")[2], "each command is told in a whole sentence"


@pytest.mark.parametrize("command", [name for group in GROUPS.values() for name in group])
def test_each_command_is_listed_and_its_help_fits_a_screen(home: Home, command: str) -> None:
    assert f"  {command} " in home.sparkd("--help").stdout
    told = home.sparkd(command, "--help")
    assert told.returncode == 0
    lines = told.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    "command", ["status", "start", "stop", "restart", "wait", "events", "logs", "clean", "render", "version"]
)
def test_every_command_has_json(home: Home, command: str) -> None:
    assert "--json" in home.sparkd(command, "--help").stdout


def test_what_nobody_foresaw_is_a_line_and_with_debug_a_traceback(home: Home) -> None:
    (home.directory / "run").write_text("a file where a directory belongs")
    (home.directory / "log").mkdir()
    (home.directory / "log/engine").write_text("likewise")
    done = home.sparkd("logs")
    assert done.returncode == 2
    assert "unforeseen: NotADirectoryError" in errors(done) and "SPARKD_DEBUG=1" in done.stderr
    assert "Traceback" in home.sparkd("logs", SPARKD_DEBUG="1").stderr


# --- what it costs -----------------------------------------------------------------------------------------

HEAVY = {"pydantic", "docker", "httpx", "asyncio", "pystemd", "yaml", "rich", "psutil", "starlette"}


@pytest.mark.parametrize("module", ["main", "status", "wait", "events", "logs", "intent", "version", "engine_stop"])
def test_daily_commands_import_nothing_heavy(module: str) -> None:
    """What a person runs often must not wait for the daemon's libraries; STYLE.md has what each import costs."""
    code = f"import sparkd.cli.{module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert not {name.split(".")[0] for name in done.stdout.split()} & HEAVY


# --- the engine's unit ---------------------------------------------------------------------------------------

LAUNCH = "0badcafe-3"


def test_engine_stop_ends_what_carries_the_launch_and_nothing_else(home: Home) -> None:
    environments = ({"SPARKD_LAUNCH_ID": LAUNCH}, {"SPARKD_LAUNCH_ID": "0badcafe-33"}, {})
    engine, other, bystander = (
        subprocess.Popen(["sleep", "300"], env={"PATH": os.environ["PATH"], **environment})
        for environment in environments
    )
    try:
        done = home.sparkd("engine-stop", LAUNCH)
        assert (done.returncode, errors(done)) == (0, "")
        assert f"launch {LAUNCH}: 1 processes ended" in done.stdout
        assert engine.wait(timeout=10) == -signal.SIGTERM
        assert other.poll() is None and bystander.poll() is None
        assert home.sparkd("engine-stop", LAUNCH).stdout == ""
    finally:
        for process in (engine, other, bystander):
            process.kill()
            process.wait(timeout=10)
