"""Layer client: what those who use the endpoint would meet, though the engine itself is well."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from sparkd.config.identity import local_addresses
from sparkd.doctor.check import Answers, cannot_tell, check, doubtful, no, yes
from sparkd.doctor.checks.endpoint import listed
from sparkd.doctor.checks.engine import engine_of, is_claimed
from sparkd.doctor.facts import Facts, fact
from sparkd.engine.weights import host_path
from sparkd.host import link, ports
from sparkd.model.finding import Finding, Layer, Who
from sparkd.model.outside import parsed
from sparkd.model.plan import Plan

CONFIG_MAX_BYTES = 1 << 20

# Families of models: how to recognise one by its configuration's `model_type`, its architecture or its name, and the
# parsers that vLLM has for it. Only a parser that is another family's is doubted; an unknown one may be newer than this.
FAMILIES: tuple[tuple[str, str, frozenset[str], frozenset[str]], ...] = tuple(
    (name, pattern, frozenset(tools.split()), frozenset(reasoning.split()))
    for name, pattern, tools, reasoning in (
        ("DeepSeek", r"deepseek", "deepseek_v3 deepseek_v31 deepseek_v32 deepseek_v4 deepseek_v41",
         "deepseek_r1 deepseek_v3 deepseek_v31 deepseek_v4 deepseek_v41"),
        ("Qwen", r"qwen|qwq", "hermes qwen3_coder qwen3_xml", "qwen3 deepseek_r1 holo2"),
        ("gpt-oss", r"gpt[-_]?oss", "openai", "openai_gptoss GptOss"),
        ("Llama 4", r"llama[-_]?4", "llama4_pythonic llama4_json pythonic", ""),
        ("Llama", r"llama(?![-_]?4)", "llama3_json pythonic", "nemotron_v3"),
        ("Hermes", r"hermes", "hermes", "hermes"),
        ("Mistral", r"mistral|mixtral|magistral|devstral|ministral", "mistral", "mistral"),
        ("GLM", r"\bglm|chatglm", "glm45 glm47", "glm45 glm47"),
        ("Kimi", r"kimi|moonshot", "kimi_k2 kimi_k3", "kimi_k2 kimi_k3"),
        ("MiniMax", r"minimax", "minimax minimax_m2 minimax_m3", "minimax_m2 minimax_m2_append_think minimax_m3"),
        ("Granite", r"granite", "granite granite4 granite-20b-fc", "granite"),
        ("Gemma", r"gemma", "gemma4 functiongemma pythonic", "gemma4"),
        ("Nemotron", r"nemotron", "qwen3_coder llama3_json", "nemotron_v3 deepseek_r1"),
        ("Seed-OSS", r"seed[-_]?oss", "seed_oss", "seed_oss"),
        ("Step", r"\bstep[-_]?3", "step3 step3p5", "step3 step3p5"),
        ("Phi", r"\bphi", "phi4_mini_json", ""),
        ("Hunyuan", r"hunyuan|\bhy[-_]?v", "hunyuan_a13b hy_v3", "hunyuan_a13b hy_v3"),
        ("ERNIE", r"ernie", "ernie45", "ernie45"),
    )
)  # fmt: skip
_TOOLS, _REASONING = 2, 3
_LOADED = ("loading", "proving", "serving")


def argument(plan: Plan, flag: str) -> str | None:
    """The value of `--flag` in the plan; "" for a bare flag, None where it is not there. The last one counts, as for vLLM."""
    found = None
    for index, word in enumerate(plan.argv):
        name, equals, value = word.partition("=")
        if name == f"--{flag}":
            following = plan.argv[index + 1] if index + 1 < len(plan.argv) else "--"
            found = value if equals else "" if following.startswith("--") else following
    return found


# --- parsers -------------------------------------------------------------------------------------


@fact
def model_config(facts: Facts) -> Mapping[str, Any]:
    """config.json of the weights; empty where it cannot be read from this host."""
    directory = host_path(facts.plan.container.volumes, facts.plan.model)
    try:
        if directory is None:
            return {}
        with (directory / "config.json").open("rb") as file:
            found = parsed(file.read(CONFIG_MAX_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def families(names: Iterable[str]) -> list[tuple[str, str, frozenset[str], frozenset[str]]]:
    """Pure. Those that one of the names speaks of. A distilled model may be of two."""
    text = " ".join(names)
    return [family for family in FAMILIES if re.search(family[1], text, re.I)]


def names_of(plan: Plan, config: Mapping[str, Any]) -> list[str]:
    """The name of the weights' directory and what their own configuration says. The served name is anybody's choice."""
    architectures = config.get("architectures")
    told = [str(each) for each in architectures] if isinstance(architectures, list) else []
    return [plan.model.rstrip("/").rpartition("/")[2], str(config.get("model_type") or ""), *told]


def misfit(parser: str, names: Iterable[str], kind: int) -> str | None:
    """Pure. Why a parser is another family's; None where it fits, or nobody can tell."""
    known = families(names)
    if not known or any(parser in family[kind] for family in known):
        return None
    owners = [family[0] for family in FAMILIES if parser in family[kind]]
    if not owners:
        return None
    fitting = sorted(set().union(*(family[kind] for family in known)))
    instead = f" (for it: {', '.join(fitting)})" if fitting else ""
    return f"{parser!r} reads {' and '.join(owners)}, and the model is a {' or '.join(f[0] for f in known)}{instead}"


