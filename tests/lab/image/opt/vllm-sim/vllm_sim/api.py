"""The OpenAI-compatible server: routes, key, errors and access log in the recorded forms.

What a request asks for is decided in reply.py, the tokens come from the engine core through EngineClient; this module
turns both into HTTP.
"""

import json
import os
import select
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from vllm_sim import NOTE, VERSION, faults, log, text
from vllm_sim.admission import BadRequest, check
from vllm_sim.client import ENGINE_DEAD, EngineClient, EngineDead
from vllm_sim.config import EngineConfig
from vllm_sim.generation import Generation
from vllm_sim.metrics import Metrics

GUARDED = ("/v1", "/v2", "/inference", "/cohere")
ROUTES = {
    "/openapi.json": "GET, HEAD",
    "/load": "GET",
    "/version": "GET",
    "/kv_event_sources": "GET",
    "/health": "GET",
    "/metrics": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/models": "GET",
    "/ping": "GET, POST",
    "/invocations": "POST",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
}
STATISTICS_S = 10.0


class ApiServer:
    """Owns the listening socket and its threads, from ready to stop."""

    def __init__(self, config: EngineConfig, sock: socket.socket, client: EngineClient) -> None:
        self.config, self.client = config, client
        self.metrics = Metrics(config)
        keys = config.arguments["api_key"] or [key for key in [os.environ.get("VLLM_API_KEY")] if key]
        self.keys = frozenset(keys)
        self.created = int(time.time())
        self.answering = 0
        self._server = _Server(sock, self)

    def start(self) -> None:
        arguments = self.config.arguments
        host, port = arguments["host"] or "0.0.0.0", arguments["port"]
        log.info("entry.py:136", "Supported tasks: ['generate']")
        if arguments["enable_auto_tool_choice"]:
            log.info("parser_manager.py:202", '"auto" tool choice has been enabled.')
        log.info("entry.py:140", f"Starting vLLM server on http://{host}:{port}")
        log.info("launcher.py:186", "Available routes are:")
        for path, methods in ROUTES.items():
            for method in [methods] if "HEAD" in methods else methods.split(", "):
                log.info("launcher.py:195", f"Route: {path}, Methods: {method}")
        log.plain(f"INFO:     Started server process [{os.getpid()}]")
        log.plain("INFO:     Waiting for application startup.")
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(3600.0,), daemon=True).start()
        log.plain("INFO:     Application startup complete.")
        if not arguments["disable_log_stats"]:
            threading.Thread(target=self._log_statistics, daemon=True).start()

    def stop(self, *, max_s: float = 1.0) -> None:
        """Refuses new connections, lets the ones being answered finish for so long."""
        log.plain("INFO:     Shutting down")
        self._server.socket.close()
        deadline = time.monotonic() + max_s
        if self.answering:
            log.plain("INFO:     Waiting for connections to close. (CTRL+C to force quit)")
        while self.answering and time.monotonic() < deadline:
            time.sleep(0.01)
        log.plain("INFO:     Waiting for application shutdown.")
        log.plain("INFO:     Application shutdown complete.")
        log.plain(f"INFO:     Finished server process [{os.getpid()}]")

    def _log_statistics(self) -> None:
        """A line every 10 s while there is something to tell, and one after."""
        before = self.metrics.totals()
        was_active = False
        while True:
            time.sleep(STATISTICS_S)
            now = self.metrics.totals()
            prompt, made = ((later - earlier) / STATISTICS_S for later, earlier in zip(now, before, strict=True))
            active = bool(prompt or made or self.client.running)
            if active or was_active:
                log.info(
                    "loggers.py:271",
                    f"Engine 000: Avg prompt throughput: {prompt:.1f} tokens/s, Avg generation throughput: {made:.1f} tokens/s, "
                    f"Running: {self.client.running} reqs, Waiting: {self.client.waiting} reqs, GPU KV cache usage: "
                    f"{100 * self.client.cache_usage:.1f}%, Prefix cache hit rate: 0.0%",
                )
            before, was_active = now, active


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, sock: socket.socket, api: ApiServer) -> None:
        super().__init__(sock.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self.api = api


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST

    def _answer(self, method: str) -> None:
        api = self.server.api
        method = self.command
        path = urlsplit(self.path).path
        self.status, self.sent_bytes = 500, 0
        started = time.monotonic()
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        faults.hang_while("api-hang")
        api.answering += 1
        try:
            self._route(method, path, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            api.answering -= 1
        handler = path if path in ROUTES else "none"
        if path not in ("/metrics", "/health", "/load", "/ping", "/version"):
            api.metrics.request(handler, method, self.status, time.monotonic() - started, (length, self.sent_bytes))

    def _route(self, method: str, path: str, body: bytes) -> None:
        api = self.server.api
        if api.keys and path.startswith(GUARDED) and method != "OPTIONS" and not self._authorised():
            return self.send_json(401, {"error": "Unauthorized"})
        if path not in ROUTES:
            return self.send_json(404, {"detail": "Not Found"})
        if method not in ROUTES[path]:
            return self.send_json(405, {"detail": "Method Not Allowed"})
        if method == "POST" and path != "/ping":
            return self._post(path, body)
        return self._get(path)

    def _authorised(self) -> bool:
        scheme, _, token = (self.headers.get("authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and token in self.server.api.keys

    def _get(self, path: str) -> None:
        api = self.server.api
        if path in ("/health", "/ping"):
            return self.send_bytes(503 if api.client.dead else 200, b"", None)
        if path == "/metrics":
            api.metrics.gauges(api.client)
            return self.send_bytes(200, api.metrics.text().encode(), "text/plain; version=1.0.0; charset=utf-8")
        answers: dict[str, Any] = {
            "/version": {"version": VERSION},
            "/load": {
                "server_load": api.client.in_flight if api.config.arguments["enable_server_load_tracking"] else 0
            },
            "/kv_event_sources": {},
            "/openapi.json": {"openapi": "3.1.0", "info": {"title": f"vLLM {NOTE}", "version": VERSION}, "paths": {}},
            "/v1/models": _models(api),
        }
        return self.send_json(200, answers[path])

    def _post(self, path: str, body: bytes) -> None:
        api = self.server.api
        try:
            request = check(path, body, api.config)
        except BadRequest as exc:
            return self.send_json(exc.status, exc.body())
        if path == "/tokenize":
            words = request.get("prompt")
            ids = text.token_ids(words if isinstance(words, str) else json.dumps(request.get("messages", "")))
            length = api.config.max_model_len
            return self.send_json(200, {"count": len(ids), "max_model_len": length, "tokens": ids, "token_strs": None})
        if path == "/detokenize":
            return self.send_json(200, {"prompt": NOTE})
        if faults.on("http-500"):
            return self.send_json(500, error_body("Internal Server Error", "InternalServerError", 500))
        generation = Generation(request, api.config, api.client, api.metrics)
        try:
            if request.get("stream"):
                return self._stream(generation)
            return self.send_json(200, generation.whole(self._hung_up))
        except EngineDead:
            return self.send_json(500, error_body(ENGINE_DEAD, "InternalServerError", 500))

    def _stream(self, generation: Generation) -> None:
        self._head(200, "text/event-stream; charset=utf-8", {"transfer-encoding": "chunked"})
        try:
            for event in generation.events():
                self._chunk(event)
        except EngineDead:
            self._chunk(error_body(ENGINE_DEAD, "InternalServerError", 500))
        self._write_chunk(b"data: [DONE]\n\n")
        self._write_chunk(b"")

    def _chunk(self, event: Any) -> None:
        self._write_chunk(b"data: " + _dump(event) + b"\n\n")

    def _write_chunk(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _hung_up(self) -> bool:
        """Whether the client went away while it waited."""
        readable = select.select([self.connection], [], [], 0)[0]
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def send_json(self, status: int, value: Any) -> None:
        self.send_bytes(status, _dump(value), "application/json")

    def send_bytes(self, status: int, data: bytes, content_type: str | None) -> None:
        self.sent_bytes = len(data)
        self._head(status, content_type, {"content-length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, content_type: str | None, more: dict[str, str]) -> None:
        self.status = status
        self.send_response_only(status)
        headers = {"date": formatdate(usegmt=True), "server": "uvicorn"}
        if content_type:
            headers["content-type"] = content_type
        for name, value in {**headers, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if not self.server.api.config.arguments["disable_uvicorn_access_log"]:
            client = f"{self.client_address[0]}:{self.client_address[1]}"
            phrase = self.responses[status][0] if status in self.responses else ""
            log.plain(f'INFO:     {client} - "{self.command} {self.path} HTTP/1.1" {status} {phrase}')

    def log_message(self, format: str, *args: Any) -> None:
        """The access log is ours."""


def error_body(message: str, kind: str, code: int, parameter: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _models(api: ApiServer) -> dict[str, Any]:
    permission = {
        "id": "modelperm-bc3e0b6472043cc9",
        "object": "model_permission",
        "created": api.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    common = {"object": "model", "created": api.created, "owned_by": "vllm", "root": api.config.model, "parent": None}
    more = {"max_model_len": api.config.max_model_len, "permission": [permission]}
    return {"object": "list", "data": [{"id": name, **common, **more} for name in api.config.served_names]}
