"""A small OpenAI-compatible server on loopback that misbehaves on request."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RESPONSE = "<perception>?</perception><think>Up.</think><answer>0</answer>"
RAW = {
    "nonsense": b"<html>what?</html>",
    "other_json": b'{"object": "list", "data": []}',
    "no_choices": b'{"id": "x", "object": "chat.completion", "choices": []}',
    "truncated": b'{"id": "x", "object": "chat.completion", "choices": [{"index": 0, "mess',
}


Sent = tuple[int, dict[str, str], bytes | Callable[[str], bytes]]
"""A status, headers and a body, which may depend on the request's `Authorization`."""


class Server(ThreadingHTTPServer):
    """Answers question n as `behaviors[n % len]`: ok, slow, hang, drip, cut, a status, or a key of RAW or `sent`."""

    daemon_threads = True

    def __init__(self, behaviors: list[str], response: str, port: int = 0, sent: dict[str, Sent] | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviors, self.response = behaviors, response
        self.sent = dict(sent or {})
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.answered: Counter[str] = Counter()  # by the picture
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that have disconnected."""

    def wait_until_idle(self) -> None:
        while self.under_way:
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            behavior = server.behaviors[len(server.requests) % len(server.behaviors)]
            server.requests.append(body)
            server.keys.append(self.headers.get("Authorization", ""))
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self._answer(behavior, body)
        except OSError:
            self.close_connection = True
        finally:
            with server.lock:
                server.under_way -= 1

    def _answer(self, behavior: str, body: dict[str, Any]) -> None:
        if behavior.isdigit():
            error = {"message": f"status {behavior}, key {self.headers.get('Authorization')}", "type": "error"}
            self._send(json.dumps({"error": error}).encode(), int(behavior), {"Retry-After": "0"})
        elif behavior in RAW:
            self._send(RAW[behavior])
        elif behavior in self.server.sent:
            status, headers, raw = self.server.sent[behavior]
            self._send(raw(self.headers.get("Authorization", "")) if callable(raw) else raw, status, headers)
        elif behavior == "hang":
            self.server.closing.wait(30)
            self.close_connection = True
        else:
            if behavior == "slow":
                time.sleep(0.2)
            raw = json.dumps(self._completion(body)).encode()
            if behavior == "cut":  # fewer bytes than promised
                self._send(raw[:40], length=len(raw))
                self.close_connection = True
            elif behavior == "drip":  # a byte at a time, never complete
                self._send(b"", length=len(raw))
                while not self.server.closing.wait(0.05):
                    self.wfile.write(b" ")
            else:
                first = body["messages"][0]["content"][0]
                with self.server.lock:
                    self.server.answered[first["image_url"]["url"] if "image_url" in first else first["text"]] += 1
                self._send(raw)

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        response = self.server.response.replace("{key}", self.headers.get("Authorization", ""))
        message = {"role": "assistant", "content": response}
        usage = {"prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        head = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        return {**head, "choices": [choice], "usage": usage}

    def _send(
        self, raw: bytes, status: int = 200, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw) if length is None else length))
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def serving(
    *behaviors: str, response: str = RESPONSE, port: int = 0, sent: dict[str, Sent] | None = None
) -> Iterator[Server]:
    """A running server. Behaviors may be keys of `sent`."""
    server = Server(list(behaviors) or ["ok"], response, port, sent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
