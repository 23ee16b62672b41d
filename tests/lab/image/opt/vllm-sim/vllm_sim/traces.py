"""Where the recorded tracebacks came from: the frames of vLLM 0.32 that a person looks for in a log."""

from vllm_sim.log import Frame

_RUN_SERVER: tuple[Frame, ...] = (
    ("/usr/local/bin/vllm", 6, "<module>", "sys.exit(main())"),
    ("vllm/entrypoints/cli/main.py", 120, "main", "args.dispatch_function(args)"),
    ("vllm/entrypoints/cli/serve.py", 156, "cmd", "uvloop.run(run_server(args))"),
    ("uvloop/__init__.py", 48, "wrapper", "return await main"),
)
SETUP_SERVER: tuple[Frame, ...] = (
    *_RUN_SERVER,
    ("vllm/entrypoints/launchers/api_server/entry.py", 175, "run_server", "listen_address, sock = setup_server(args)"),
    ("vllm/entrypoints/launchers/api_server/entry.py", 120, "create_server_socket", "sock.bind(addr)"),
)
_BUILD_CLIENT: tuple[Frame, ...] = (
    *_RUN_SERVER,
    (
        "vllm/entrypoints/launchers/api_server/entry.py",
        177,
        "run_server",
        "await run_server_worker(listen_address, sock, args, **uvicorn_kwargs)",
    ),
    (
        "vllm/entrypoints/launchers/api_server/entry.py",
        195,
        "run_server_worker",
        "async with build_async_engine_client(",
    ),
)
VALIDATE_ARGUMENTS: tuple[Frame, ...] = (
    ("/usr/local/bin/vllm", 6, "<module>", "sys.exit(main())"),
    ("vllm/entrypoints/cli/main.py", 112, "main", "cmds[args.subparser].validate(args)"),
    ("vllm/entrypoints/cli/serve.py", 161, "validate", "validate_parsed_serve_args(args)"),
)
_HEADLESS: tuple[Frame, ...] = (
    ("/usr/local/bin/vllm", 6, "<module>", "sys.exit(main())"),
    ("vllm/entrypoints/cli/main.py", 120, "main", "args.dispatch_function(args)"),
    ("vllm/entrypoints/cli/serve.py", 150, "cmd", "run_headless(args)"),
)


def model_path(headless: bool) -> tuple[Frame, ...]:
    return (
        *(_HEADLESS if headless else _BUILD_CLIENT),
        ("vllm/engine/arg_utils.py", 1938, "from_cli_args", "engine_args = cls("),
        ("vllm/engine/arg_utils.py", 914, "__post_init__", "self.model = get_model_path(self.model, self.revision)"),
        ("vllm/transformers_utils/repo_utils.py", 301, "get_model_path", "return hf_api().snapshot_download("),
        ("huggingface_hub/utils/_validators.py", 85, "_inner_fn", "validate_repo_id(arg_value)"),
        ("huggingface_hub/utils/_validators.py", 133, "validate_repo_id", "raise HFValidationError("),
    )


def model_config(headless: bool) -> tuple[Frame, ...]:
    return (
        *(_HEADLESS if headless else _BUILD_CLIENT),
        ("vllm/engine/arg_utils.py", 2240, "create_engine_config", "model_config = self.create_model_config()"),
        ("vllm/engine/arg_utils.py", 1955, "create_model_config", "return ModelConfig("),
        (
            "pydantic/_internal/_dataclasses.py",
            121,
            "__init__",
            "s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)",
        ),
    )


