"""One request from admission to its last token, and the OpenAI objects that are made of it."""

import secrets
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from vllm_sim import VERSION, faults, reply
from vllm_sim.client import EngineClient
from vllm_sim.config import EngineConfig
from vllm_sim.metrics import Metrics
from vllm_sim.reply import Reply

FINGERPRINT = f"vllm-{VERSION}-51a1ab00"
NOTHING: dict[str, None] = dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))


class Generation:
    def __init__(self, request: dict[str, Any], config: EngineConfig, client: EngineClient, metrics: Metrics) -> None:
        self.request, self.config, self.client, self.metrics = request, config, client, metrics
        self.is_chat: bool = request["is_chat"]
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(8)}"
        self.created = int(time.time())
        self.model = request.get("model") or config.served_names[0]
        self.reply = self._plan()
        # Older builds call the field reasoning_content.
        self.reasoning_field = "reasoning_content" if faults.on("old-reasoning-field") else "reasoning"

    def _plan(self) -> Reply:
        if self.is_chat:
            return reply.chat(self.request, self.config.arguments, self.request["limit"])
        prompt = self.request["prompt"]
        return reply.completion(self.request, prompt if isinstance(prompt, str) else "", self.request["limit"])

    def _steps(self) -> Generator[int]:
        """Token counts as the engine makes them, counted on the way. Raises EngineDead."""
        prompt, total = self.request["prompt_tokens"], len(self.reply.pieces)
        arrived = last = time.monotonic()
        made = 0
        try:
            for count in self.client.generate(self.id, prompt, total):
                now = time.monotonic()
                if count:
                    self.metrics.tokens(prompt if made == 0 else 0, count, now - last, first=made == 0)
                    made, last = made + count, now
                yield count
        except GeneratorExit:
            self.metrics.finished("abort", prompt, made, time.monotonic() - arrived)
            raise
        finish = "stop" if self.reply.finish == "tool_calls" else self.reply.finish
        self.metrics.finished(finish, prompt, total, time.monotonic() - arrived)

    def whole(self, hung_up: Callable[[], bool]) -> dict[str, Any]:
        """The body of an answer that is not streamed. Raises EngineDead, and BrokenPipeError when nobody waits for it."""
        steps = self._steps()
        for _ in steps:
            if hung_up():
                steps.close()
                raise BrokenPipeError
        return self._chat_object() if self.is_chat else self._completion_object()

    def _chat_object(self) -> dict[str, Any]:
        said = self.reply
        message: dict[str, Any] = {
            "role": "assistant",
            "content": said.joined("content"),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            self.reasoning_field: said.joined("reasoning"),
        }
        if said.calls:
            message["tool_calls"] = said.calls
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": said.finish,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        extra = {"prompt_logprobs": None, "prompt_token_ids": None, "prompt_text": None}
        return self._object("chat.completion", choice, {**extra, **NOTHING})

    def _completion_object(self) -> dict[str, Any]:
        choice = {
            "index": 0,
            "text": self.reply.joined("content") or "",
            "logprobs": None,
            "finish_reason": self.reply.finish,
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "routed_experts": None,
        }
        return self._object("text_completion", choice, NOTHING)

    def _object(self, kind: str, choice: dict[str, Any], extra: dict[str, None]) -> dict[str, Any]:
        thought = self.reply.reasoning_tokens
        usage = {
            **self._usage(),
            "prompt_tokens_details": None,
            "completion_tokens_details": {"reasoning_tokens": thought} if thought else None,
        }
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": [choice]}
        return {**head, "service_tier": None, "system_fingerprint": FINGERPRINT, "usage": usage, **extra}

    def _usage(self) -> dict[str, int]:
        prompt, made = self.request["prompt_tokens"], len(self.reply.pieces)
        return {"prompt_tokens": prompt, "total_tokens": prompt + made, "completion_tokens": made}

    def events(self) -> Iterator[dict[str, Any]]:
        """The chunks of a stream, one a token. Raises EngineDead."""
        if self.is_chat:
            yield {
                **self._event({"role": "assistant", "content": ""}, None),
                "prompt_token_ids": None,
                "prompt_text": None,
            }
        sent = 0
        for count in self._steps():
            for number in range(sent, sent + count):
                finish = self.reply.finish if number + 1 == len(self.reply.pieces) else None
                yield self._event(self._delta(number), finish)
            sent += count
        if (self.request.get("stream_options") or {}).get("include_usage"):
            yield {**self._event({}, None), "choices": [], "usage": self._usage(), "system_fingerprint": FINGERPRINT}

    def _delta(self, number: int) -> dict[str, Any]:
        kind, words = self.reply.pieces[number]
        if kind == "reasoning":
            return {self.reasoning_field: words}
        if kind != "tool":
            return {"content": words}
        call: dict[str, Any] = {"index": 0, "function": {"arguments": words}}
        if self.reply.calls and (number == 0 or self.reply.pieces[number - 1][0] != "tool"):
            made = self.reply.calls[0]
            call = {"id": made["id"], "type": "function", "index": 0}
            call["function"] = {"name": made["function"]["name"], "arguments": words}
        return {"tool_calls": [call]}

    def _event(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        if not self.is_chat:
            choice = {"index": 0, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}
        if "role" not in delta:
            choice |= {"stop_reason": None, "token_ids": None} if finish else {"token_ids": None}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": [choice]}
