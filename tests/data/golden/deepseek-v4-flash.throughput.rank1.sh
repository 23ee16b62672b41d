#!/bin/bash
# deepseek-v4-flash, profile throughput: spark2 of spark, rank 1 of 2 (headless worker)
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

# Known to break the engine, wherever it came from.
if [ "${VLLM_WORKER_MULTIPROC_METHOD-}" = fork ]; then unset VLLM_WORKER_MULTIPROC_METHOD; fi

export TORCH_CUDA_ARCH_LIST=12.1a
export VLLM_ALLOW_LONG_MAX_MODEL_LEN=1
export VLLM_TRITON_MLA_SPARSE=1
export VLLM_USE_FLASHINFER_SAMPLER=1
export FLASHINFER_DISABLE_VERSION_CHECK=1
export TILELANG_CLEANUP_TEMP_FILES=1
export DG_JIT_USE_NVRTC=0
export DG_JIT_NVCC_COMPILER=/usr/local/cuda/bin/nvcc
export OMP_NUM_THREADS=8
export HF_HUB_OFFLINE=1
export TRANSFORMERS_OFFLINE=1
export NCCL_SOCKET_IFNAME=bond0
export NCCL_IB_DISABLE=0
export NCCL_IGNORE_CPU_AFFINITY=1
export GLOO_SOCKET_IFNAME=bond0
export VLLM_HOST_IP=192.168.1.12
export NCCL_IB_HCA=rocep1s0f0,rocep1s0f1

exec vllm serve /models/DeepSeek-V4-Flash \
    --served-model-name deepseek-v4-flash \
    --host 0.0.0.0 \
    --port 8000 \
    --trust-remote-code \
    --load-format safetensors \
    --tensor-parallel-size 2 \
    --pipeline-parallel-size 1 \
    --kv-cache-dtype fp8 \
    --block-size 256 \
    --gpu-memory-utilization 0.90 \
    --max-model-len 65536 \
    --max-num-seqs 16 \
    --max-num-batched-tokens 8192 \
    --enable-prefix-caching \
    --enable-chunked-prefill \
    --disable-custom-all-reduce \
    --compilation-config '{"cudagraph_mode":"FULL_AND_PIECEWISE","custom_ops":["all"]}' \
    --speculative-config '{"method":"deepseek_mtp","num_speculative_tokens":2}' \
    --tokenizer-mode deepseek_v4 \
    --tool-call-parser deepseek_v4 \
    --enable-auto-tool-choice \
    --reasoning-parser deepseek_v4 \
    --default-chat-template-kwargs '{"thinking":true}' \
    --enable-expert-parallel \
    --nnodes 2 \
    --node-rank 1 \
    --master-addr 10.0.0.1 \
    --master-port 29501 \
    --headless
