"""The file that the engine's unit reads: which launch was the last one of this boot. It lies in /run, so no clock is asked."""

from __future__ import annotations

import shlex
from pathlib import Path

from sparkd.host.files import text

FILE_MAX_BYTES = 4096  # four short lines; of a megabyte shlex would make a word for minutes


def last_launch(launch_file: Path) -> str | None:
    """Its id; None where there was none in this boot, or where it may not be known."""
    try:
        lines = shlex.split(text(launch_file, FILE_MAX_BYTES))
    except ValueError:  # not as sparkd writes it
        return None
    return dict(line.partition("=")[::2] for line in lines).get("SPARKD_LAUNCH_ID")
