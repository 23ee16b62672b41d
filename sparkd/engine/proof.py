"""What counts as proof that the endpoint serves, and what each failure to give it means. Pure: no HTTP here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparkd.model.finding import Cure, Finding, bad
from sparkd.model.outside import parsed

CANARY_PROMPT = "Say OK."
PROMPTS = (
    "What is 17 + 25? Answer with the number.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey? Think, then answer in one sentence.",
)
TOOL_NAME, TOOL_ARGUMENT = "get_weather", "city"
TOOL_PROMPT = f"What is the weather in Paris now? Call the {TOOL_NAME} tool."
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "The weather in a city, now.",
        "parameters": {
            "type": "object",
            "properties": {TOOL_ARGUMENT: {"type": "string"}},
            "required": [TOOL_ARGUMENT],
        },
    },
}
_REASONING_FIELDS = ("reasoning", "reasoning_content")  # since 0.12, before
_SHOWN_MAX_CHARS = 200


@dataclass(frozen=True)
class Proved:
    """A real completion that came back. `reasoning_field` is the field that held the reasoning, if any did."""

    content_chars: int
    reasoning_field: str | None
    tool_call: bool
    seconds: float
    says: str


@dataclass(frozen=True)
class Answer:
    """The first choice of a chat completion."""

    content: str = ""
    reasoning: str = ""
    reasoning_field: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str = ""


def parse_answer(raw: Any) -> Answer:
    """Tolerates whatever JSON comes: what is not there is empty."""
    try:
        choice = raw["choices"][0]
        message = choice["message"]
        field = next((name for name in _REASONING_FIELDS if str(message.get(name) or "").strip()), None)
        return Answer(
            content=str(message.get("content") or "").strip(),
            reasoning=str(message[field]).strip() if field else "",
            reasoning_field=field,
            tool_calls=tuple(call for call in message.get("tool_calls") or () if isinstance(call, dict)),
            finish_reason=str(choice.get("finish_reason") or ""),
        )
    except (KeyError, IndexError, TypeError, AttributeError):
        return Answer()


def judge_tool_call(answer: Answer) -> str | Finding:
    """ "" where the call is well-formed; a word on what came instead, worth asking again; or a finding.

    A call in the content is the mark of a parser that does not fit the model.
    """
    if not answer.tool_calls:
        if TOOL_NAME in answer.content and TOOL_ARGUMENT in answer.content and any(c in answer.content for c in "{<"):
            return bad_tool_call("the call came as text, so the tool parser does not fit the model", answer.content)
        return f"the answer was {answer.content[:60]!r}" if answer.content else "the answer was empty"
    function = answer.tool_calls[0].get("function")
    if not isinstance(function, dict):
        return bad_tool_call("the call names no function")
    if function.get("name") != TOOL_NAME:
        return bad_tool_call(f"it calls {function.get('name')!r}, which was not offered")
    try:
        arguments = parsed(function.get("arguments") or "")
    except (ValueError, TypeError):
        return bad_tool_call("its arguments are not JSON", str(function.get("arguments")))
    if not isinstance(arguments, dict) or TOOL_ARGUMENT not in arguments:
        return bad_tool_call(f"its arguments lack {TOOL_ARGUMENT!r}", json.dumps(arguments))
    return ""


def proved(answer: Answer, *, reasoning: bool, tool: str, seconds: float) -> Proved:
    parts = [f"{len(answer.content)} characters"] if answer.content else []
    if answer.reasoning_field and (reasoning or not answer.content):
        parts.append(f"reasoning in `{answer.reasoning_field}`")
    if tool:
        parts.append("a tool call" + (" (only when required)" if tool == "required" else ""))
    return Proved(
        content_chars=len(answer.content),
        reasoning_field=answer.reasoning_field,
        tool_call=bool(tool),
        seconds=round(seconds, 2),
        says=f"answered in {seconds:.1f} s: {', '.join(parts)}",
    )


def unreachable(path: str, why: str) -> Finding:
    return bad(
        "endpoint.unreachable",
        f"the endpoint cannot be reached ({path}: {why})",
        cure=Cure.RELAUNCH,
        remedy="sparkd logs; ss -tlnp shows who listens",
    )


def timeout(path: str, waited_s: float) -> Finding:
    return bad(
        "endpoint.timeout",
        f"{path} did not answer within {waited_s:.0f} s" if waited_s else f"no time was left to ask {path}",
        cure=Cure.RELAUNCH,
        remedy="sparkd logs on both nodes; is the link up?",
    )


def unhealthy(status: int | None) -> Finding:
    if status is None:
        return unreachable("/health", "no answer")
    return bad("endpoint.health", f"/health says {status}", cure=Cure.RELAUNCH, remedy="sparkd logs")


def model_missing(model: str, served: Mapping[str, int]) -> Finding:
    names = ", ".join(served) or "none"
    return bad(
        "endpoint.model-missing",
        f"the endpoint does not serve {model!r}; it serves {names}",
        cure=Cure.PERSON,
        remedy="compare served-model-name in the recipe; does another engine listen on this port?",
    )


def http_error(path: str, status: int, body: str) -> Finding:
    says = _message(body)
    if status in (401, 403):
        return bad(
            "endpoint.unauthorized",
            f"{path} refuses our API key ({status})",
            cure=Cure.PERSON,
            remedy="compare the recipe's api_key_file with the key that the engine was started with",
        )
    if status == 404 and "does not exist" in says:
        return bad("endpoint.model-missing", f"{path}: {says}", cure=Cure.PERSON, remedy="check served-model-name")
    if status == 400 and "tool" in says.lower():
        return bad_tool_call(says)
    return bad(
        "endpoint.error",
        f"{path} answers {status}: {says}",
        cure=Cure.RELAUNCH if status >= 500 else Cure.PERSON,
        remedy="sparkd logs",
    )


def no_content(answer: Answer) -> Finding:
    thought = f" ({len(answer.reasoning)} characters of reasoning)" if answer.reasoning else ""
    return bad(
        "endpoint.no-content",
        f"a completion came back without content{thought}, finish_reason {answer.finish_reason or 'unknown'}",
        # A finished answer that is all reasoning is what a reasoning parser makes of a model that has no such markers.
        cure=Cure.PERSON if answer.reasoning and answer.finish_reason == "stop" else Cure.RELAUNCH,
        remedy="compare reasoning-parser and the chat template with the model" if thought else "sparkd logs",
    )


def no_reasoning(answer: Answer) -> Finding:
    return bad(
        "endpoint.no-reasoning",
        "completions come back without reasoning, which the recipe's reasoning parser should give",
        cure=Cure.PERSON,
        remedy="compare reasoning-parser and default-chat-template-kwargs with the model",
        evidence=(answer.content[:_SHOWN_MAX_CHARS],),
    )


def bad_tool_call(why: str, shown: str = "", *, cure: Cure = Cure.PERSON) -> Finding:
    return bad(
        "endpoint.bad-tool-call",
        f"no well-formed tool call: {why}",
        cure=cure,
        remedy="compare tool-call-parser and enable-auto-tool-choice with the model",
        evidence=(shown[:_SHOWN_MAX_CHARS],) if shown else (),
    )


def _message(body: str) -> str:
    """`{"error": {"message": ...}}`, or `{"error": "..."}`, or whatever it is."""
    try:
        error = parsed(body)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        text = body
    return str(text).strip()[:_SHOWN_MAX_CHARS] or "nothing"