@check(
    "client.tools",
    layer=Layer.CLIENT,
    question="Are both arguments for tool calls there, or none?",
    how="--enable-auto-tool-choice and --tool-call-parser in the plan",
    means="With a parser alone clients get a 400; with the switch alone vLLM does not start.",
    remedy="set both enable-auto-tool-choice and tool-call-parser in the recipe, or none",
    sample="tool-call-parser is set without enable-auto-tool-choice: requests with tools get 400",
)
def tools(facts: Facts) -> Answers:
    parser, switch = argument(facts.plan, "tool-call-parser"), argument(facts.plan, "enable-auto-tool-choice")
    if switch is not None and not parser:
        yield no("enable-auto-tool-choice is set without tool-call-parser: vLLM refuses to start so")
    elif parser and switch is None:
        says = "tool-call-parser is set without enable-auto-tool-choice: requests with tools get 400"
        yield doubtful(
            says, evidence=('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',)
        )
    elif parser:
        yield yes(f"tool calls are read by {parser}")


@check(
    "client.tool-parser",
    layer=Layer.CLIENT,
    question="Does the tool parser fit the model's family?",
    how="--tool-call-parser against the weights' config.json (model_type, architectures) and directory name",
    means="Calls come back as text, or empty: the parser looks for marks that this model does not write.",
    remedy="set tool-call-parser of the recipe to the one of the model's family",
    sample="tool-call-parser 'hermes' reads Qwen and Hermes, and the model is a DeepSeek (for it: deepseek_v3, ...)",
    after=("client.tools",),
)
def tool_parser(facts: Facts) -> Answers:
    yield from _fitting(facts, "tool-call-parser", _TOOLS)


@check(
    "client.reasoning-parser",
    layer=Layer.CLIENT,
    question="Does the reasoning parser fit the model's family?",
    how="--reasoning-parser against the weights' config.json (model_type, architectures) and directory name",
    means="The reasoning arrives mixed into the answer, or the answer is swallowed as reasoning.",
    remedy="set reasoning-parser of the recipe to the one of the model's family",
    sample="reasoning-parser 'qwen3' reads Qwen, and the model is a DeepSeek (for it: deepseek_r1, deepseek_v3, ...)",
)
def reasoning_parser(facts: Facts) -> Answers:
    yield from _fitting(facts, "reasoning-parser", _REASONING)


def _fitting(facts: Facts, flag: str, kind: int) -> Iterable[Finding]:
    parser = argument(facts.plan, flag)
    if not parser:
        return
    why = misfit(parser, names_of(facts.plan, model_config(facts)), kind)
    if why is not None:
        yield doubtful(f"{flag} {why}")
    else:
        yield yes(f"{flag} is {parser}")


# --- limits and address --------------------------------------------------------------------------


