"""A server of chat completions on 127.0.0.1 that does what a test says, also what no server should do."""

import contextlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """`respond(handler, body)` writes the reply to a request, by `handler.give` or as it likes.

    `bodies` keeps all requests, `asked` counts them by their chat (JSON), `paths` and `keys` (headers of
    authorisation) what else was sent; `most` is the largest number of requests at a time.
    """

    daemon_threads = True

    def __init__(self, respond):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.respond = respond
        self.bodies, self.asked, self.paths, self.keys = [], Counter(), set(), set()
        self.most = self.now = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address):
        """Print nothing about clients that were killed."""


class ChatHandler(BaseHTTPRequestHandler):
    """One request: `number` of all from 1, `repeat` of its chat from 1."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = json.dumps(body["messages"])
        with server.lock:
            server.bodies.append(body)
            server.asked[chat] += 1
            server.paths.add(self.path)
            server.keys.add(self.headers.get("Authorization") or self.headers.get("api-key"))
            self.number, self.repeat = len(server.bodies), server.asked[chat]
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            with contextlib.suppress(OSError):  # the client has gone
                server.respond(self, body)
        finally:
            with server.lock:
                server.now -= 1

    def give(self, content, status=200, **headers):
        """Send bytes, or a text as a chat completion, with further headers (_ for -)."""
        data = completion(content) if isinstance(content, str) else content
        self.send_response(status)
        for name, value in {"Content_Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def completion(text, prompt_tokens=100, completion_tokens=10):
    """The bytes of a chat completion."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()
