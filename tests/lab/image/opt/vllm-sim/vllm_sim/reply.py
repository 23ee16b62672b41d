"""From a checked request to what will be said: reasoning, content or tool calls, cut where max_tokens cuts it."""

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from vllm_sim import faults, text

FAULTY_GARBAGE_TOKENS = 40
END_OF_TEXT = ("end", "")


@dataclass
class Reply:
    """`pieces` are the tokens in order: (kind, text) with kind reasoning, content, tool or end (of text: no words)."""

    pieces: list[tuple[str, str]]
    finish: str
    calls: list[dict[str, Any]] = field(default_factory=list)

    def joined(self, kind: str) -> str | None:
        found = [piece for which, piece in self.pieces if which == kind]
        return "".join(found) if found else None

    @property
    def reasoning_tokens(self) -> int:
        return sum(kind == "reasoning" for kind, _ in self.pieces)


def completion(request: dict[str, Any], prompt: str, limit: int) -> Reply:
    wanted = text.endless(limit) if request.get("ignore_eos") else text.answer(prompt)
    return _cut(_content(wanted), "stop", limit)


def chat(request: dict[str, Any], arguments: dict[str, Any], limit: int) -> Reply:
    if faults.on("no-content"):
        return _cut([], "stop", limit)
    prompt = last_said(request["messages"])
    pieces: list[tuple[str, str]] = []
    if _thinks(request, arguments):
        pieces += [("reasoning", piece) for piece in text.reasoning(prompt)]
    if request.get("ignore_eos"):
        return _cut(pieces + _content(text.endless(limit)), "stop", limit)
    tool = _chosen_tool(request, prompt)
    if tool is not None:
        return _call(pieces, tool, prompt, limit)
    schema = _wanted_schema(request)
    words = text.answer(prompt) if schema is None else text.json_tokens(text.instance(schema, prompt))
    return _cut(pieces + _content(words), "stop", limit)


def last_said(messages: list[dict[str, Any]]) -> str:
    """The text of the last message, whatever its form."""
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def _thinks(request: dict[str, Any], arguments: dict[str, Any]) -> bool:
    if not arguments["reasoning_parser"] or faults.on("no-reasoning"):
        return False
    settings = {**(arguments["default_chat_template_kwargs"] or {}), **(request.get("chat_template_kwargs") or {})}
    asked = settings.get("thinking", settings.get("enable_thinking", True))
    return bool(asked) and request.get("reasoning_effort") != "none"


def _chosen_tool(request: dict[str, Any], prompt: str) -> dict[str, Any] | None:
    """The function to call: the one that was named, any that was required, or one that the prompt speaks of."""
    given = [tool.get("function") for tool in request.get("tools") or []]
    tools: list[dict[str, Any]] = [tool for tool in given if isinstance(tool, dict)]
    choice = request.get("tool_choice", "auto")
    if not tools or choice == "none" or request["messages"][-1].get("role") == "tool":
        return None
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return next((tool for tool in tools if tool.get("name") == name), tools[0])
    spoken = prompt.lower()
    for tool in tools:
        words = str(tool.get("name", "")).lower().replace("-", "_").split("_")
        if any(len(word) >= 4 and word in spoken for word in words):
            return tool
    return tools[0] if choice == "required" or "tool" in spoken or "function" in spoken else None


def _call(pieces: list[tuple[str, str]], tool: dict[str, Any], prompt: str, limit: int) -> Reply:
    arguments = json.dumps(text.instance(tool.get("parameters") or {"type": "object"}, prompt))
    if faults.on("bad-tool-call"):
        arguments = arguments[:-1] + ', "broken'
    call = {
        "id": f"chatcmpl-tool-{secrets.token_hex(8)}",
        "type": "function",
        "function": {"name": tool.get("name", ""), "arguments": arguments},
    }
    reply = _cut([*pieces, *(("tool", piece) for piece in text.tokens(arguments))], "tool_calls", limit)
    if reply.finish == "tool_calls":
        reply.calls = [call]
    return reply


def _wanted_schema(request: dict[str, Any]) -> Any:
    wanted = request.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema", {})
    return (
        {"type": "object", "properties": {"simulated": {"const": True}}}
        if wanted.get("type") == "json_object"
        else None
    )


def _content(words: list[str]) -> list[tuple[str, str]]:
    if faults.on("no-content"):
        return [END_OF_TEXT]
    if faults.on("garbage-content"):
        words = text.garbage(FAULTY_GARBAGE_TOKENS)
    return [("content", word) for word in words]


def _cut(pieces: list[tuple[str, str]], finish: str, limit: int) -> Reply:
    pieces = pieces or [END_OF_TEXT]
    return Reply(pieces[:limit], "length" if len(pieces) > limit else finish)
