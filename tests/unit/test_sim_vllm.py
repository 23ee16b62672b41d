"""The simulated vLLM's command line: what it accepts, and that it refuses the rest in the recorded words."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from sim_vllm import IMAGE, MAKE_MODEL, VLLM, recorded


def serve(*arguments: str, **environment: str) -> tuple[int, str]:
    """Status and output of a `vllm serve` that is expected to end by itself."""
    everything = {"PATH": os.environ["PATH"], "VLLM_SIM_SCALE": "0", **environment}
    done = subprocess.run(
        [VLLM, "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=everything,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def from_usage(lines: list[str]) -> list[str]:
    """From the usage on, without the address that one message prints."""
    first = next(number for number, line in enumerate(lines) if line.startswith("usage:"))
    return [re.sub(r"0x[0-9a-f]+", "0x", line) for line in lines[first:]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose configuration is that of the recordings' tiny one."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run([MAKE_MODEL, directory, "--shards", "6", "--positions", "2048", "--type", "qwen3"], check=True)
    return directory


def test_version_says_that_it_is_simulated() -> None:
    assert subprocess.run([VLLM, "--version"], capture_output=True, check=True).stdout == b"0.32.0+lab.simulated\n"


@pytest.mark.parametrize(
    ("recording", "arguments"),
    [
        ("unknown-flag.log", ["--no-such-flag", "1"]),
        ("json-quotes-stripped.log", ["--compilation-config", "{cudagraph_mode:FULL_AND_PIECEWISE}"]),
        ("speculative-config-stripped.log", ["--speculative-config", "{method:ngram,num_speculative_tokens:2}"]),
    ],
)
def test_usage_errors_are_the_recorded_ones(recording: str, arguments: list[str], tiny: Path) -> None:
    status, output = serve(str(tiny), *arguments)
    assert status == 2
    assert from_usage(output.splitlines()) == from_usage(recorded(recording))


def test_a_context_longer_than_the_model_allows(tiny: Path) -> None:
    status, output = serve(str(tiny), "--max-model-len", "999999")
    assert status == 1
    assert output.splitlines()[-3:] == recorded("max-model-len-too-long.log")[-3:]


def test_a_missing_model(tiny: Path) -> None:
    status, output = serve("/nonexistent/model")
    assert status == 1
    assert output.splitlines()[-1] == recorded("model-path-missing.log")[-1]
    assert "(APIServer pid=" in output
    status, output = serve("/nonexistent/model", "--headless", "--node-rank", "1", "--nnodes", "2")
    assert status == 1
    assert "APIServer" not in output
    assert "HFValidationError" in output.splitlines()[-1]


def test_a_model_without_configuration(tmp_path: Path) -> None:
    status, output = serve(str(tmp_path))
    assert status == 1
    assert "Invalid repository ID or local directory specified" in output


def test_a_repository_that_is_not_in_the_cache(tmp_path: Path) -> None:
    status, output = serve("openai/gpt-oss-20b", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert status == 1
    assert "LocalEntryNotFoundError" in output.splitlines()[-1]


def test_the_api_port_is_taken(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, output = serve(str(tiny), "--host", "127.0.0.1", "--port", str(taken.getsockname()[1]))
    assert status == 1
    assert output.splitlines()[-1] == "OSError: [Errno 98] Address already in use"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-model-len", "many"], "argument --max-model-len: invalid human_readable_int value: 'many'"),
        (["--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--kv-cache-dtype", "fp3"], "argument --kv-cache-dtype: invalid choice: 'fp3'"),
        (["--max-num-seqs"], "argument --max-num-seqs: expected one argument"),
    ],
)
def test_other_values_that_argparse_refuses(arguments: list[str], words: str, tiny: Path) -> None:
    status, output = serve(str(tiny), *arguments)
    assert status == 2
    assert words in output


def test_automatic_tools_need_a_parser(tiny: Path) -> None:
    status, output = serve(str(tiny), "--enable-auto-tool-choice")
    assert status == 1
    assert output.splitlines()[-1] == "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser"


def test_every_way_to_write_an_option(tiny: Path) -> None:
    """They are all understood: what stops this start is the context length alone, which was written twice."""
    options = "--max_model_len=1K --max-model-len 999K -tp=2 -cc.mode=3 --no-enable-prefix-caching -O3 --seed=7"
    status, output = serve(str(tiny), *options.split(), "--api-key", "secret")
    assert status == 1
    assert "Found duplicate keys --max-model-len" in output
    shown = next(line for line in output.splitlines() if "non-default args" in line)
    for words in (
        "'tensor_parallel_size': 2",
        "{'mode': 3}",
        "'enable_prefix_caching': False",
        "'seed': 7",
        "'api_key': '***'",
    ):
        assert words in shown
    assert "secret" not in output
    assert "User-specified max_model_len (1022976)" in output


def test_the_image_carries_the_patch_twice() -> None:
    file = next(IMAGE.glob("usr/local/lib/python3*/dist-packages/vllm/model_executor/layers/quantization/mxfp4.py"))
    source = file.read_text()
    compile(source, str(file), "exec")
    assert source.count("empty_cache") == 2
    assert source.count("del w13, w2, w13_scale, w2_scale, w13_bias, w2_bias") == 2


def test_every_fault_is_documented() -> None:
    listed = {line.split(":")[0] for line in (IMAGE / "opt/vllm-sim/faults.txt").read_text().splitlines()}
    sources = "".join(file.read_text() for file in (IMAGE / "opt/vllm-sim/vllm_sim").glob("*.py"))
    assert listed == set(re.findall(r'faults\.(?:on|take|hang_while)\("([a-z0-9-]+)"', sources))
