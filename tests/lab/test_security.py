"""Nobody without the key learns or changes anything over the link, and no user of a node but root changes anything on it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import network
from tests.lab.pair import NODES, Pair, wait_for

LINKS = ("10.0.0.1", "10.0.0.2")
STRANGERS = [f"10.0.0.{number}" for number in range(30, 46)]
STRANGER = Path(__file__).with_name("stranger.py")
KEY = "/etc/sparkd/cluster.key"
RESTART = "systemctl restart sparkd"


# --- the wire ----------------------------------------------------------------------------------------


@pytest.fixture
def wire(serving: Pair) -> Iterator[Pair]:
    """Addresses for strangers, on the bridge between the nodes."""
    places = serving.lab.places
    for address in STRANGERS:
        network.ip(places, network.WIRE, f"addr replace {address}/24 dev wire")
    yield serving
    for address in STRANGERS:
        network.ip(places, network.WIRE, f"addr del {address}/24 dev wire", check=False)


def stranger(pair: Pair, *words: str, input: str = "", timeout_s: float = 120) -> Any:
    argv = network.entered(pair.lab.places, network.WIRE, [sys.executable, str(STRANGER), *words])
    done = subprocess.run(argv, input=input, capture_output=True, text=True, timeout=timeout_s, check=True)
    return json.loads(done.stdout)


def standing(pair: Pair) -> tuple[Any, ...]:
    """What a stranger must not change."""
    pids = [pair.run(node, "systemctl show -p MainPID -p NRestarts --value sparkd") for node in NODES]
    words = [sum(id.startswith("operator.") for id in pair.event_ids(node)) for node in NODES]
    return pair.epoch(), pids, [pair.engine(node) for node in NODES], words


def told_to_strangers(answer: str) -> str:
    """An answer without what each HTTP server says."""
    return re.sub(r"^HTTP/1\.1 .*?\r\n|content-\w+: .*?\r\n|connection: close\r\n|\r\n", "", answer)


def test_a_stranger_is_told_one_thing_whatever_he_says(wire: Pair) -> None:
    before = standing(wire)
    answers = stranger(wire, "say", *LINKS)
    assert {told_to_strangers(answer) for answer in answers} == {'{"reason": "wrong-key", "says": "not authenticated"}'}
    assert len(answers) == 1, answers
    assert standing(wire) == before
    said = [event["says"] for event in wire.events("spark1") if event["id"] == "peer.unauthenticated"]
    assert said and re.search(r"10\.0\.0\.\d+", said[-1]), "this node's own operator is told"


def test_what_was_recorded_on_the_wire_is_worth_nothing(wire: Pair) -> None:
    """Every message of the real daemons, an operator's stop and start among them, repeated to both nodes: at once, after
    restarts, after the next epoch."""
    listening: list[Any] = []
    tap = threading.Thread(target=lambda: listening.append(stranger(wire, "record", "60")))
    tap.start()
    wire.run("spark2", RESTART)  # a hello is among them
    wait_for("an answer of the new daemon", lambda: wire.status("spark2").get("phase") == "serving", max_s=60)
    wire.run("spark2", "sparkd start")
    wire.run("spark2", "sparkd restart")
    tap.join(120)
    recorded = listening[0]
    texts = [bytes.fromhex(one) for one in recorded]
    assert any(text.startswith(b"POST /v1/hello") for text in texts)
    assert sum(b'"verb":"restart"' in text.replace(b" ", b"") for text in texts) == 1
    wire.wait_serving()

    def repeat() -> list[str]:
        said = [text.hex() for text in texts if not text.startswith(b"POST /v1/exchange")]
        said += [text.hex() for text in texts if text.startswith(b"POST /v1/exchange")][-5:]
        answers: list[str] = stranger(wire, "repeat", STRANGERS[0], *LINKS, input=json.dumps(said))
        return answers

    for upset in ("true", RESTART):
        for node in NODES:
            wire.run(node, upset)
        wire.wait_serving()
        before = standing(wire)
        answers = repeat()
        for node, its in zip(NODES, (answers[: len(answers) // 2], answers[len(answers) // 2 :]), strict=True):
            for answer in its:
                body = answer.partition("\r\n\r\n")[2]
                assert node not in body, "not even whom he speaks with"
                assert '"intent"' not in body and '"says": "start' not in body and "takes it" not in body
        assert standing(wire) == before


def resident(pair: Pair, node: str) -> tuple[int, float]:
    """KiB and CPU seconds of the daemon."""
    pid = pair.run(node, "systemctl show -p MainPID --value sparkd").strip()
    kib = int(pair.run(node, f"awk '/VmRSS/ {{print $2}}' /proc/{pid}/status"))
    ticks = sum(map(int, pair.run(node, f"cat /proc/{pid}/stat").rpartition(")")[2].split()[11:13]))
    return kib, ticks / 100


@pytest.mark.parametrize("crowd", [1, 16], ids=["from one address", "from sixteen"])
def test_a_flood_from_the_wire_disturbs_nobody(wire: Pair, crowd: int) -> None:
    seconds = 20
    stranger(wire, "flood", "5", LINKS[0], *STRANGERS)  # what grows once has grown
    before, (kib, cpu_s) = standing(wire), resident(wire, "spark1")
    made: list[int] = []
    sources = (STRANGERS * 16)[:16] if crowd == 16 else STRANGERS[:1] * 16
    flooding = threading.Thread(target=lambda: made.append(stranger(wire, "flood", str(seconds), LINKS[0], *sources)))
    flooding.start()
    heard = []
    while flooding.is_alive():
        heard.append(wire.status("spark1")["nodes"][1]["heard_s_ago"])  # status answers, and the worker is heard
    flooding.join()
    after_kib, after_cpu_s = resident(wire, "spark1")
    print(f"{made[0]} connections in {seconds} s from {crowd}: CPU {after_cpu_s - cpu_s:.1f} s, +{after_kib - kib} KiB,"
          f" worker heard {max(heard):.1f} s ago at worst, {len(heard)} statuses")  # fmt: skip
    assert standing(wire) == before, "the same daemon, the same engine"
    assert max(heard) < 6
    assert after_kib - kib < 8 * 1024
    assert after_cpu_s - cpu_s < 0.6 * seconds
    assert wire.chat()["content"]


def test_a_flood_from_a_user_of_the_other_node_leaves_the_exchange(wire: Pair) -> None:
    """From the very address of the peer, by somebody who is not root there."""
    wire.lab.node("spark2").write("/tmp/stranger.py", STRANGER.read_text())
    before = standing(wire)
    made: list[str] = []
    command = "runuser -u nobody -- python3 /tmp/stranger.py flood 15 10.0.0.1 10.0.0.2 10.0.0.2 10.0.0.2 10.0.0.2"
    flooding = threading.Thread(target=lambda: made.append(wire.run("spark2", command)))
    flooding.start()
    heard = []
    while flooding.is_alive():
        heard.append(wire.status("spark1")["nodes"][1]["heard_s_ago"])
    flooding.join()
    print(f"{made[0].strip()} connections; worker heard {max(heard):.1f} s ago at worst")
    assert max(heard) < 6 and standing(wire) == before


# --- the key -----------------------------------------------------------------------------------------


def copy_key(pair: Pair) -> None:
    text = pair.run("spark1", f"cat {KEY}")
    pair.lab.node("spark2").write(KEY, text, mode=0o600)


def heard_with_file(pair: Pair, node: str) -> dict[str, Any]:
    """`sparkd key status` once the other node was heard."""

    def look() -> dict[str, Any] | None:
        done = pair.lab.node(node).run("sparkd key status --json", check=False)
        told: dict[str, Any] = json.loads(done.stdout)
        return told if told["daemon"] and all(told["daemon"]["peers"].values()) else None

    return wait_for(f"key status of {node} with its peer", look, max_s=30)


@pytest.mark.parametrize("order", [NODES, NODES[::-1]], ids=["head first", "worker first"])
def test_the_key_is_rotated_under_load(serving: Pair, order: tuple[str, str]) -> None:
    """No failed request, the same processes, and the nodes talk between all the steps, in either order."""
    before = standing(serving)
    engines, epoch = before[2], before[0]
    old = serving.run("spark1", f"cat {KEY}").strip()
    with serving.traffic(max_s=240) as traffic:
        serving.run("spark1", "sparkd key rotate")
        refused = serving.lab.node("spark1").run("sparkd key drop", check=False)
        assert refused.returncode == 2 and "does not have" in refused.stderr
        copy_key(serving)
        for node in order:
            serving.run(node, RESTART)
            assert "rejected" not in json.dumps(serving.status(node))
            for each in NODES:
                heard_with_file(serving, each)
        for node in NODES:
            wait_for("both keys from the peer", lambda node=node: len(  # type: ignore[misc]
                next(iter(heard_with_file(serving, node)["daemon"]["peers"].values()))["keys"]) == 2, max_s=30)  # fmt: skip
        for node in order:
            serving.run(node, "sparkd key drop")
            serving.run(node, RESTART)
            for each in NODES:
                heard_with_file(serving, each)
        serving.wait_serving()
    assert [serving.engine(node) for node in NODES] == engines and serving.epoch() == epoch
    assert not traffic.failed and traffic.answered > 5, traffic
    new = [serving.run(node, f"cat {KEY}").strip() for node in NODES]
    assert new[0] == new[1] != old
    assert "peer.rejected" not in [e["id"] for e in serving.events("spark2")[-50:]]
    for node in NODES:
        assert serving.lab.node(node).run("sparkd key status").returncode == 0
    told = "".join(serving.run(node, "journalctl --no-pager; cat /var/lib/sparkd/*.json*") for node in NODES)
    assert old not in told and new[0] not in told


def test_another_key_is_said_in_words_and_mended_by_the_right_one(serving: Pair) -> None:
    right = serving.run("spark1", f"cat {KEY}")
    epoch = serving.epoch()
    try:
        serving.run("spark2", f"rm {KEY}; sparkd init; {RESTART}")
        wait_for("rejection", lambda: "peer.rejected" in serving.event_ids("spark2")[-20:], max_s=60)
        said = [event["says"] for event in serving.events("spark2") if event["id"] == "peer.rejected"][-1]
        assert "spark1 does not have this node's cluster key" in said
        status = serving.lab.node("spark2").run("sparkd key status", check=False)
        assert status.returncode == 3 and "spark1 was not heard with this key" in status.stdout
    finally:
        serving.lab.node("spark2").write(KEY, right, mode=0o600)
        serving.run("spark2", RESTART)
    serving.wait_serving()
    assert serving.epoch() >= epoch


# --- users of the node -------------------------------------------------------------------------------

GUEST, LOOKER = "sparkd-guest", "sparkd-looker"


@pytest.fixture
def users(serving: Pair) -> Pair:
    """An ordinary user, and one of the group that may look."""
    for name, more in ((GUEST, ""), (LOOKER, "-G sparkd")):
        serving.run("spark1", f"id {name} >/dev/null 2>&1 || useradd --create-home {more} {name}")
    return serving


def as_user(pair: Pair, user: str, command: str) -> subprocess.CompletedProcess[str]:
    return pair.lab.node("spark1").run(["runuser", "-u", user, "--", "bash", "-c", command], timeout_s=60, check=False)


CHANGING = ("start", "stop", "restart --profile latency", "clean", "key rotate", "key drop --force", "init")
LOOKING = ("status", "events -n 3", "logs -n 3")


RAW = """
import json, socket
for verb in "status watch events keys diagnose start stop restart clean throughput shutdown".split():
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30)
        try:
            one.connect("/run/sparkd/sparkd.sock")
            one.sendall(json.dumps({"verb": verb, "last": 1, "dry_run": False, "uid": 0}).encode() + b"\\n")
            with one.makefile() as lines:
                print(json.dumps([verb, json.loads(lines.readline())]))
        except OSError as error:
            print(type(error).__name__)
