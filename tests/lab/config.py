"""The lab's configuration: the shipped one, with as little replaced as the lab needs. Nothing else may differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from .container_image import REFERENCE
from .host import LabError
from .places import CHECKOUT, lan_address

# Short limits, so that a test sees in seconds what takes minutes on real machines.
LIMITS = {
    "link_loss_max_s": 8,
    "canary_interval_s": 10,
    "canary_max_s": 8,
    "hang_max_s": 15,
    "hang_blind_max_s": 45,
    "hold_s": 1,
    "backoff_max_s": 5,
    "start_max_s": 60,
    "load_max_s": 60,
    "prove_max_s": 30,
}

RECIPE = "recipes/deepseek-v4-flash.yaml"

# (file, what is replaced, with what). Each pattern has to be found, or the shipped files have changed under us.
REPLACEMENTS = (
    ("sparkd.yaml", r"\b192\.168\.1\.11\b", lan_address("spark1")),
    ("sparkd.yaml", r"\b192\.168\.1\.12\b", lan_address("spark2")),
    (RECIPE, r"^(\s*image: ).*", rf"\g<1>{REFERENCE}"),
    (RECIPE, r"^(\s*- )~/\.cache/flashinfer:.*", r"\g<0>\n\g<1>/var/lib/sparkd-lab:/lab"),
    # Two nodes share this machine's memory, and nobody puts 90 % of it to use.
    (RECIPE, r"^(\s*gpu-memory-utilization: )[\d.]+", r"\g<1>0.10"),
)


def files(shipped: Path = CHECKOUT / "config", limits: Mapping[str, float] = LIMITS) -> dict[str, str]:
    """The lab's configuration files: path below /etc/sparkd, and text. Raises LabError."""
    texts = {str(file.relative_to(shipped)): file.read_text() for file in sorted(shipped.rglob("*.yaml"))}
    for name, pattern, replacement in REPLACEMENTS:
        if name not in texts:
            raise LabError(f"{shipped / name}: no such file; the lab derives its configuration from it")
        texts[name], count = re.subn(pattern, replacement, texts[name], flags=re.MULTILINE)
        if not count:
            raise LabError(f"{shipped / name}: nothing here looks like {pattern}; adapt tests/lab/config.py")
    texts["sparkd.yaml"] += "\nlimits:\n" + "".join(f"  {name}: {value}\n" for name, value in limits.items())
    return texts
