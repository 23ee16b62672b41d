"""`sparkd explain`: every id that a person can meet is explained."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_daemon import Home

import sparkd
from sparkd.cli.explain import did_you_mean, everything, lines, look_up
from sparkd.control.moves import TRANSITIONS
from sparkd.doctor.catalogue import records
from sparkd.doctor.declared import every_check

PACKAGE = Path(sparkd.__file__).parent
TELLING = {"bad", "good", "warning", "unknown", "Note", "note", "_ending"}  # functions whose first argument is an id
LOGGERS = {"log", "logging"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def ids(path: Path) -> Iterator[str]:
    """Every id that a file gives to a finding or an event; of one that is made, each part that can be seen."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func
        name = (
            function.id
            if isinstance(function, ast.Name)
            else function.attr
            if isinstance(function, ast.Attribute)
            else ""
        )
        of_logger = (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id in LOGGERS
        )
        if name in TELLING and not of_logger:
            yield from _strings(node.args[0])


def _strings(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _strings(body)
            yield from _strings(orelse)


def test_every_id_in_the_source_is_explained() -> None:
    known = everything()
    found = {id: path.name for room in ("control", "agent", "engine", "host", "peer", "doctor")
             for path in sorted((PACKAGE / room).rglob("*.py")) for id in ids(path)}  # fmt: skip
    assert len(found) > 60 and {"engine.hung", "peer.left-epoch", "state.corrupt", "phase"} <= set(found)
    unknown = {id: where for id, where in found.items() if look_up(id, known) is None}
    assert not unknown


def test_ids_that_are_made_are_explained() -> None:
    known = everything()
    made = [f"phase.{phase}" for phase in TRANSITIONS]
    made += [f"operator.{verb}" for verb in ("start", "stop", "restart")]
    made += [f"peer.{what}-differs" for what in ("plan", "image", "weights", "driver")]
    made += [f"image.mxfp4-empty-cache-{state}" for state in ("doubled", "partial", "unpatched", "patched", "superseded",
             "file-missing", "unreadable")]  # fmt: skip
    made += [
        "engine.exit-126",
        "engine.exit-127",
        "engine.no-launch-id",
        "engine.arguments-rejected",
        "unit.execstart-path",
    ]
    assert not [id for id in made if look_up(id, known) is None]


def test_what_is_explained_for_the_daemon_can_be_met() -> None:
    """A record that a check of the same name hides, or whose id is said nowhere, is out of date."""
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    daemons = [id for id in records() if "." in id and not id.startswith(("peer.", "operator."))]
    assert len(daemons) > 25 and not [id for id in daemons if f'"{id}"' not in source]
    assert not {each.id for each in every_check()} & set(records())


def test_every_check_and_record_can_be_printed() -> None:
    for id, found in everything().items():
        told = lines(found, verbose=True)
        assert told[0].startswith(id) and len(told) > 3, id


def test_a_check_is_explained(home: Home) -> None:
    done, as_json = home.sparkd("explain", "link.mtu"), home.sparkd("explain", "LINK-MTU", "--json")
    assert done.returncode == 0 and done.stdout.splitlines()[0].startswith("link.mtu (check, layer link")
    assert "question:" in done.stdout and "if bad:" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100
    assert json.loads(as_json.stdout)["id"] == "link.mtu"


def test_a_record_is_explained_and_its_patterns_with_verbose(home: Home) -> None:
    short, long = home.sparkd("explain", "driver-xid-79-off-bus"), home.sparkd("explain", "driver.xid.79.off.bus", "-v")
    assert short.returncode == long.returncode == 0
    assert "cause:" in short.stdout and "pattern:" not in short.stdout and "pattern:" in long.stdout
    record = json.loads(home.sparkd("explain", "driver-xid-79-off-bus", "--json").stdout)
    assert record["kind"] == "incident" and record["incident_kind"] == "root" and record["signatures"]


def test_a_typo_is_answered_with_what_is_near(home: Home) -> None:
    done = home.sparkd("explain", "engine.hang")
    assert done.returncode == 64 and not done.stdout
    assert "did you mean" in done.stderr and "engine.hung" in done.stderr
    assert did_you_mean("zzzzzzzzzz", ["link.mtu"]) == ""
    assert did_you_mean("link.mtv", ["link.mtu", "shm.size"]) == "did you mean link.mtu? "


def test_without_an_id_all_are_listed(home: Home) -> None:
    done = home.sparkd("explain")
    rows = json.loads(home.sparkd("explain", "--json").stdout)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(rows)
    assert {each.id for each in every_check()} <= {row["id"] for row in rows}
