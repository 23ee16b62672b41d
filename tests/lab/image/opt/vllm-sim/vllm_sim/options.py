"""The options of `vllm serve` 0.32 that this lab knows, in the order in which `non-default args` prints them.

One line an option: name, kind, default, aliases or choices. Kinds: str, int, float, size (an int that may be written 128k or
auto), bool (--x / --no-x), flag (--x alone), json, config (a JSON value with fields of its own), list (several values).
"""

from dataclasses import dataclass
from typing import Any

KV_CACHE_DTYPES = "auto bfloat16 float16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc nvfp4"
DTYPES = "auto bfloat16 float float16 float32 half"
LOG_LEVELS = "critical debug error info trace warning"

TABLE = f"""
headless flag
api-server-count int - -asc
config str
host str
port int 8000
uds str
uvicorn-log-level choice info {LOG_LEVELS}
disable-uvicorn-access-log bool False
disable-access-log-for-endpoints str
allow-credentials bool False
allowed-origins json
allowed-methods json
allowed-headers json
api-key list
lora-modules list
chat-template str
chat-template-content-format choice auto auto openai string
trust-request-chat-template bool False
default-chat-template-kwargs json
response-role str assistant
ssl-keyfile str
ssl-certfile str
ssl-ca-certs str
enable-ssl-refresh bool False
ssl-cert-reqs int 0
root-path str
middleware list
return-tokens-as-token-ids bool False
disable-frontend-multiprocessing bool False
enable-request-id-headers bool False
enable-auto-tool-choice bool False
exclude-tools-when-tool-choice-none bool False
tool-call-parser str
tool-parser-plugin str
tool-server str
log-config-file str
max-log-len int
disable-fastapi-docs bool False
enable-prompt-tokens-details bool False
enable-server-load-tracking bool False
enable-force-include-usage bool False
enable-tokenizer-info-endpoint bool False
enable-log-outputs bool False
enable-log-deltas bool True
enable-scale-out bool False
h11-max-incomplete-event-size int
h11-max-header-count int
log-error-stack bool False
tokens-only bool False
model str
runner choice auto auto draft generate pooling
convert choice auto auto classify embed none reward
tokenizer str
tokenizer-mode choice auto auto deepseek_v32 deepseek_v4 hf mistral slow
trust-remote-code bool False
dtype choice auto {DTYPES}
seed int 0
hf-config-path str
allowed-local-media-path str
allowed-media-domains list
revision str
code-revision str
tokenizer-revision str
max-model-len size
quantization str - -q
enforce-eager bool False
max-logprobs int 20
logprobs-mode str raw_logprobs
disable-sliding-window bool False
disable-cascade-attn bool False
skip-tokenizer-init bool False
enable-prompt-embeds bool False
served-model-name list
config-format str auto
hf-token str
hf-overrides json
pooler-config json
generation-config str auto
override-generation-config json
enable-sleep-mode bool False
model-impl str auto
logits-processors list
io-processor-plugin str
load-format str auto
download-dir str
safetensors-load-strategy str
model-loader-extra-config json
ignore-patterns list
use-tqdm-on-load bool True
attention-backend str
reasoning-parser str
reasoning-parser-plugin str
distributed-executor-backend choice - external_launcher mp ray uni
pipeline-parallel-size int 1 -pp
master-addr str 127.0.0.1
master-port int 29501
nnodes int 1 -n
node-rank int 0 -r
distributed-timeout-seconds int
cpu-distributed-timeout-seconds int
tensor-parallel-size int 1 -tp
prefill-context-parallel-size int 1 -pcp
decode-context-parallel-size int 1 -dcp
data-parallel-size int 1 -dp
data-parallel-rank int - -dpn
data-parallel-size-local int - -dpl
data-parallel-address str - -dpa
data-parallel-rpc-port int - -dpp
data-parallel-backend str mp -dpb
data-parallel-hybrid-lb bool False -dph
data-parallel-external-lb bool False -dpe
enable-expert-parallel bool False -ep
enable-ep-weight-filter bool False
all2all-backend str allgather_reducescatter
enable-dbo bool False
enable-eplb bool False
eplb-config json
expert-placement-strategy choice linear linear round_robin
max-parallel-loading-workers int
disable-custom-all-reduce bool False
worker-cls str auto
worker-extension-cls str
block-size int
gpu-memory-utilization float 0.92
kv-cache-memory-bytes size
swap-space float 4
kv-cache-dtype choice auto {KV_CACHE_DTYPES}
num-gpu-blocks-override int
enable-prefix-caching bool -
prefix-caching-hash-algo str sha256
cpu-offload-gb float 0
calculate-kv-scales bool False
kv-sharing-fast-prefill bool False
mamba-cache-dtype str auto
mamba-block-size int
kv-offloading-size float
kv-offloading-backend str native
limit-mm-per-prompt json
media-io-kwargs json
mm-processor-kwargs json
mm-processor-cache-gb float 4
mm-encoder-tp-mode str weights
skip-mm-profiling bool False
enable-lora bool -
max-loras int 1
max-lora-rank int 16
otlp-traces-endpoint str
show-hidden-metrics-for-version str
enable-mfu-metrics bool False
max-num-batched-tokens size
max-num-seqs int
max-num-partial-prefills int 1
long-prefill-token-threshold int 0
scheduling-policy choice fcfs fcfs priority
enable-chunked-prefill bool -
scheduler-cls str
disable-hybrid-kv-cache-manager bool -
async-scheduling bool -
stream-interval int 1
cudagraph-capture-sizes list
max-cudagraph-capture-size int
speculative-config json - -sc
kv-transfer-config json
kv-events-config json
compilation-config config - -cc
attention-config json - -ac
kernel-config json
additional-config json
structured-outputs-config json
profiler-config json
optimization-level str - -O
enable-log-requests bool False
disable-log-requests bool False
disable-log-stats bool False
aggregate-engine-logging bool False
"""


@dataclass(frozen=True)
class Option:
    name: str
    kind: str
    default: Any
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def dest(self) -> str:
        return self.name.replace("-", "_")


def _default(kind: str, word: str) -> Any:
    if word == "-":
        return None
    if kind in ("bool", "flag"):
        return word == "True"
    if kind == "int":
        return int(word)
    return float(word) if kind == "float" else word


def _option(line: str) -> Option:
    name, kind, *rest = line.split()
    default = _default(kind, rest[0]) if rest else (False if kind == "flag" else None)
    more = tuple(rest[1:])
    if kind == "choice":
        return Option(name, kind, default, choices=more)
    return Option(name, kind, default, aliases=more)


OPTIONS = [_option(line) for line in TABLE.splitlines() if line]
