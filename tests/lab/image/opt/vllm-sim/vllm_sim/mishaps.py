"""How a rank fails to start, by faults that are switched on and by what the image itself is like."""

import os
import signal
from pathlib import Path

from vllm_sim import faults, processes, traces
from vllm_sim.config import DEVICE_GIB, EngineConfig
from vllm_sim.log import Frame

CUDA_ERROR = (
    "torch.AcceleratorError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be "
    "asynchronously reported at some other API call, so the stacktrace below might be incorrect."
)


class StartFailure(Exception):
    """This rank cannot start: the frames and the last line of its traceback."""

    def __init__(self, frames: tuple[Frame, ...], text: str) -> None:
        super().__init__(text)
        self.frames, self.text = frames, text


def short_of_memory(config: EngineConfig) -> str:
    share = config.gpu_memory_utilization
    return (
        f"ValueError: Free memory on device cuda:0 (4.75/{DEVICE_GIB} GiB) on startup is less than desired GPU memory "
        f"utilization ({share:g}, {share * DEVICE_GIB:.1f} GiB). Decrease GPU memory utilization or reduce GPU memory used "
        "by other processes."
    )


def while_loading(config: EngineConfig) -> None:
    """What goes wrong while weights load. Raises StartFailure, hangs, or ends the process as the OOM killer does."""
    if faults.on("crash-during-load"):
        raise StartFailure(traces.LOAD_MODEL, CUDA_ERROR)
    if faults.on("killed-during-load"):
        processes.kill(os.getpid(), signal.SIGKILL)
    faults.hang_while("hang-during-load")
    count = mxfp4_patch_count() if config.model_type.startswith("deepseek") else None
    if count is not None and count > 2:
        text = "UnboundLocalError: local variable 'w13' referenced before assignment"
        raise StartFailure(traces.MXFP4, text)
    if count is not None and count < 2:
        faults.hang_for_ever()  # the real one takes the GPU's firmware with it


def mxfp4_patch_count() -> int | None:
    """Lines with empty_cache in the image's mxfp4.py; None where there is no such file, or the fix came from upstream."""
    packages = Path(__file__).resolve().parents[3] / "usr/local/lib/python3.12/dist-packages/vllm"
    upstream = packages / "utils/mem_utils.py"
    if upstream.is_file() and "def release_device_memory_under_pressure" in upstream.read_text():
        return None
    try:
        lines = (packages / "model_executor/layers/quantization/mxfp4.py").read_text().splitlines()
    except OSError:
        return None
    return sum("empty_cache" in line for line in lines)
