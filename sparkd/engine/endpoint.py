"""The engine's HTTP endpoint, asked the way a client would: only a real answer proves that it serves.

`/health` says 200 with a rank dead and through a whole network hang (FIELD.md), so nothing here takes it as
proof. Blocking, for use in threads. Requests do not stream and never go through a proxy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparkd.engine import proof
from sparkd.engine.metrics import Counters, parse_counters
from sparkd.engine.proof import Proved
from sparkd.model.finding import Cure, Finding, bad
from sparkd.model.outside import parsed

if TYPE_CHECKING:
    from sparkd.engine.bounded_http import Fetched

__all__ = ["Counters", "Endpoint", "ProofResult", "Proved"]

ProofResult = Proved | Finding

_TOKENS_REASONING = (1024, 4096)  # a reasoning model may think longer than the first; FIELD.md section 5
_TOKENS_PLAIN = (64, 256)
_TOKENS_CANARY = 16
_TOKENS_PROMPT_MAX = 256  # kept free of the context for our own prompts
_TOOL_ATTEMPTS = 3
_CONNECT_MAX_S = 5.0
_SERIES_MAX = 5000  # a vLLM has some 300
_LOOK_MAX_S = 10.0  # for what costs the engine nothing: health, models


class Endpoint:
    """One endpoint, `base_url` without "/v1" ("http://10.0.0.1:8000"). The key is sent and never shown."""

    def __init__(self, base_url: str, model: str, api_key: str | None = None) -> None:
        import httpx

        from sparkd.engine import bounded_http

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._client = bounded_http.client(base_url, headers)
        self._bounded = bounded_http
        self._errors = (httpx.HTTPError, httpx.InvalidURL)

    def close(self) -> None:
        self._client.close()

    def health(self, timeout_s: float) -> int | None:
        """The status of `/health`, None where nobody answers in time."""
        try:
            return self._fetch("GET", "/health", timeout_s).status
        except self._errors:
            return None

    def listed(self, timeout_s: float) -> dict[str, int] | Finding:
        """Served names and their `max_model_len`, or the finding why there are none."""
        answer = self._ask("GET", "/v1/models", timeout_s)
        return answer if isinstance(answer, Finding) else _served(answer)

    def models(self, timeout_s: float) -> dict[str, int] | None:
        """Served names and their `max_model_len` (0 where it does not say); None where it does not answer so."""
        answer = self.listed(timeout_s)
        return None if isinstance(answer, Finding) else answer

    def counters(self, timeout_s: float) -> Counters | None:
        """The engine's counters; None where `/metrics` does not answer, or is not vLLM's."""
        try:
            answer = self._fetch("GET", "/metrics", timeout_s)
        except self._errors:
            return None
        return parse_counters(answer.text) if answer.status == 200 else None

    def metrics(self, timeout_s: float) -> dict[str, float]:
        """Every series of `/metrics`, summed over its labels; empty where it does not answer. Needs no key."""
        try:
            answer = self._fetch("GET", "/metrics", timeout_s)
        except self._errors:
            return {}
        return sums(answer.text) if answer.status == 200 else {}

    def status(self, method: str, path: str, timeout_s: float, *, with_key: bool = True) -> tuple[int | None, str]:
        """How a request without a body is answered: its status, None where nobody answers in time, and why."""
        try:
            return self._fetch(method, path, timeout_s, with_key=with_key).status, ""
        except self._errors as error:
            return None, str(error) or type(error).__name__

    def prove(self, *, reasoning: bool, tools: bool, max_s: float) -> ProofResult:
        """Real completions: content, reasoning where there is a parser for it, a tool call where there is one."""
        started = time.monotonic()
        deadline = started + max_s
        status = self.health(min(_LOOK_MAX_S, max_s))
        if status != 200:
            return proof.unhealthy(status)
        listed = self._ask("GET", "/v1/models", min(_LOOK_MAX_S, max_s))
        if isinstance(listed, Finding):
            return listed
        served = _served(listed)
        if self._model not in served:
            return proof.model_missing(self._model, served)
        answered = self._prove_chat(reasoning, served[self._model], deadline)
        if isinstance(answered, Finding):
            return answered
        tool = self._prove_tool(served[self._model], deadline) if tools else ""
        if isinstance(tool, Finding):
            return tool
        return proof.proved(answered, reasoning=reasoning, tool=tool, seconds=time.monotonic() - started)

    def canary(self, max_s: float) -> ProofResult:
        """A few tokens: content or reasoning, whichever comes first. Cheap enough to ask every minute."""
        started = time.monotonic()
        answer = self._chat(proof.CANARY_PROMPT, _TOKENS_CANARY, started + max_s)
        if isinstance(answer, Finding):
            return answer
        if not answer.content and not answer.reasoning:
            return proof.no_content(answer)
        return proof.proved(answer, reasoning=False, tool="", seconds=time.monotonic() - started)

    def _prove_chat(self, reasoning: bool, context_tokens: int, deadline: float) -> proof.Answer | Finding:
        """Asked again, with more room and a question that needs thought, before an empty field counts as a fault."""
        last = proof.Answer()
        budgets = _TOKENS_REASONING if reasoning else _TOKENS_PLAIN
        for prompt, tokens in zip(proof.PROMPTS, budgets, strict=True):
            answer = self._chat(prompt, _fitting(tokens, context_tokens), deadline)
            if isinstance(answer, Finding) or (answer.content and (answer.reasoning or not reasoning)):
                return answer
            last = answer
        return proof.no_content(last) if not last.content else proof.no_reasoning(last)

    def _prove_tool(self, context_tokens: int, deadline: float) -> str | Finding:
        """How the model called the tool: "auto" or "required".

        "auto" is what clients use and what goes through the recipe's parser. A model may answer in words
        now and then, so it is asked again; "required" then tells a shy model from a wrong parser.
        """
        found: str | Finding = ""
        for attempt in range(_TOOL_ATTEMPTS):
            choice = "auto" if attempt < _TOOL_ATTEMPTS - 1 else "required"
            request = {"tools": [proof.TOOL], "tool_choice": choice}
            tokens = _fitting(_TOKENS_REASONING[0], context_tokens)
            answer = self._chat(proof.TOOL_PROMPT, tokens, deadline, request)
            if isinstance(answer, Finding):
                return answer
            found = proof.judge_tool_call(answer)
            if found == "":
                return choice
            if isinstance(found, Finding):
                return found
        return proof.bad_tool_call(f"no tool call in {_TOOL_ATTEMPTS} answers: {found}", cure=Cure.RELAUNCH)

    def _chat(
        self, prompt: str, tokens: int, deadline: float, more: Mapping[str, Any] | None = None
    ) -> proof.Answer | Finding:
        request = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "stream": False,
            **(more or {}),
        }
        answer = self._ask("POST", "/v1/chat/completions", deadline - time.monotonic(), request)
        return answer if isinstance(answer, Finding) else proof.parse_answer(answer)

    def _ask(self, method: str, path: str, timeout_s: float, request: Mapping[str, Any] | None = None) -> Any:
        """The JSON of the answer, or the finding that there was none."""
        import httpx

        if timeout_s <= 0:
            return proof.timeout(path, 0)
        try:
            answer = self._fetch(method, path, timeout_s, request)
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout):
                return proof.unreachable(path, "the connection timed out")
            return proof.timeout(path, timeout_s)
        except httpx.HTTPError as error:
            return proof.unreachable(path, str(error) or type(error).__name__)
        if answer.status != 200:
            return proof.http_error(path, answer.status, answer.text)
        try:
            return parsed(answer.text)
        except ValueError:
            return bad(
                "endpoint.error",
                f"{path} answers, but not in JSON",
                cure=Cure.PERSON,
                remedy="is something else listening on the engine's port?",
                evidence=(answer.text[:200],),
            )

    def _fetch(
        self,
        method: str,
        path: str,
        timeout_s: float,
        content: Mapping[str, Any] | None = None,
        *,
        with_key: bool = True,
    ) -> Fetched:
        """The whole answer, within `timeout_s`. Raises the errors of httpx."""
        request = self._client.build_request(method, path, json=content)
        if not with_key:
            request.headers.pop("Authorization", None)
        return self._bounded.fetch(self._client, request, timeout_s=timeout_s, connect_max_s=_CONNECT_MAX_S)


def sums(text: str) -> dict[str, float]:
    """Prometheus' text form: the values of each name, over all its labels."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        if line[:1] == "#" or not series:
            continue
        name = series.partition("{")[0]
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number) and (name in totals or len(totals) < _SERIES_MAX):
            totals[name] = totals.get(name, 0.0) + number
    return totals


def _served(listed: Any) -> dict[str, int]:
    try:
        return {str(entry["id"]): int(entry.get("max_model_len") or 0) for entry in listed["data"]}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}


def _fitting(tokens: int, context_tokens: int) -> int:
    """No more than the context allows beside our prompt; a tiny model would refuse the request."""
    return tokens if context_tokens <= 0 else max(1, min(tokens, context_tokens - _TOKENS_PROMPT_MAX))
