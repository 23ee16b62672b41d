#!/bin/bash
# gpt-oss-20b, profile none: spark1 of spark, rank 0 of 1 (alone)
# Written by sparkd from its configuration: a change made here is gone at the next launch.
# Its only argument is the launch id, so that this file is the same for every launch.
set -eu

if [ "$#" -ne 1 ] || [ -z "$1" ]; then
    echo "sparkd: this script takes one argument, the launch id; start the engine with: sparkd start" >&2
    exit 64
fi
export SPARKD_LAUNCH_ID="$1"
# vLLM titles its processes; unless told so, setproctitle overwrites with the title what /proc shows of their environment.
export SPT_NOENV=1

export HF_HUB_OFFLINE=1
export TRANSFORMERS_OFFLINE=1

exec vllm serve /models/gpt-oss-20b \
    --served-model-name core \
    --host 0.0.0.0 \
    --port 8001 \
    --dtype bfloat16 \
    --max-model-len 8192 \
    --gpu-memory-utilization 0.9 \
    --max-num-batched-tokens 4096 \
    --tensor-parallel-size 1
