"""Checking a POST body: what vLLM refuses, in its words."""

import json
from typing import Any

from vllm_sim import text
from vllm_sim.config import EngineConfig
from vllm_sim.reply import last_said

NO_TOOL_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
DEFAULT_COMPLETION_TOKENS = 16


class BadRequest(Exception):
    def __init__(
        self, message: str, kind: str = "BadRequestError", parameter: str | None = None, status: int = 400
    ) -> None:
        super().__init__(message)
        self.message, self.kind, self.parameter, self.status = message, kind, parameter, status

    def body(self) -> dict[str, Any]:
        detail = {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.status}
        return {"error": detail}


def check(path: str, body: bytes, config: EngineConfig) -> dict[str, Any]:
    """The request with `prompt_tokens`, `limit` and `is_chat` filled in. Raises BadRequest."""
    request = _parse(body)
    if path in ("/tokenize", "/detokenize"):
        return request
    is_chat = path == "/v1/chat/completions" or (path == "/invocations" and "messages" in request)
    field = "messages" if is_chat else "prompt"
    if field not in request:
        raise _invalid(
            f"{{'type': 'missing', 'loc': 'body.{field}', 'msg': 'Field required', 'input': ", field, request
        )
    if is_chat and not _is_list_of_objects(request["messages"]):
        kind = "{'type': 'list_type', 'loc': 'body.messages', 'msg': 'Input should be a valid list', 'input': "
        raise _invalid(kind, field, request)
    model = request.get("model")
    if model and model not in config.served_names:
        aliases = ", ".join(config.served_names)
        raise BadRequest(
            f"The model `{model}` does not exist. Valid aliases: {aliases}.", "NotFoundError", "model", 404
        )
    if is_chat:
        _check_tools(request, config)
    request["is_chat"] = is_chat
    request["prompt_tokens"] = _prompt_tokens(request, is_chat)
    request["limit"] = _limit(request, config)
    return request


def _parse(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as exc:
        reason = str(exc).split(":")[0]
        position = getattr(exc, "pos", 0)
        raise BadRequest(
            f"1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{position}', 'msg': 'JSON decode error', 'input': "
            f"'<dict of 0 items>', 'ctx': {{'error': '{reason}'}}}}",
            "Bad Request",
            f"body.{position}",
        ) from None
    if not isinstance(value, dict):
        raise BadRequest(
            "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body'}", "Bad Request", "body"
        )
    return value


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _invalid(head: str, field: str, request: dict[str, Any]) -> BadRequest:
    message = f"1 validation error:\n  {head}'<dict of {len(request)} items>'}}"
    return BadRequest(message, "Bad Request", f"body.{field}")


def _check_tools(request: dict[str, Any], config: EngineConfig) -> None:
    if not request.get("tools") or request.get("tool_choice", "auto") != "auto":
        return
    if not (config.arguments["enable_auto_tool_choice"] and config.arguments["tool_call_parser"]):
        raise BadRequest(NO_TOOL_PARSER)


def _prompt_tokens(request: dict[str, Any], is_chat: bool) -> int:
    if not is_chat:
        prompt = request["prompt"]
        return len(text.tokens(prompt)) if isinstance(prompt, str) else len(prompt)
    said = [last_said([message]) for message in request["messages"]]
    return text.TEMPLATE_TOKENS + sum(len(text.tokens(words)) for words in said) + 4 * (len(said) - 1)


def _limit(request: dict[str, Any], config: EngineConfig) -> int:
    """How many tokens may be made."""
    longest, prompt = config.max_model_len, int(request["prompt_tokens"])
    name = "max_completion_tokens" if request.get("max_completion_tokens") else "max_tokens"
    asked: Any = request.get(name)
    if prompt >= longest + (asked is None):
        raise BadRequest(
            f"This model's maximum context length is {longest} tokens. However, your prompt contains at least {longest + 1} "
            "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input "
            f"prompt. (parameter=input_tokens, value={longest + 1})",
            parameter="input_tokens",
        )
    if asked is None:
        most = longest if request["is_chat"] else DEFAULT_COMPLETION_TOKENS
        return max(1, min(longest - prompt, most))
    if not isinstance(asked, int) or asked < 1:
        raise BadRequest(f"{name} must be at least 1, got {asked}. (parameter={name}, value={asked})", parameter=name)
    if asked > longest:
        raise BadRequest(
            f"{name}={asked} cannot be greater than max_model_len={longest}. Please request fewer output tokens. "
            f"(parameter={name}, value={asked})",
            parameter=name,
        )
    if prompt + asked > longest:
        raise BadRequest(
            f"This model's maximum context length is {longest} tokens. However, you requested {asked} output tokens and your "
            f"prompt contains at least {prompt} input tokens, for a total of at least {prompt + asked} tokens. Please reduce "
            f"the length of the input prompt or the number of requested output tokens. (parameter=input_tokens, value={prompt})",
            parameter="input_tokens",
        )
    return int(asked)
