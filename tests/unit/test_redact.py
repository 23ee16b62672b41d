"""No secret leaves, and ordinary text stays as it is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sparkd.model.redact import redact

FIELD = Path(__file__).parent.parent / "data" / "field"
SECRET = "S3cr3tValue99"


@pytest.mark.parametrize(
    "text",
    [
        "args: {'model_tag': '/m', 'port': 8000, 'api_key': ['S3cr3tValue99', 'x-S3cr3tValue99'], 'max_model_len': 9}",
        "non-default args: {'api_key': 'S3cr3tValue99'}",
        "Namespace(api_key=['S3cr3tValue99'], port=1)",
        "AsyncEngineArgs(hf_token='S3cr3tValue99')",
        "--api-key S3cr3tValue99 --port 8000",
        "--api-key=S3cr3tValue99",
        "vllm serve /m --api-key 'S3cr3tValue99' --x",
        "['vllm', 'serve', '--api-key', 'S3cr3tValue99', '--port', '8000']",
        '["--api-key", "S3cr3tValue99"]',
        "vllm\x00serve\x00--api-key\x00S3cr3tValue99\x00--port\x008000",
        "VLLM_API_KEY=S3cr3tValue99",
        'VLLM_API_KEY="S3cr3tValue99"',
        "export HUGGING_FACE_HUB_TOKEN=S3cr3tValue99",
        "HF_TOKEN: S3cr3tValue99",
        "hf_token=S3cr3tValue99",
        "SPARKD_CLUSTER_KEY=S3cr3tValue99",
        "SOME_KEY=S3cr3tValue99",
        "AWS_SECRET_ACCESS_KEY=S3cr3tValue99",
        "PASSWORD=S3cr3tValue99",
        "DB_PASSWORD='S3cr3tValue99 with blanks'",
        "password: S3cr3tValue99",
        "secret: S3cr3tValue99",
        '{"api_key": "S3cr3tValue99", "a": 1}',
        r"{\"api_key\": \"S3cr3tValue99\"}",
        "Authorization: Bearer S3cr3tValue99",
        '"authorization": "Bearer S3cr3tValue99"',
        "curl -H 'Authorization: Bearer S3cr3tValue99' http://x",
        "Proxy-Authorization: Basic S3cr3tValue99==",
        "Bearer S3cr3tValue99",
        "X-Api-Key: S3cr3tValue99",
        "Set-Cookie: session=S3cr3tValue99; Path=/",
        "https://user:S3cr3tValue99@host/x",
        "http://h/x?api_key=S3cr3tValue99&y=1",
        "key sk-proj-abcdefgh12345678S3cr3tValue99 was used",
        "hf_abcdefghijklmnopqrstuvwxS3cr3tValue99",
        "ghp_abcdefghijklmnopqrstS3cr3tValue99",
        "nvapi-abcdefghijklmnopqrstS3cr3tValue99",
        "-----BEGIN RSA PRIVATE KEY-----\nS3cr3tValue99\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nS3cr3tValue99 cut off",
    ],
)
def test_a_secret_is_hidden_and_its_name_is_not(text: str) -> None:
    hidden = redact(text)
    assert SECRET not in hidden and "[redacted]" in hidden
    assert redact(hidden) == hidden
    for word in ("api_key", "--api-key", "PASSWORD", "port", "serve", "PRIVATE KEY", "https://user", "max_model_len"):
        assert (word in text) == (word in hidden) or word not in text


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens: 4096, tokens/s: 12, tokenizer='x', num_tokens=5, 'max_num_batched_tokens': 8192",
        "GPU KV cache size: 1,234 tokens, Maximum concurrency for 1024 tokens per request: 3.06x",
        "store->get('0') got error: wait timeout after 600000ms, keys: /default_pg/0//2//cpu//0/2",
        "bos_token: <s> pad_token_id=0 eos_token='<|end|>' stop_token_ids=[151645]",
        "api_key=None 'token': None 'api_key': '***' 'api_key': ['***']",
        "KeyError: 'model.layers.0'",
        "password is required; --api-key is missing; invalid token: unexpected end",
        "def f(token: str = '', key: int = 0)",
        "https://host:8000/v1 tcp://10.77.0.1:29501 /etc/ssl/private/key.pem",
        "sha256:abcdef0123456789 task-12345678 disk-usage risk-free",
        "PWD=/root OLDPWD=/x SSH_AUTH_SOCK=/run/x num_speculative_tokens=2",
        "VLLM_API_KEY=$KEY --api-key /run/credentials/key",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "path", [*FIELD.glob("*.log"), *FIELD.glob("gb10/*.log"), *FIELD.glob("*.txt")], ids=lambda p: p.name
)
def test_a_log_without_secrets_is_left_alone(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    assert redact(text) == text


def test_requests_with_keys_lose_them() -> None:
    for path in FIELD.glob("http/k_*.txt"):
        assert "sk-SECRET" not in redact(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "odd", ["a-", "A_", "a.b.", "token=", "api_key: [", "-----BEGIN PRIVATE KEY-----\n", "\\"], ids=repr
)
def test_no_line_takes_for_ever(odd: str) -> None:
    """A client may make the engine log whatever it likes; 0.2 s where this was written, a quadratic search takes minutes."""
    text = odd * (50_000 // len(odd))
    began = time.thread_time()
    redact(text)
    assert time.thread_time() - began < 5


def test_a_private_key_whose_end_was_lost_hides_neither_itself_nor_the_next_in_part() -> None:
    pem = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKC\n"
    told = redact(f"{pem}{pem}-----END RSA PRIVATE KEY-----\nafter\n")
    assert "MIIE" not in told and told.endswith("after\n")
