"""An http function with batching, in Python's standard library: how often each letter occurs in the head of a file.

Capstan sets PORT, waits for GET /healthz, and posts each batch as a JSON list; the answer is a list of the same length.
"""

import http.server
import json
import os
import socketserver
import string


def letters(path: str) -> dict:
    with open(path, "rb") as file:
        text = file.read(64 * 1024).decode("utf-8", "replace").lower()
    counts = {letter: text.count(letter) for letter in string.ascii_lowercase}
    most = max(counts, key=counts.get)
    return {"letters": sum(counts.values()), "most": most, "share": round(counts[most] / max(1, sum(counts.values())), 4)}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Without this an answer's head and body wait for each other in the network stack.
    disable_nagle_algorithm = True

    def answer(self, status: int, value) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def do_GET(self) -> None:
        self.answer(200, "ready")

    def do_POST(self) -> None:
        inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        try:
            self.answer(200, [letters(path) for path in inputs])
        except OSError as error:
            self.answer(500, {"type": type(error).__name__, "message": str(error)})

    def log_message(self, *_) -> None:
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
