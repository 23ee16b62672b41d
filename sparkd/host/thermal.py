"""The machine's thermal zones: how warm, and at which temperature the board cuts its power."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparkd.host.files import number, text

ZONES = Path("/sys/class/thermal")


@dataclass(frozen=True)
class Zone:
    """Degrees Celsius. `critical_c` is None where the zone names no such trip point."""

    name: str  # "thermal_zone0"
    kind: str  # "acpitz"
    now_c: float
    critical_c: float | None


def zones(root: Path = ZONES) -> list[Zone]:
    """Every zone that tells a temperature, in the order of their numbers."""
    found = []
    for path in sorted(root.glob("thermal_zone*"), key=lambda path: (len(path.name), path.name)):
        now = _milli(path / "temp")
        if now is None:
            continue
        critical = next(
            (_milli(path / trip.name.replace("_type", "_temp")) for trip in sorted(path.glob("trip_point_*_type"))
             if text(trip) == "critical"),
            None,
        )  # fmt: skip
        found.append(Zone(path.name, text(path / "type"), now, critical if critical and critical > 0 else None))
    return found


def _milli(path: Path) -> float | None:
    """A zone whose sensor does not answer gives an error."""
    value = number(path)
    return value / 1000 if value is not None else None
