"""What can be turned from outside: by environment, or by small files in the lab's directory while it runs."""

import os
import time
from pathlib import Path

# Seconds that each phase takes on a GB10 with the 149 GB model of the published deployment (46 shards), compile cache warm.
# `weights` is per shard. The rest (imports, engine and worker start) was measured on real vLLM 0.32.
PHASE_S = {
    "imports": 13.0,
    "engine_imports": 12.0,
    "worker_imports": 10.0,
    "model_init": 4.0,
    "weights": 164.0 / 46,
    "draft": 24.0,
    "compile_warm": 16.0,
    "compile_cold": 100.0,
    "profile": 20.0,
    "autotune": 18.0,
    "graphs": 180.0,
    "api": 1.0,
    "first_request": 6.0,
    "failed_core": 1.7,  # between a worker's failure to start and its parents' own errors
}

# A whole warm start of the 46-shard model takes 8 s unless somebody asks for something else.
DEFAULT_SCALE = 8.0 / 462.0


def lab_directory() -> Path:
    return Path(os.environ.get("VLLM_SIM_LAB", "/lab"))


def knob(name: str, default: float) -> float:
    """The number in the environment's VLLM_SIM_<NAME>, else in the file <lab>/<name>, else `default`."""
    text = os.environ.get(f"VLLM_SIM_{name.upper()}")
    if text is None:
        try:
            text = (lab_directory() / name).read_text()
        except OSError:
            return default
    try:
        return float(text)
    except ValueError:
        return default


def phase_s(phase: str) -> float:
    """Seconds that `phase` takes here: the real duration times the scale (knob `scale`)."""
    return PHASE_S[phase] * knob("scale", DEFAULT_SCALE)


def pause(phase: str) -> None:
    time.sleep(phase_s(phase))


def stop_pause(seconds: float) -> None:
    """Wait as the real one does while it stops. Not scaled by default: a supervisor has to live with these times."""
    time.sleep(seconds * knob("stop_scale", 1.0))


def prefill_tokens_per_s() -> float:
    """Prompt tokens of all requests together (knob `prefill_tokens_per_s`; a GB10 needs 238 s for 190K: 800)."""
    return max(1.0, knob("prefill_tokens_per_s", 20_000.0))


def tokens_per_s() -> float:
    """Decode speed of one request (knob `tokens_per_s`)."""
    return max(0.1, knob("tokens_per_s", 200.0))
