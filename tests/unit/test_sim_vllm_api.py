"""The simulated vLLM's HTTP side against the recordings: bodies, errors, keys, metrics, streams, reasoning and tools."""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sim_vllm import FIELD, Lab, wait_for

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("pair"))
    lab.start_pair()
    try:
        lab.wait_ready()
        yield lab
    finally:
        lab.end()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One node, no parsers, as the recordings of errors were made."""
    lab = Lab(tmp_path_factory.mktemp("single"))
    lab.start_single()
    try:
        lab.wait_ready()
        yield lab
    finally:
        lab.end()


@pytest.fixture
def faulty(pair: Lab) -> Iterator[Lab]:
    """The shared pair; the faults of a test end with it."""
    yield pair
    for file in pair.directory.glob("node*/faults/*"):
        file.unlink()


def recorded_answer(name: str) -> tuple[int, Any]:
    _, status, body = (FIELD / "http" / name).read_text().split("\n", 2)
    return int(status.split()[1]), json.loads(body)


def message(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found = answer.json()["choices"][0]["message"]
    assert isinstance(found, dict)
    return found


def shape(value: Any) -> Any:
    """A JSON value without its leaves."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else None


def events(answer: httpx.Response) -> list[Any]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_answer_has_reasoning_content_and_the_recorded_shape(pair: Lab) -> None:
    answer = pair.chat("What is 17 + 25?")
    said = message(answer)
    assert "simulated" in said["content"]
    assert "42" in said["content"]
    assert "17 + 25" in said["reasoning"]
    assert shape(answer.json()) == shape(recorded_answer("k_reason.txt")[1])


def test_thinking_can_be_switched_off(pair: Lab) -> None:
    said = message(pair.chat(chat_template_kwargs={"thinking": False}))
    assert said["reasoning"] is None
    assert said["content"]


def test_too_few_tokens_leave_reasoning_only(pair: Lab) -> None:
    answer = pair.chat(max_tokens=8)
    assert message(answer)["content"] is None
    assert message(answer)["reasoning"]
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert answer.json()["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_call_satisfies_its_schema(pair: Lab, choice: Any) -> None:
    answer = pair.chat("How is the weather in Paris for the next 3 days?", tools=[WEATHER], tool_choice=choice)
    said = message(answer)
    assert said["content"] is None
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert said["tool_calls"][0]["function"]["name"] == "get_weather"
    assert json.loads(said["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris", "days": 3}


def test_tools_are_left_alone_when_nobody_speaks_of_them(pair: Lab) -> None:
    assert message(pair.chat("hello", tools=[WEATHER]))["content"]
    spoken = "How is the weather in Paris?"
    assert message(pair.chat(spoken, tools=[WEATHER], tool_choice="none"))["content"]
    turns = [{"role": "user", "content": spoken}, {"role": "tool", "tool_call_id": "x", "content": "rain"}]
    assert message(pair.post({"messages": turns, "tools": [WEATHER]}))["content"]


def test_a_stream_says_what_the_whole_answer_says(pair: Lab) -> None:
    whole = message(pair.chat())
    chunks = events(pair.chat(stream=True, stream_options={"include_usage": True}))
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content") or "" for delta in deltas) == whole["content"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == whole["reasoning"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == len(deltas) - 1


def test_a_streamed_tool_call(pair: Lab) -> None:
    chunks = events(pair.chat("Weather in Rome?", stream=True, tools=[WEATHER], tool_choice="required"))
    calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert calls[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"city": "Rome", "days": 1}


def test_a_json_schema_is_answered_with_an_instance(pair: Lab) -> None:
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}}
    said = message(pair.chat("I like blue", response_format=wanted))
    assert json.loads(said["content"]) == {"colour": "blue"}


