"""Answers what it gets, as people write it with the standard library. Arguments: the HTTP version, and milliseconds of work."""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORK = float(sys.argv[2]) / 1000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/" + sys.argv[1]

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if WORK:
            time.sleep(WORK)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
