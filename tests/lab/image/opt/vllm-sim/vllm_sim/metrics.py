"""/metrics: the recorded families of vLLM 0.32.0 in their order (metrics.txt), with this process's own numbers in them."""

import re
import resource
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vllm_sim.client import EngineClient
from vllm_sim.config import EngineConfig

TEMPLATE = Path(__file__).with_name("metrics.txt")
SAMPLE = re.compile(r"([^\s{]+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
DRAFT_ACCEPTANCE = (0.892, 0.566, 0.09)  # by position, as published for two and three draft tokens
HTTP_BUCKETS = ("0.1", "0.5", "1.0", "+Inf")


@dataclass
class Sample:
    name: str
    labels: dict[str, str]
    value: float

    def __str__(self) -> str:
        inside = ",".join(f'{key}="{value}"' for key, value in sorted(self.labels.items()))
        return f"{self.name}{{{inside}}} {self.value!r}" if inside else f"{self.name} {self.value!r}"


class Metrics:
    """Thread-safe. Names are as in the exposition, `_total` included; labels are those besides engine and model_name."""

    def __init__(self, config: EngineConfig) -> None:
        self._lock = threading.Lock()
        self._drafts = int((config.speculative or {}).get("num_speculative_tokens", 0))
        self._lines: list[str | Sample] = []
        self._samples: dict[str, list[Sample]] = {}
        self._http: dict[str, list[Sample]] = {}
        for line in TEMPLATE.read_text().splitlines():
            self._take(line, config)
        self._fill_information(config)

    def _take(self, line: str, config: EngineConfig) -> None:
        if line.startswith("# vllm-sim:") or ("spec_decode" in line and not self._drafts):
            return
        if line.startswith("#"):
            self._lines.append(line)
            return
        found = SAMPLE.match(line)
        if found is None:
            return
        labels = dict(LABEL.findall(found[2] or ""))
        if "model_name" in labels:
            labels["model_name"] = config.served_names[0]
        value = time.time() if found[1].endswith("_created") else float(found[3])
        positions = [labels.get("position")]
        if positions != [None]:
            positions = [str(number) for number in range(self._drafts)] if positions == ["0"] else []
        for position in positions:
            more = {} if position is None else {"position": position}
            sample = Sample(found[1], {**labels, **more}, value)
            self._lines.append(sample)
            self._samples.setdefault(found[1], []).append(sample)

    def _fill_information(self, config: EngineConfig) -> None:
        tokens = config.kv_cache_tokens
        self._samples["vllm:cache_config_info"][0].labels.update(
            block_size=str(config.arguments.get("block_size") or 16),
            cache_dtype=str(config.arguments.get("kv_cache_dtype")),
            gpu_memory_utilization=str(config.gpu_memory_utilization),
            kv_cache_size_tokens=str(tokens),
            kv_cache_max_concurrency=str(tokens / config.max_model_len),
        )
        version = sys.version_info
        self._samples["python_info"][0].labels.update(
            minor=str(version.minor), patchlevel=str(version.micro), version=sys.version.split()[0]
        )
        self._samples["process_start_time_seconds"][0].value = time.time()

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        with self._lock:
            for sample in self._matching(name, labels):
                sample.value += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            for sample in self._matching(name, labels):
                sample.value = value

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """For histograms."""
        with self._lock:
            for sample in self._samples.get(f"{name}_bucket", ()):
                if value <= float(sample.labels["le"]):
                    sample.value += times
            for suffix, amount in (("_count", times), ("_sum", value * times)):
                for sample in self._samples[name + suffix]:
                    sample.value += amount

    def tokens(self, prompt: int, made: int, seconds: float, first: bool) -> None:
        """One engine step of one request: `made` tokens after `seconds`; with the first, its prompt was computed."""
        if first:
            self.add("vllm:prompt_tokens_total", prompt)
            self.add("vllm:prompt_tokens_by_source_total", prompt, source="local_compute")
            self.add("vllm:prefix_cache_queries_total", prompt)
            self.observe("vllm:time_to_first_token_seconds", seconds)
        else:
            self.observe("vllm:inter_token_latency_seconds", seconds / made, times=made)
        self.add("vllm:generation_tokens_total", made)
        self.observe("vllm:iteration_tokens_total", prompt + made)
        if self._drafts:
            self._draft()

    def _draft(self) -> None:
        self.add("vllm:spec_decode_num_drafts_total")
        self.add("vllm:spec_decode_num_draft_tokens_total", self._drafts)
        for position in range(self._drafts):
            rate = DRAFT_ACCEPTANCE[min(position, len(DRAFT_ACCEPTANCE) - 1)]
            self.add("vllm:spec_decode_num_accepted_tokens_per_pos_total", rate, position=str(position))
            self.add("vllm:spec_decode_num_accepted_tokens_total", rate)

    def finished(self, reason: str, prompt: int, made: int, seconds: float) -> None:
        self.add("vllm:request_success_total", finished_reason=reason)
        self.observe("vllm:request_prompt_tokens", prompt)
        self.observe("vllm:request_generation_tokens", made)
        self.observe("vllm:e2e_request_latency_seconds", seconds)
        self.observe("vllm:request_inference_time_seconds", seconds)
        self.observe("vllm:request_decode_time_seconds", seconds)
        self.observe("vllm:request_time_per_output_token_seconds", seconds / max(1, made))

    def gauges(self, client: EngineClient) -> None:
        self.set("vllm:num_requests_running", float(client.running))
        self.set("vllm:num_requests_waiting", float(client.waiting))
        self.set("vllm:kv_cache_usage_perc", client.cache_usage)
        self.set("vllm:num_preemptions_total", float(client.preemptions))

    def totals(self) -> tuple[float, float]:
        """Prompt and generated tokens so far."""
        with self._lock:
            return self._total("vllm:prompt_tokens_total"), self._total("vllm:generation_tokens_total")

    def _total(self, name: str) -> float:
        return sum(sample.value for sample in self._samples[name])

    def _matching(self, name: str, labels: dict[str, str]) -> list[Sample]:
        return [sample for sample in self._samples.get(name, ()) if labels.items() <= sample.labels.items()]

    def request(self, handler: str, method: str, status: int, seconds: float, sizes: tuple[int, int]) -> None:
        """One HTTP request; `sizes` are of the request's and of the answer's body, in bytes."""
        self.observe("http_request_duration_highr_seconds", seconds)
        with self._lock:
            by_status = {"handler": handler, "method": method, "status": f"{status // 100}xx"}
            self._count("http_requests_total", by_status, 1)
            for name, size in zip(("http_request_size_bytes", "http_response_size_bytes"), sizes, strict=True):
                self._count(f"{name}_count", {"handler": handler}, 1)
                self._count(f"{name}_sum", {"handler": handler}, size)
            by_method = {"handler": handler, "method": method}
            for edge in HTTP_BUCKETS:
                within = seconds <= float(edge)
                self._count("http_request_duration_seconds_bucket", {**by_method, "le": edge}, int(within))
            self._count("http_request_duration_seconds_count", by_method, 1)
            self._count("http_request_duration_seconds_sum", by_method, seconds)

    def _count(self, name: str, labels: dict[str, str], amount: float) -> None:
        samples = self._http.setdefault(name, [])
        for sample in samples:
            if sample.labels == labels:
                sample.value += amount
                return
        samples.append(Sample(name, labels, float(amount)))

    def text(self) -> str:
        """The exposition. The http families get their samples here: their labels are not known before."""
        self._measure_process()
        with self._lock:
            lines: list[str] = []
            for line in self._lines:
                lines.append(str(line))
                if isinstance(line, str) and line.startswith("# TYPE http_"):
                    family = line.split()[2]
                    names = [name for name in self._http if re.fullmatch(f"{family}(_bucket|_count|_sum)?", name)]
                    lines += [str(sample) for name in names for sample in self._http[name]]
            return "\n".join(lines) + "\n"

    def _measure_process(self) -> None:
        pages = Path("/proc/self/statm").read_text().split()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.set("process_virtual_memory_bytes", float(int(pages[0]) * resource.getpagesize()))
        self.set("process_resident_memory_bytes", float(int(pages[1]) * resource.getpagesize()))
        self.set("process_cpu_seconds_total", round(usage.ru_utime + usage.ru_stime, 2))
        self.set("process_open_fds", float(len(list(Path("/proc/self/fd").iterdir()))))