@check(
    "client.context",
    layer=Layer.CLIENT,
    question="Does the engine serve the context length of the plan?",
    how="max_model_len of GET /v1/models against --max-model-len",
    means="Clients that count on the planned length get 400 (maximum context length): the engine took less, or is another one.",
    remedy="sparkd restart, or tell the clients the length that is served",
    sample="deepseek-v4-flash is served with a context of 32768 tokens, the plan says 131072",
    after=("engine.down", "endpoint.unreachable", "endpoint.unauthorized", "endpoint.model-missing"),
)
def context(facts: Facts) -> Answers:
    if not is_claimed(facts):
        return
    wanted, found = tokens(argument(facts.plan, "max-model-len") or ""), listed(facts)
    served = found.get(facts.plan.served_name, 0) if isinstance(found, dict) else 0
    if wanted is None or not served:
        return
    if served == wanted:
        yield yes(f"it serves a context of {served} tokens")
    else:
        yield doubtful(f"{facts.plan.served_name} is served with a context of {served} tokens, the plan says {wanted}")


def tokens(text: str) -> int | None:
    """Pure. vLLM takes 131072, 128k (thousands) and 128K (of 1024); None for what is no number ("auto")."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text.strip())
    if match is None:
        return None
    factor = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}[match[2]]
    return int(float(match[1]) * factor)


@check(
    "client.lan-down",
    layer=Layer.CLIENT,
    question="Is the network of the clients up?",
    how="the interface that has the head's LAN address: /sys/class/net/INTERFACE/{flags,carrier}",
    means="The engine is well and nobody outside reaches it: the cable is out, or the switch is off.",
    remedy="is the LAN cable in? ip -br link; networkctl status",
    sample="enP7s7 has the clients' address 192.168.1.11 and no carrier",
    who=Who.HANDS,
)
def lan_down(facts: Facts) -> Answers:
    head = facts.configured.cluster.head
    if not facts.plan.is_head or facts.calm or head.lan_address is None:
        return
    for name in interfaces_with(str(head.lan)):
        state = link.read_link(name)
        if state.up and state.carrier is not False:
            yield yes(f"{name} has the clients' address {head.lan} and is up")
        else:
            what = "no carrier" if state.up else "is down"
            yield no(
                f"{name} has the clients' address {head.lan} and {what}",
                remedy=f"ip addr show {name}; is the cable in?",
            )


def interfaces_with(address: str) -> list[str]:
    import psutil

    found = psutil.net_if_addrs().items()
    return [name for name, addresses in found if any(one.address == address for one in addresses)]


@fact
def listening(facts: Facts) -> tuple[ports.Listener, ...]:
    """Who listens on the API port."""
    return tuple(ports.listeners((facts.plan.api_port,)))


@check(
    "client.base-url",
    layer=Layer.CLIENT,
    question="Can clients reach the address that sparkd tells them?",
    how="the head's LAN address among this host's addresses; /proc/net/tcp: the address that the API port is bound to",
    means="The engine answers on this machine alone, or the address that clients were given is on no interface.",
    remedy="ip -br addr; set `host: 0.0.0.0` in the recipe, and lan_address in sparkd.yaml to this machine's address",
    sample="the endpoint listens on 127.0.0.1 alone: nobody but this machine reaches it",
    after=("engine.down", "endpoint.unreachable", "client.lan-down"),
)
def base_url(facts: Facts) -> Answers:
    if not facts.plan.is_head or facts.calm:
        return
    head = facts.configured.cluster.head
    here = local_addresses()
    if str(head.lan) not in here:
        name = "lan_address" if head.lan_address else "link_address"
        yield no(f"clients are told {head.lan}:{facts.plan.api_port}, and no interface here has {head.lan} ({name})")
        return
    bound = [one.address for one in listening(facts)]
    if not bound:
        if facts.phase in _LOADED and engine_of(facts) and is_claimed(facts):
            yield cannot_tell(f"nobody listens on port {facts.plan.api_port}")
        return
    if reaches(str(head.lan), bound):
        yield yes(f"{head.lan}:{facts.plan.api_port} is this machine's, and the endpoint listens there")
    elif all(ip_address(address).is_loopback for address in bound):
        yield no(f"the endpoint listens on {' and '.join(bound)} alone: nobody but this machine reaches it")
    else:
        yield no(f"the endpoint listens on {' and '.join(bound)}, and clients are told {head.lan}")


def reaches(address: str, bound: Iterable[str]) -> bool:
    """Pure. A socket of all addresses, of the very one, or of IPv6's all, which takes IPv4 too unless it is told not to."""
    return any(one == address or ip_address(one).is_unspecified or one == f"::ffff:{address}" for one in bound)
