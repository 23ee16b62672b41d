"""Samples of this node while an engine lives, synced to a ring on disk, and what they tell after a boot that ended badly.

No wake-up is added: the loop's own turns, at least one a second, say when a sample is due. Taking and syncing it happens in
a thread; a disk or a driver that hangs costs samples, never a turn.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from sparkd.agent.loop import Agent
from sparkd.control import wedge
from sparkd.control.state import NodeState
from sparkd.doctor import boot_end, last_boot
from sparkd.host import gpu, samples
from sparkd.host.clock import monotonic
from sparkd.host.paths import Paths
from sparkd.model.errors import SparkdError

log = logging.getLogger(__name__)

EVERY_S = 10.0
GPU_EVERY_S = 30.0
GPU_MAX_S = 4.0
GPU_AGAIN_S = 600.0  # after it failed or hung: a driver in trouble is not asked often
LAST_MAX_S = 2.0  # for the last sample, when the daemon is told to stop
LOOK_BACK_S = 5.0  # after the start: a boot has better things to do first

Requests = tuple[int, int, int]  # running, waiting, generated tokens


class Sampler:
    """Follows the state; `requests` gives what the engine last said of its work, where this node hears it."""

    def __init__(self, agent: Agent, paths: Paths, interface: str, requests: Callable[[], Requests | None]) -> None:
        self._agent, self._interface, self._requests = agent, interface, requests
        self._ring = samples.Ring(paths.state / samples.FILE)
        self._lane = ThreadPoolExecutor(1, "sample")
        self._writing: Future[None] | None = None
        self._due = 0.0
        self._gpu: samples.Gpu | None = None
        self._gpu_at = 0.0
        self._gpu_failures = 0  # in a row
        self._gpu_due = 0.0 if shutil.which(gpu.SMI) else float("inf")
        self._complained = False
        self._submit("started")
        agent.on_turn.append(self.follow)

    def follow(self, before: NodeState, after: NodeState) -> None:
        if after.phase.has_engine:
            if monotonic() >= self._due or after.phase is not before.phase:
                self._due = monotonic() + EVERY_S
                if self._writing is None or self._writing.done():
                    self._submit("")
        elif before.phase.has_engine:
            self._due = 0.0
            self._submit("ended")

    def gpu(self) -> tuple[samples.Gpu, float] | None:
        """What nvidia-smi last said of the GPU, and when; None where it did not answer. Never asks."""
        heard, at = self._gpu, self._gpu_at
        return None if heard is None else (heard, at)

    async def close(self, *, within_s: float = LAST_MAX_S) -> None:
        """The daemon was told to stop: the ring says so, in case nothing else is left to tell a shutdown from a crash."""
        self._submit("stopped")
        assert self._writing is not None
        last = asyncio.wrap_future(self._writing)
        done, _ = await asyncio.wait({last}, timeout=within_s)
        if not done:  # not cancelled: it may wait for a slow nvidia-smi only
            log.warning("the last sample could not be written within %g s", within_s)
        self._lane.shutdown(wait=False)

    def _submit(self, mark: str) -> None:
        state, requests = self._agent.state, self._requests()
        self._writing = self._lane.submit(self._write, state.phase.value, state.epoch, mark, requests)

    def _write(self, phase: str, epoch: int, mark: str, requests: Requests | None) -> None:
        """In the lane. The GPU is asked after the sample is safe: its answer goes into the next ones."""
        try:
            taken = samples.take(
                self._agent.me.boot_id, phase, epoch,
                interface=self._interface, gpu=self._gpu, mark=mark, requests=requests,
            )  # fmt: skip
            self._ring.append(taken)
            self._complained = False
        except (OSError, ValueError) as error:
            if not self._complained:
                log.warning("no sample could be kept: %s", error)
            self._complained = True
        if not mark and monotonic() >= self._gpu_due:
            asked_at = monotonic()
            heard, again_s = _ask_gpu()
            self._gpu = None  # never an old answer with a new time
            self._gpu_at, self._gpu = asked_at, heard
            self._gpu_failures = 0 if heard is not None else self._gpu_failures + 1
            if self._gpu_failures == 1:  # a loaded machine may be slow once: without its GPU a verdict on a hang takes minutes
                again_s = GPU_EVERY_S
            if self._gpu_failures <= 1:  # with short limits a verdict on a hang would be due before the GPU was heard again
                again_s = min(again_s, self._agent.me.limits.hang_max_s * wedge.ASKED_SHARE)
            self._gpu_due = monotonic() + again_s


def _ask_gpu() -> tuple[samples.Gpu | None, float]:
    """What nvidia-smi says of the first GPU, and after how long it may be asked again."""
    try:
        found = gpu.ask_gpus(timeout_s=GPU_MAX_S)
    except SparkdError:
        return None, GPU_AGAIN_S
    if not found:
        return None, GPU_AGAIN_S
    one = found[0]
    return samples.Gpu(one.temperature_c, one.power_w, one.utilisation, one.clock_mhz), GPU_EVERY_S


async def look_back(agent: Agent, paths: Paths, *, after_s: float = LOOK_BACK_S) -> None:
    """Once in each boot: how the boot before it ended, into the events and kept for the doctor."""
    here = agent.me.boot_id
    await asyncio.sleep(after_s)

    def look() -> boot_end.LastBoot | None:
        if last_boot.load(paths, here) is not None:
            return None
        left = last_boot.gather(paths.state / samples.FILE, here)
        verdict = boot_end.how_it_ended(left).model_copy(update={"seen_by": here})
        last_boot.store(paths, verdict)
        return verdict

    try:
        verdict = await asyncio.to_thread(look)
    except (SparkdError, OSError) as error:
        agent.note("unit.last-boot", f"how the last boot ended could not be looked up: {error}")
        return
    if verdict is not None and verdict.ending is not boot_end.Ending.UNKNOWN:
        agent.note("unit.last-boot", verdict.says, alarm=verdict.unclean)