CORE_CLIENT: tuple[Frame, ...] = (
    *_BUILD_CLIENT,
    ("vllm/v1/engine/async_llm.py", 184, "__init__", "self.engine_core = EngineCoreClient.make_async_mp_client("),
    ("vllm/v1/engine/core_client.py", 682, "__init__", "with launch_core_engines("),
    ("vllm/v1/engine/utils.py", 1431, "wait_for_engine_startup", "raise RuntimeError("),
)
_EXECUTOR_INIT: tuple[Frame, ...] = (
    ("vllm/v1/executor/multiproc_executor.py", 116, "__init__", "super().__init__(vllm_config)"),
    ("vllm/v1/executor/abstract.py", 126, "__init__", "self._init_executor()"),
    (
        "vllm/v1/executor/multiproc_executor.py",
        215,
        "_init_executor",
        "self.workers = WorkerProc.wait_for_ready(unready_workers)",
    ),
    ("vllm/v1/executor/multiproc_executor.py", 815, "wait_for_ready", "raise e from None"),
)
HEADLESS_EXECUTOR: tuple[Frame, ...] = (
    *_HEADLESS,
    (
        "vllm/entrypoints/cli/serve.py",
        231,
        "run_headless",
        "executor = MultiprocExecutor(vllm_config, monitor_workers=False)",
    ),
    *_EXECUTOR_INIT,
)
CORE_PROCESS: tuple[Frame, ...] = (
    ("/usr/lib/python3.12/multiprocessing/process.py", 314, "_bootstrap", "self.run()"),
    ("/usr/lib/python3.12/multiprocessing/process.py", 108, "run", "self._target(*self._args, **self._kwargs)"),
    ("vllm/v1/engine/core.py", 1514, "run_engine_core", "raise e"),
)
_CORE_INIT: tuple[Frame, ...] = (
    (
        "vllm/v1/engine/core.py",
        1482,
        "run_engine_core",
        "engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
    ),
    ("vllm/v1/engine/core.py", 1194, "__init__", "super().__init__("),
)
CORE_EXECUTOR: tuple[Frame, ...] = (
    *_CORE_INIT,
    ("vllm/v1/engine/core.py", 144, "__init__", "self.model_executor = executor_class(vllm_config)"),
    *_EXECUTOR_INIT,
)
SHM_RING: tuple[Frame, ...] = (
    *_CORE_INIT,
    ("vllm/v1/engine/core.py", 144, "__init__", "self.model_executor = executor_class(vllm_config)"),
    ("vllm/v1/executor/multiproc_executor.py", 170, "_init_executor", "self.rpc_broadcast_mq = MessageQueue("),
    ("vllm/distributed/device_communicators/shm_broadcast.py", 268, "__init__", "self.buffer = ShmRingBuffer("),
    (
        "vllm/distributed/device_communicators/shm_broadcast.py",
        202,
        "__del__",
        'if hasattr(self.shared_memory, "close"):',
    ),
)
FOLLOWER_RPC: tuple[Frame, ...] = (
    *_CORE_INIT,
    (
        "vllm/v1/engine/core.py",
        268,
        "_initialize_kv_caches",
        "kv_cache_specs = self.model_executor.get_kv_cache_specs()",
    ),
    ("vllm/v1/executor/abstract.py", 166, "get_kv_cache_specs", 'return self.collective_rpc("get_kv_cache_spec")'),
    (
        "vllm/v1/executor/multiproc_executor.py",
        395,
        "collective_rpc",
        "assert self.rpc_broadcast_mq is not None, (",
    ),
)
KV_CACHE: tuple[Frame, ...] = (
    *_CORE_INIT,
    ("vllm/v1/engine/core.py", 290, "_initialize_kv_caches", "kv_cache_configs = get_kv_cache_configs("),
    ("vllm/v1/core/kv_cache_utils.py", 812, "check_enough_kv_cache_memory", "raise ValueError("),
)
_WORKER_PROC: tuple[Frame, ...] = (
    ("vllm/v1/executor/multiproc_executor.py", 920, "worker_main", "worker = WorkerProc(*args, **kwargs)"),
)
_INIT_DEVICE: tuple[Frame, ...] = (
    *_WORKER_PROC,
    ("vllm/v1/executor/multiproc_executor.py", 679, "__init__", "self.worker.init_device()"),
    ("vllm/v1/worker/worker_base.py", 350, "init_device", "self.worker.init_device()  # type: ignore"),
)
RENDEZVOUS: tuple[Frame, ...] = (
    *_INIT_DEVICE,
    ("vllm/v1/worker/gpu_worker.py", 1664, "init_worker_distributed_environment", "init_distributed_environment("),
    (
        "vllm/distributed/parallel_state.py",
        1953,
        "init_distributed_environment",
        "torch.distributed.init_process_group(",
    ),
    (
        "torch/distributed/distributed_c10d.py",
        1892,
        "init_process_group",
        "store, rank, world_size = next(rendezvous_iterator)",
    ),
    ("torch/distributed/rendezvous.py", 199, "_create_c10d_store", "return TCPStore("),
)
REQUEST_MEMORY: tuple[Frame, ...] = (
    *_INIT_DEVICE,
    (
        "vllm/v1/worker/gpu_worker.py",
        310,
        "init_device",
        "self.requested_memory = request_memory(init_snapshot, self.cache_config)",
    ),
    ("vllm/v1/worker/utils.py", 260, "request_memory", "raise ValueError("),
)
LOAD_MODEL: tuple[Frame, ...] = (
    *_WORKER_PROC,
    ("vllm/v1/executor/multiproc_executor.py", 682, "__init__", "self.worker.load_model()"),
    ("vllm/v1/worker/gpu_worker.py", 420, "load_model", "self.model_runner.load_model(eep_scale_up=eep_scale_up)"),
    (
        "vllm/model_executor/model_loader/base_loader.py",
        82,
        "load_model",
        "process_weights_after_loading(model, model_config, target_device)",
    ),
)
MXFP4: tuple[Frame, ...] = (
    *LOAD_MODEL,
    (
        "vllm/model_executor/layers/quantization/mxfp4.py",
        60,
        "process_weights_after_loading",
        "del w13, w2, w13_scale, w2_scale, w13_bias, w2_bias",
    ),
)
EXECUTE_MODEL: tuple[Frame, ...] = (
    ("vllm/v1/executor/multiproc_executor.py", 1055, "_execute_worker_rpc", "output = func(*args, **kwargs)"),
    (
        "vllm/v1/worker/worker_base.py",
        370,
        "execute_model",
        "return self.worker.execute_model(scheduler_output)",
    ),
    ("vllm/v1/worker/gpu_worker.py", 1328, "execute_model", "output = self.model_runner.execute_model("),
    (
        "vllm/distributed/communication_op.py",
        14,
        "tensor_model_parallel_all_reduce",
        "return get_tp_group().all_reduce(input_)",
    ),
    ("torch/distributed/distributed_c10d.py", 3252, "all_reduce", "work.wait()"),
)
BUSY_LOOP: tuple[Frame, ...] = (
    ("vllm/v1/engine/core.py", 1496, "run_engine_core", "engine_core.run_busy_loop()"),
    ("vllm/v1/engine/core.py", 1555, "run_busy_loop", "self._process_engine_step()"),
    ("vllm/v1/engine/core.py", 674, "step", "model_output = future.result()"),
    ("vllm/v1/executor/multiproc_executor.py", 444, "get_response", "raise RuntimeError("),
)
OUTPUT_HANDLER: tuple[Frame, ...] = (
    ("vllm/v1/engine/async_llm.py", 849, "output_handler", "outputs = await engine_core.get_output_async()"),
    (
        "vllm/v1/engine/core_client.py",
        1235,
        "get_output_async",
        "raise self._format_exception(outputs) from None",
    ),
)