def test_completions_and_invocations(pair: Lab) -> None:
    for path in ("/v1/completions", "/invocations"):
        answer = pair.post({"prompt": "def ", "max_tokens": 4}, path)
        assert answer.status_code == 200
        assert shape(answer.json()) == shape(recorded_answer("completions.txt")[1])
        assert answer.json()["usage"]["completion_tokens"] == 4
    assert message(pair.post({"messages": [{"role": "user", "content": "hi"}]}, "/invocations"))["content"]


def test_ignore_eos_makes_every_token(pair: Lab) -> None:
    assert pair.chat(ignore_eos=True, max_tokens=777).json()["usage"]["completion_tokens"] == 777


@pytest.mark.parametrize("name", ["badjson", "nomsgs", "unkmodel", "tools_auto", "tools_nochoice", "toomax"])
def test_errors_are_the_recorded_ones(single: Lab, name: str) -> None:
    command = (FIELD / "http" / f"{name}.txt").read_text().split("\n")[0]
    answer = httpx.post(f"{single.url}/v1/chat/completions", content=command.partition(" -d ")[2])
    assert (answer.status_code, answer.json()) == recorded_answer(f"{name}.txt")


def test_a_prompt_that_is_too_long(single: Lab) -> None:
    answer = single.chat("word " * 1100)
    assert (answer.status_code, answer.json()) == recorded_answer("toolong.txt")


