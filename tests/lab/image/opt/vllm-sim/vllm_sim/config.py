"""From arguments and the model's own files to what the engine runs, with vLLM's refusals."""

import argparse
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_sim import traces
from vllm_sim.knobs import knob
from vllm_sim.log import Frame

# KV cache of the published deployment: 612,341 tokens at 0.90 of memory, 360,858 at 0.85.
KV_TOKENS_AT_090 = 612_341
KV_TOKENS_PER_POINT = (612_341 - 360_858) / 0.05
KV_GIB_PER_TOKEN = 29.4 / KV_TOKENS_AT_090
DEVICE_GIB = 119.67


class Refused(Exception):
    """vLLM does not start with this: the traceback it prints, and its exit status."""

    def __init__(self, frames: tuple[Frame, ...], text: str, status: int = 1) -> None:
        super().__init__(text)
        self.frames, self.text, self.status = frames, text, status


@dataclass(frozen=True)
class EngineConfig:
    model: str
    served_names: tuple[str, ...]
    architecture: str
    model_type: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    shards: int
    checkpoint_gib: float
    dtype: str
    enforce_eager: bool
    expert_parallel: bool
    tensor_parallel: int
    pipeline_parallel: int
    nnodes: int
    node_rank: int
    master_addr: str
    master_port: int
    backend: str
    timeout_s: float  # of the rendezvous
    timeout_given: bool
    gpu_memory_utilization: float
    speculative: dict[str, Any] | None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def headless(self) -> bool:
        return bool(self.arguments.get("headless"))

    @property
    def world_size(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def local_world_size(self) -> int:
        return max(1, self.world_size // self.nnodes)

    @property
    def local_ranks(self) -> range:
        first = self.node_rank * self.local_world_size
        return range(first, first + self.local_world_size)

    @property
    def in_process(self) -> bool:
        """One rank in all and no executor asked for: the engine core runs the model itself (UniProcExecutor)."""
        return self.world_size == 1 and self.arguments.get("distributed_executor_backend") in (None, "uni")

    @property
    def kv_cache_tokens(self) -> int:
        """As on GB10 for the share of memory asked for; the knob `kv_tokens` where a lab's share means nothing."""
        if self.model_type.startswith("deepseek"):
            tokens = KV_TOKENS_AT_090 + (self.gpu_memory_utilization - 0.9) * KV_TOKENS_PER_POINT
        else:
            tokens = 1_200_000 * self.gpu_memory_utilization
        return max(0, int(knob("kv_tokens", tokens)))

    def worker_name(self, rank: int) -> str:
        """Worker_TP0, Worker_TP0_EP0, Worker_PP0_TP1; plain Worker where there is one."""
        parts = ["Worker"]
        if self.pipeline_parallel > 1:
            parts.append(f"PP{rank // self.tensor_parallel}")
        if self.tensor_parallel > 1:
            parts.append(f"TP{rank % self.tensor_parallel}")
        if self.expert_parallel:
            parts.append(f"EP{rank % self.tensor_parallel}")
        return "_".join(parts)


def check_arguments(arguments: argparse.Namespace) -> None:
    """What vLLM checks before anything else. Raises Refused."""
    if arguments.enable_auto_tool_choice and not arguments.tool_call_parser:
        text = "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser"
        raise Refused(traces.VALIDATE_ARGUMENTS, text)


def locate_model(arguments: argparse.Namespace) -> Path | None:
    """The model's directory; None for a repository that this simulation takes as downloaded. Raises Refused."""
    model = Path(arguments.model)
    if model.is_dir():
        return model
    frames = traces.model_path(arguments.headless)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", arguments.model):
        text = (
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
            f"'namespace/repo_name': '{arguments.model}'. Use `repo_type` argument if needed."
        )
        raise Refused(frames, text)
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    snapshots = sorted((cache / f"models--{arguments.model.replace('/', '--')}" / "snapshots").glob("*"))
    if snapshots:
        return snapshots[-1]
    if os.environ.get("HF_HUB_OFFLINE", "0") in ("1", "true", "ON", "YES"):
        text = (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the "
            "specified revision on the local disk and outgoing traffic has been disabled."
        )
        raise Refused(frames[:-2], text)
    return None


def load(arguments: argparse.Namespace, directory: Path | None) -> EngineConfig:
    """Raises Refused."""
    model = _model_config(arguments, directory)
    return EngineConfig(
        model=arguments.model,
        served_names=tuple(arguments.served_model_name or [arguments.model]),
        architecture=(model.get("architectures") or ["SimulatedForCausalLM"])[0],
        model_type=str(model.get("model_type", "")),
        max_model_len=_max_model_len(arguments, model),
        max_num_seqs=arguments.max_num_seqs or 256,
        max_num_batched_tokens=arguments.max_num_batched_tokens or 8192,
        shards=_shards(directory),
        checkpoint_gib=_checkpoint_gib(directory),
        dtype={"auto": "bfloat16", "half": "float16"}.get(arguments.dtype, arguments.dtype),
        enforce_eager=arguments.enforce_eager,
        expert_parallel=arguments.enable_expert_parallel,
        tensor_parallel=arguments.tensor_parallel_size,
        pipeline_parallel=arguments.pipeline_parallel_size,
        nnodes=arguments.nnodes,
        node_rank=arguments.node_rank,
        master_addr=arguments.master_addr,
        master_port=arguments.master_port,
        backend="nccl",
        timeout_s=float(arguments.cpu_distributed_timeout_seconds or arguments.distributed_timeout_seconds or 1800),
        timeout_given=bool(arguments.cpu_distributed_timeout_seconds or arguments.distributed_timeout_seconds),
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        speculative=arguments.speculative_config,
        arguments=vars(arguments),
    )


def _model_config(arguments: argparse.Namespace, directory: Path | None) -> dict[str, Any]:
    if directory is None:
        return {}
    try:
        value = json.loads((directory / "config.json").read_text())
    except FileNotFoundError:
        text = (
            f"pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n  Value error, Invalid "
            f"repository ID or local directory specified: '{arguments.model}'.\nPlease verify the following requirements:\n"
            "1. Provide a valid Hugging Face repository ID.\n2. Specify a local directory that contains a recognized "
            "configuration file.\n   - For Hugging Face models: ensure the presence of a 'config.json'."
        )
        raise Refused(traces.model_config(arguments.headless), text) from None
    except ValueError as exc:
        text = (
            f"OSError: It looks like the config file at '{directory / 'config.json'}' is not a valid JSON file. ({exc})"
        )
        raise Refused(traces.model_config(arguments.headless), text) from None
    return value if isinstance(value, dict) else {}


def _max_model_len(arguments: argparse.Namespace, model: dict[str, Any]) -> int:
    derived = int(model.get("max_position_embeddings") or 131_072)
    asked = arguments.max_model_len
    if asked is None or asked == -1:
        return derived
    if asked > derived and os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0") not in ("1", "true", "True"):
        text = (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
            f"  Value error, User-specified max_model_len ({asked}) is greater than the derived max_model_len "
            f"(max_position_embeddings={float(derived)} or model_max_length=None in model's config.json). To allow overriding "
            "this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with "
            "extreme caution. If the model uses relative position encoding (RoPE), positions exceeding derived_max_model_len "
            "lead to nan. If the model uses absolute position encoding, positions exceeding derived_max_model_len will cause "
            "a CUDA array out-of-bounds error. [type=value_error, input_value=ArgsKwargs((), {'model': ...nderer_num_workers'"
            ": 1}), input_type=ArgsKwargs]\n    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
        )
        raise Refused(traces.model_config(arguments.headless), text)
    return int(asked)


def _shards(directory: Path | None) -> int:
    if directory is None:
        return 1
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        return max(1, len(set(index["weight_map"].values())))
    except (OSError, ValueError, KeyError, AttributeError):
        return max(1, len(list(directory.glob("*.safetensors"))))


def _checkpoint_gib(directory: Path | None) -> float:
    """What the index says, as the lab's shards are empty."""
    try:
        index = json.loads(((directory or Path()) / "model.safetensors.index.json").read_text())
        return float(index["metadata"]["total_size"]) / 2**30
    except (OSError, ValueError, KeyError, TypeError):
        files = directory.glob("*.safetensors") if directory else ()
        return sum(file.stat().st_size for file in files) / 2**30
