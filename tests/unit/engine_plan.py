"""A plan to test with: the head of a pair, rendered like any other."""

from __future__ import annotations

from sparkd.model.plan import ContainerSpec, Plan
from sparkd.model.render import render_script

ARGV = (
    *("vllm", "serve", "/models/DeepSeek-V4-Flash", "--served-model-name", "deepseek-v4-flash"),
    *("--host", "0.0.0.0", "--port", "8000", "--enable-expert-parallel", "--max-model-len", "131072"),
    *("--compilation-config", '{"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}'),
    *("--nnodes", "2", "--node-rank", "0"),
)
ENVIRONMENT = {"VLLM_HOST_IP": "10.0.0.1", "NCCL_SOCKET_IFNAME": "bond0", "OMP_NUM_THREADS": "8"}
FORBIDDEN = ("VLLM_WORKER_MULTIPROC_METHOD=fork", "NCCL_IB_GID_INDEX")


def plan(**changes: object) -> Plan:
    script = render_script(
        cluster="spark",
        node="spark1",
        rank=0,
        size=2,
        recipe="deepseek",
        profile="balanced",
        argv=ARGV,
        environment=ENVIRONMENT,
        forbidden_environment=FORBIDDEN,
    )
    container = ContainerSpec(
        name="vllm_ds4",
        image="ghcr.io/spark-arena/dgx-vllm-eugr-nightly:latest",
        runtime="nvidia",
        gpus="all",
        network="host",
        ipc="host",
        privileged=True,
        volumes=("/home/milo/models:/models", "/root/.cache/vllm:/root/.cache/vllm"),
        command=("sleep", "infinity"),
        init=True,
    )
    fields: dict[str, object] = {
        "cluster": "spark",
        "node": "spark1",
        "rank": 0,
        "size": 2,
        "profile": "balanced",
        "container": container,
        "environment": ENVIRONMENT,
        "forbidden_environment": FORBIDDEN,
        "argv": ARGV,
        "script": script,
        "script_path": "/workspace/sparkd/vllm-head.sh",
        "model": "/models/DeepSeek-V4-Flash",
        "served_name": "deepseek-v4-flash",
        "api_host": "10.0.0.1",
        "api_port": 8000,
        "rendezvous_port": 29501,
        "gpu_memory_utilization": 0.9,
        "patches": (),
        "has_reasoning": True,
        "has_tools": True,
        "api_key_file": None,
    }
    return Plan.model_validate(fields | changes)