@pytest.mark.parametrize("path", ["/nope", "/sleep", "/server_info", "/is_sleeping", "/reset_prefix_cache"])
def test_what_is_not_there(single: Lab, path: str) -> None:
    answer = httpx.get(single.url + path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_the_small_pages(single: Lab) -> None:
    for path, wanted in (("/version", {"version": "0.32.0+lab.simulated"}), ("/load", {"server_load": 0})):
        assert httpx.get(single.url + path).json() == wanted
    for path in ("/health", "/ping"):
        assert (httpx.get(single.url + path).status_code, httpx.get(single.url + path).content) == (200, b"")
    models = httpx.get(f"{single.url}/v1/models").json()
    assert shape(models) == shape(recorded_answer("models.txt")[1])
    assert (models["data"][0]["id"], models["data"][0]["max_model_len"]) == ("tiny", 1024)
    tokens = httpx.post(f"{single.url}/tokenize", json={"model": "tiny", "prompt": "a"}).json()
    assert shape(tokens) == shape(recorded_answer("k_tok.txt")[1])
    assert httpx.get(f"{single.url}/v1/chat/completions").status_code == 405


@pytest.mark.parametrize("by_environment", [True, False])
def test_a_key_guards_some_paths_only(tmp_path_factory: pytest.TempPathFactory, by_environment: bool) -> None:
    lab = Lab(tmp_path_factory.mktemp("key"))
    environment = {"VLLM_API_KEY": "sk-abc"} if by_environment else {}
    lab.start_single(*([] if by_environment else ["--api-key", "sk-abc"]), **environment)
    try:
        lab.wait_ready()
        for headers in ({}, {"Authorization": "Bearer nope"}):
            answer = httpx.get(f"{lab.url}/v1/models", headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
        assert httpx.get(f"{lab.url}/v1/models", headers={"Authorization": "Bearer sk-abc"}).status_code == 200
        for path in ("/metrics", "/load", "/health"):
            assert httpx.get(lab.url + path).status_code == 200
        assert lab.post({"prompt": "a"}, "/invocations").status_code == 200
        assert not lab.says(0, "sk-abc")
    finally:
        lab.end()


def metric_names(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("# TYPE")]


def series(text: str) -> set[str]:
    """The engine's samples without values, whatever the model's name."""
    lines = [
        line.rpartition(" ")[0] for line in text.splitlines() if line.startswith("vllm:") and "cache_config" not in line
    ]
    return {re.sub(r'model_name="[^"]*"', "", line) for line in lines}


def sample(text: str, name: str, labels: str = "") -> float:
    return sum(
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith((name + "{", name + " ")) and labels in line
    )


def test_metrics_have_the_recorded_names_and_series(pair: Lab) -> None:
    ours = httpx.get(f"{pair.url}/metrics").text
    recording = (FIELD / "metrics-speculative.txt").read_text()
    assert metric_names(ours) == metric_names(recording)
    assert series(ours) == series(recording)


def test_without_speculation_there_are_no_draft_metrics(single: Lab) -> None:
    assert "spec_decode" not in httpx.get(f"{single.url}/metrics").text


def test_counters_move_with_requests(pair: Lab) -> None:
    before = httpx.get(f"{pair.url}/metrics").text
    answer = pair.chat()
    after = httpx.get(f"{pair.url}/metrics").text

    def moved(name: str, labels: str = "") -> float:
        return sample(after, name, labels) - sample(before, name, labels)

    usage = answer.json()["usage"]
    assert moved("vllm:prompt_tokens_total") == usage["prompt_tokens"]
    assert moved("vllm:generation_tokens_total") == usage["completion_tokens"]
    assert moved("vllm:request_success_total", 'finished_reason="stop"') == 1
    assert moved("vllm:time_to_first_token_seconds_count") == 1
    assert moved("vllm:time_to_first_token_seconds_bucket", 'le="+Inf"') == 1
    assert moved("vllm:iteration_tokens_total_count") > 0
    assert moved("vllm:spec_decode_num_accepted_tokens_total") > 0
    assert moved("http_requests_total", 'handler="/v1/chat/completions"') == 1


def test_faults_of_the_answer(faulty: Lab) -> None:
    faulty.fault(0, "no-content")
    assert not message(faulty.chat())["content"]
    faulty.fault(0, "no-content", on=False)
    faulty.fault(0, "no-reasoning")
    assert message(faulty.chat())["reasoning"] is None
    faulty.fault(0, "no-reasoning", on=False)
    faulty.fault(0, "old-reasoning-field")
    assert message(faulty.chat())["reasoning_content"]
    faulty.fault(0, "bad-tool-call")
    call = message(faulty.chat("weather", tools=[WEATHER], tool_choice="required"))["tool_calls"][0]
    with pytest.raises(ValueError, match="string"):
        json.loads(call["function"]["arguments"])
    faulty.fault(0, "garbage-content")
    assert set(message(faulty.chat())["content"]) == {"!"}
    faulty.fault(0, "http-500")
    assert faulty.chat().status_code == 500
    assert httpx.get(f"{faulty.url}/health").status_code == 200


@pytest.mark.parametrize("node", [0, 1])
def test_a_rank_that_hangs_leaves_health_at_200(faulty: Lab, node: int) -> None:
    faulty.fault(node, "hang-requests")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{faulty.url}/v1/completions", json={"prompt": "a"}, timeout=0.5)
    assert httpx.get(f"{faulty.url}/health").status_code == 200
    faulty.fault(node, "hang-requests", on=False)
    assert faulty.chat().status_code == 200


def test_a_hanging_api_does_not_answer_at_all(faulty: Lab) -> None:
    faulty.fault(0, "api-hang")
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{faulty.url}/health", timeout=0.5)
    faulty.fault(0, "api-hang", on=False)
    assert httpx.get(f"{faulty.url}/health").status_code == 200


def test_more_requests_than_sequences_wait_their_turn(pair: Lab) -> None:
    """Four run at once: the others are counted as waiting, and all are answered."""
    with httpx.Client(timeout=20.0) as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": 4000, "stream": True}
        opened = [client.stream("POST", f"{pair.url}/v1/chat/completions", json=body) for _ in range(6)]
        answers = [stream.__enter__() for stream in opened]
        text = wait_for(lambda: next(filter(is_full, [httpx.get(f"{pair.url}/metrics").text]), None))
        assert sample(text, "vllm:num_requests_waiting") >= 1
        for answer in answers:
            assert answer.read().endswith(b"data: [DONE]\n\n")


def is_full(text: str) -> bool:
    return sample(text, "vllm:num_requests_running") == 4 and sample(text, "vllm:num_requests_waiting") > 0
