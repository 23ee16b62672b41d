"""What the simulation says: deterministic text that owns up to being simulated, cut into pieces that count as tokens."""

import hashlib
import json
import operator
import re
from typing import Any

SENTENCES = (
    "This is a simulated answer from the sparkd lab.",
    "No model runs here, so do not believe a word of it.",
    "The tokens arrive at the pace that somebody configured.",
    "The two nodes agreed on every one of them over the link.",
)
TEMPLATE_TOKENS = 14  # what a chat template adds to a first message in the recordings
SUM = re.compile(r"(\d{1,9})\s*(\+|-|\*|×|x|times|plus|minus)\s*(\d{1,9})")
OPERATORS = {"+": operator.add, "plus": operator.add, "-": operator.sub, "minus": operator.sub}
LONG = re.compile(r"(\d{2,6})[ -](?:words?|tokens?)|count (?:\w+ )*to (\d{2,6})", re.IGNORECASE)
TOKEN = re.compile(r"\s*\w{1,8}|\s*[^\w\s]|\s+$")


def tokens(text: str) -> list[str]:
    """Pieces of at most eight letters that join to `text` again."""
    return TOKEN.findall(text)


def token_ids(text: str) -> list[int]:
    return [int.from_bytes(hashlib.sha256(piece.encode()).digest()[:2], "big") for piece in tokens(text)]


def answer(prompt: str) -> list[str]:
    """An answer to the last thing that was said, in tokens."""
    words = [SENTENCES[0]]
    found = SUM.search(prompt)
    if found:
        left, right = int(found[1]), int(found[3])
        words.append(f"The sum comes to {OPERATORS.get(found[2], operator.mul)(left, right)}.")
    wanted = re.search(
        r"(?:say|reply|respond|answer|write|repeat)[^'\"`]*['\"`]([^'\"`]{1,80})['\"`]", prompt, re.IGNORECASE
    )
    wanted = wanted or re.search(r"(?:exactly|only|the word|with)[: ]+([A-Za-z0-9_-]+)\W*$", prompt)
    if wanted:
        words.append(f"You asked for: {wanted[1]}.")
    long = LONG.search(prompt)
    if long:
        return endless(int(long[1] or long[2]))
    return tokens(" ".join([*words, *SENTENCES[1:2]]))


def reasoning(prompt: str) -> list[str]:
    heard = " ".join(prompt.split())[:80]
    return tokens(f'The user says "{heard}". Nobody thinks here: this reasoning is simulated. I shall answer briefly.')


def endless(count: int) -> list[str]:
    """Exactly `count` tokens."""
    cycle = tokens(" ".join(SENTENCES) + " ")
    return [cycle[number % len(cycle)] for number in range(count)]


def garbage(count: int) -> list[str]:
    """What a model with broken weights or kernels says."""
    return ["!"] * count


def instance(schema: Any, prompt: str, root: Any = None) -> Any:
    """The least value that satisfies a JSON schema, with words of the prompt for its strings."""
    root = schema if root is None else root
    if not isinstance(schema, dict):
        return None
    if "$ref" in schema:
        return instance(_resolve(str(schema["$ref"]), root), prompt, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    if schema.get("enum"):
        return next((choice for choice in schema["enum"] if str(choice).lower() in prompt.lower()), schema["enum"][0])
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return instance(schema[key][0], prompt, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if kind == "object":
        required = schema.get("required", list(schema.get("properties", {})))
        properties = schema.get("properties", {})
        return {name: instance(properties.get(name, {"type": "string"}), prompt, root) for name in required}
    if kind == "array":
        return [instance(schema.get("items", {"type": "string"}), prompt, root)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return _number(schema, prompt, kind)
    if kind == "boolean":
        return True
    return None if kind == "null" else _string(schema, prompt)


def _resolve(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        root = root.get(part, {}) if isinstance(root, dict) else {}
    return root


def _number(schema: dict[str, Any], prompt: str, kind: str) -> float | int:
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
    high = schema.get("maximum", float("inf"))
    for word in re.findall(r"-?\d+(?:\.\d+)?", prompt):
        value = float(word)
        if low <= value <= high and (kind == "number" or value.is_integer()):
            return int(value) if value.is_integer() else value
    return int(low) if kind == "integer" else float(low)


def _string(schema: dict[str, Any], prompt: str) -> str:
    """A name out of the prompt: something quoted, else the last capitalised word that does not open a sentence."""
    quoted = re.search(r"['\"`]([^'\"`]+)['\"`]", prompt)
    names = re.findall(r"(?<=[a-z,:] )[A-Z][A-Za-z-]+", prompt)
    value = quoted[1] if quoted else names[-1] if names else "simulated"
    return value.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", 200)]


def json_tokens(value: Any) -> list[str]:
    return tokens(json.dumps(value))
