"""Weights that are none: files by the names, in the number and with the index of DeepSeek-V4-Flash's, a few KB each."""

from __future__ import annotations

import json
import struct
from pathlib import Path

SHARDS = 46
TENSOR_BYTES = 4096
NOTE = "Made by sparkd's lab: a simulation, not DeepSeek's weights."


def write(directory: Path) -> None:
    directory.mkdir(parents=True)
    weight_map = {}
    for number in range(1, SHARDS + 1):
        shard, tensor = f"model-{number:05d}-of-{SHARDS:05d}.safetensors", f"model.layers.{number - 1}.mlp.weight"
        (directory / shard).write_bytes(_safetensors(tensor))
        weight_map[tensor] = shard
    index = {"metadata": {"total_size": SHARDS * TENSOR_BYTES}, "weight_map": weight_map}
    for name, content in (
        ("model.safetensors.index.json", index),
        ("config.json", _config()),
        ("generation_config.json", {"temperature": 1.0, "top_p": 1.0}),
        ("tokenizer.json", {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1048576}),
    ):
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")


def _config() -> dict[str, object]:
    return {
        "_note": NOTE,
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 1048576,
        "num_hidden_layers": 43,
        "num_nextn_predict_layers": 1,
        "vocab_size": 129280,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0"},
    }


def _safetensors(tensor: str) -> bytes:
    """One tensor in the safetensors format: length of the header, header, data."""
    header = {
        "__metadata__": {"note": NOTE},
        tensor: {"dtype": "F8_E4M3", "shape": [TENSOR_BYTES], "data_offsets": [0, TENSOR_BYTES]},
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(TENSOR_BYTES)