"""


def test_a_member_of_the_group_looks_and_changes_nothing(users: Pair) -> None:
    before = standing(users)
    for words in LOOKING:
        done = as_user(users, LOOKER, f"sparkd {words}")
        assert done.returncode == 0 and done.stdout, (words, done.stderr)
    asked = as_user(users, LOOKER, "sparkd key status; sparkd doctor")
    assert "Traceback" not in asked.stderr and "root's alone" in asked.stderr
    for words in CHANGING:
        done = as_user(users, LOOKER, f"sparkd {words}")
        assert done.returncode not in (0, 1) and "Traceback" not in done.stderr, (words, done.stdout)
    stop = as_user(users, LOOKER, "sparkd stop")
    assert "stop is for root" in stop.stderr and "sudo sparkd stop" in stop.stderr
    users.lab.node("spark1").write("/tmp/raw.py", RAW)
    told = [json.loads(line) for line in as_user(users, LOOKER, "python3 /tmp/raw.py").stdout.splitlines()]
    assert sorted(verb for verb, answer in told if "error" not in answer) == [
        "diagnose",
        "events",
        "keys",
        "status",
        "watch",
    ]
    for verb, answer in told:
        if "error" in answer:
            assert "is for root" in answer["error"]["message"] or verb == "shutdown"
    refused = as_user(users, GUEST, "python3 /tmp/raw.py").stdout.splitlines()
    assert refused == ["PermissionError"] * len(told)
    assert standing(users) == before


def test_an_ordinary_user_does_nothing_and_is_told_what_to_do(users: Pair) -> None:
    before = standing(users)
    for words in (*LOOKING[:2], *CHANGING[:4]):
        done = as_user(users, GUEST, f"sparkd {words}")
        assert done.returncode == 3 and "usermod -aG sparkd" in done.stderr, (words, done.stderr)
    for words in ("doctor", "drift", "report", "render", "config check", "logs", "key status", "doctor --fix --yes"):
        done = as_user(users, GUEST, f"cd ~ && sparkd {words}")
        assert "Traceback" not in done.stdout + done.stderr, words
    assert standing(users) == before


TRIES = """\
touch /run/sparkd/x; rm -f /run/sparkd/sparkd.sock; echo > /run/sparkd/engine.env; ln -sf /etc/passwd /run/sparkd/engine.env
touch /etc/sparkd/x; echo x >> /etc/sparkd/sparkd.yaml; mv /etc/sparkd/cluster.key /tmp; cat /etc/sparkd/cluster.key
touch /opt/sparkd/x; echo x >> /opt/sparkd/libexec/sparkd-engine; touch /etc/systemd/system/sparkd.service
ls /var/lib/sparkd; touch /var/lib/sparkd/x; cat /var/lib/sparkd/state.json
touch /var/log/sparkd/x; touch /var/log/sparkd/engine/x; rm -rf /var/log/sparkd/engine
cat /run/sparkd/engine.env; cat /run/credentials/sparkd.service/cluster.key; ls /run/credentials/sparkd.service
systemctl --no-ask-password stop sparkd; systemctl --no-ask-password start sparkd-engine; systemctl --no-ask-password kill sparkd
busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StopUnit ss sparkd.service replace
kill -9 $(pgrep -f 'sparkd run') $(pgrep VLLM) ; docker ps; docker stop vllm_ds4
"""


@pytest.mark.parametrize("user", [GUEST, LOOKER])
def test_files_signals_and_units_are_out_of_reach(users: Pair, user: str) -> None:
    before = standing(users)
    key, listing = (
        users.run("spark1", f"cat {KEY}").strip(),
        "ls -laR --time-style=+ /etc/sparkd /opt/sparkd/bin /opt/sparkd/libexec",
    )
    files = users.run("spark1", listing)
    for line in TRIES.splitlines():
        for one in line.split("; "):
            done = as_user(users, user, one)
            assert done.returncode != 0 or one.startswith(("rm -f", "ls /var/log")), (one, done.stdout)
            assert key not in done.stdout
    assert users.run("spark1", listing) == files
    assert standing(users) == before


FORGED = """
import ctypes, os, socket, sys, time
ctypes.CDLL(None).prctl(15, b"VLLM::Worker_TP", 0, 0, 0)
time.sleep(600)
"""


def test_a_users_process_that_says_it_is_the_engine_is_nobodys(users: Pair) -> None:
    """Not adopted when the real one is gone, not ended as stale, not taken for a reason to wait."""
    environment = users.run("spark1", "cat /run/sparkd/engine.env")
    launch = re.search(r"SPARKD_LAUNCH_ID='?([0-9a-f]{8}-\d+)", environment)
    assert launch, environment
    epoch = users.epoch()
    users.lab.node("spark1").write("/tmp/forged.py", FORGED)
    start = "systemd-run --quiet --collect --uid={user} --setenv=SPARKD_LAUNCH_ID={id} --unit={unit} {argv}"
    serve = "bash -c 'exec -a vllm python3 /tmp/forged.py serve model'"
    for unit, argv, id in (
        ("forged-rank", "python3 /tmp/forged.py", launch[1]),
        ("forged-top", serve, launch[1]),
        ("forged-stale", "python3 /tmp/forged.py", re.sub(r"-\d+$", "-0", launch[1])),
    ):
        users.run("spark1", start.format(user=GUEST, id=id, unit=unit, argv=argv))
    alive = "systemctl is-active forged-rank forged-top forged-stale"
    shm = "/dev/shm/psm_0badcafe"
    as_user(users, GUEST, f"head -c 1000 /dev/zero > {shm}; touch -d '1 day ago' {shm}")
    try:
        users.run("spark1", RESTART)
        users.wait_serving()
        assert users.epoch() == epoch, "the real one was adopted"
        users.run("spark1", f"{RESTART} & kill -9 $(pgrep -f 'vllm.*serve' -u root | head -1); wait")
        users.wait_serving(newer_than=epoch)
        users.run("spark1", "sparkd clean")
        assert users.run("spark1", alive).split() == ["active"] * 3
        assert users.run("spark1", f"stat -c %U {shm}").strip() == GUEST
    finally:
        users.run(
            "spark1", f"systemctl stop forged-rank forged-top forged-stale; rm -f {shm} /tmp/forged.py", check=False
        )


# --- secrets and the unit ----------------------------------------------------------------------------


def test_the_key_is_in_its_file_and_nowhere_else(serving: Pair) -> None:
    key = serving.run("spark1", f"cat {KEY}").strip()
    for command in (
        "journalctl --no-pager",
        "systemctl show sparkd sparkd-engine sparkd-ready",
        "cat /run/sparkd/engine.env",
        "docker inspect vllm_ds4; docker exec vllm_ds4 cat /workspace/*.sh",
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'",
        "cat /var/lib/sparkd/* /var/log/sparkd/engine/*",
        "sparkd status --json; sparkd events -n 500 --json; sparkd key status --json; sparkd doctor --json",
    ):
        assert key not in serving.run("spark1", command, check=False), command


def test_each_capability_is_needed(serving: Pair) -> None:
    """What the daemon does with it, in a unit with the same limits: with all of them, and without that one."""
    serving.run(
        "spark1", "install -d -o nobody -m 0700 /home/theirs; install -o nobody -m 0600 /dev/null /home/theirs/weights"
    )
    serving.run("spark1", "systemd-run --quiet --collect --uid=nobody --unit=theirs sleep 600")
    pid = serving.run("spark1", "systemctl show -p MainPID --value theirs").strip()
    uses = {
        "CAP_KILL": f"import os, signal; signal.pidfd_send_signal(os.pidfd_open({pid}), 0)",
        "CAP_SYS_PTRACE": f"open('/proc/{pid}/environ').read(); open('/proc/{pid}/maps').read()",
        "CAP_DAC_READ_SEARCH": "open('/home/theirs/weights').read()",
        "CAP_NET_RAW": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)",
    }
    held = serving.run("spark1", "systemctl show -p CapabilityBoundingSet --value sparkd").upper().split()
    try:
        assert set(held) == set(uses)
        for capability, code in uses.items():
            for given, works in ((set(held), True), (set(held) - {capability}, False)):
                command = ["systemd-run", "--quiet", "--collect", "--pipe", "--wait", "-p", "NoNewPrivileges=yes",
                           "-p", f"CapabilityBoundingSet={' '.join(sorted(given))}", "python3", "-c", code]  # fmt: skip
                done = serving.lab.node("spark1").run(command, check=False)
                assert (done.returncode == 0) == works, (capability, given, done.stderr)
    finally:
        serving.run("spark1", "systemctl stop theirs; rm -rf /home/theirs", check=False)


def diagnosis(pair: Pair) -> dict[str, Any] | None:
    """What the daemon on spark1 says that the doctor of spark2 finds: run by that daemon, under its limits."""
    answer = ask(pair, "diagnose")
    return answer if "diagnosis" in answer else None


def measured(pair: Pair) -> dict[str, Any] | None:
    answer = ask(pair, "throughput")
    return answer if "gbps" in answer else None


def ask(pair: Pair, verb: str) -> dict[str, Any]:
    code = f"import json, sparkd.cli.daemon as d; print(json.dumps(d.ask({verb!r}, timeout_s=20)))"
    done = pair.lab.node("spark1").run(["/opt/sparkd/bin/python", "-c", code], check=False)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def test_the_whole_life_under_the_units_limits(serving: Pair) -> None:
    """Doctor, repairs, a measurement, a relaunch: a filter that is too tight shows as a word in the journal or a failure."""
    since = serving.run("spark1", "date '+%F %T'").strip()
    found = wait_for("diagnosis of both nodes", lambda: diagnosis(serving), max_s=120)
    assert not re.search(r"ermission denied|not permitted", json.dumps(found))
    throughput = wait_for("throughput", lambda: measured(serving), max_s=120)
    assert float(throughput["gbps"]) > 0
    serving.run("spark1", "sparkd doctor --fix --yes", check=False)
    epoch = serving.epoch()
    serving.kill("spark2", "rank")
    serving.wait_serving(newer_than=epoch)
    for node in NODES:
        said = serving.run(node, f"journalctl --no-pager --since '{since}' -u sparkd -u sparkd-engine")
        assert not re.search(r"Operation not permitted|Permission denied|Traceback|SIGSYS", said), said
    assert "sparkd.service" in serving.run("spark1", "systemd-analyze security --no-pager sparkd.service | tail -1")
