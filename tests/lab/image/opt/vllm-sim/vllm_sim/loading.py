"""What a rank says and does between rendezvous and ready: weights, draft model, compilation, profiling, graph capture."""

import os
import time
from pathlib import Path

from vllm_sim import faults, knobs, log, mishaps
from vllm_sim.config import DEVICE_GIB, KV_GIB_PER_TOKEN, EngineConfig

SLOW_LOAD_FACTOR = 10
GRAPHS = (("mixed prefill-decode, PIECEWISE", 8), ("decode, FULL", 4))


def load_weights(config: EngineConfig, bars: bool) -> None:
    """`bars`: rank 0 alone shows progress bars. Raises StartFailure."""
    started = time.monotonic()
    log.info("gpu_model_runner.py:5177", f"Starting to load model {config.model}...")
    knobs.pause("model_init")
    mishaps.while_loading(config)
    log.info(
        "weight_utils.py:1108",
        f"Filesystem type for checkpoints: EXT4. Checkpoint size: {config.checkpoint_gib:.2f} GiB. "
        "Available RAM: 113.58 GiB.",
    )
    took = _shards(config.shards, knobs.phase_s("weights") * config.shards, bars)
    log.info("default_loader.py:501", f"Loading weights took {took:.2f} seconds")
    if config.speculative:
        log.info("gpu_model_runner.py:5201", "Loading drafter model...")
        took = _shards(config.shards, knobs.phase_s("draft"), bars)
        log.info("default_loader.py:501", f"Loading weights took {took:.2f} seconds")
    took = time.monotonic() - started
    log.info("gpu_model_runner.py:5290", f"Model loading took 76.03 GiB memory and {took:.6f} seconds")


def _shards(count: int, seconds: float, bars: bool) -> float:
    """Reads `count` shards in `seconds`, and gives the seconds that it took."""
    started = time.monotonic()
    bar = log.Bar("Loading safetensors checkpoint shards", count, " Completed |") if bars else None
    for done in range(1, count + 1):
        time.sleep(seconds / count * (SLOW_LOAD_FACTOR if faults.on("slow-load") else 1))
        if bar:
            bar.show(done)
    if bar:
        bar.close()
        log.write(2, "\n")
    return time.monotonic() - started


def compile_and_profile(config: EngineConfig, rank: int) -> None:
    if config.enforce_eager:
        knobs.pause("profile")
        return
    started = time.monotonic()
    cache = Path(os.environ.get("VLLM_CACHE_ROOT", "~/.cache/vllm")).expanduser() / "torch_compile_cache/5a1d0c0de5"
    marker = cache / f"rank_{rank}_0" / "backbone"
    log.info("backends.py:1069", f"Using cache directory: {marker} for vLLM's torch.compile")
    log.info("backends.py:1128", f"Dynamo bytecode transform time: {knobs.phase_s('compile_warm') / 3:.2f} s")
    span = f"(1, {config.max_num_batched_tokens})"
    if marker.is_dir():
        knobs.pause("compile_warm")
        took = time.monotonic() - started
        log.info(
            "backends.py:292",
            f"Directly load the compiled graph(s) for compile range {span} from the cache, took {took:.3f} s",
        )
    else:
        knobs.pause("compile_cold")
        took = time.monotonic() - started
        log.info("backends.py:391", f"Compiling a graph for compile range {span} takes {took:.2f} s")
        try:
            marker.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            log.warning("backends.py:1075", f"vLLM's torch.compile cache is disabled: {exc}")
    log.info("monitor.py:53", f"torch.compile took {time.monotonic() - started:.2f} s in total")
    knobs.pause("profile")
    log.info("monitor.py:81", f"Initial profiling/warmup run took {knobs.phase_s('profile'):.2f} s")
    available = config.gpu_memory_utilization * DEVICE_GIB
    kept = min(available, config.kv_cache_tokens * KV_GIB_PER_TOKEN)
    log.info("gpu_worker.py:440", f"Available KV cache memory: {kept:.2f} GiB")


def warm_up(config: EngineConfig, bars: bool) -> None:
    """Autotuning and the capture of CUDA graphs."""
    if config.enforce_eager:
        return
    knobs.pause("autotune")
    started = time.monotonic()
    total = sum(count for _, count in GRAPHS)
    for kind, count in GRAPHS:
        bar = log.Bar(f"Capturing CUDA graphs ({kind})", count) if bars else None
        for done in range(1, count + 1):
            time.sleep(knobs.phase_s("graphs") / total)
            if bar:
                bar.show(done)
        if bar:
            bar.close()
    took = time.monotonic() - started
    log.info("gpu_model_runner.py:6134", f"Graph capturing finished in {took:.0f} secs, took 1.64 GiB")
