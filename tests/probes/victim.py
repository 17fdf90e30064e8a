"""A function of another namespace, with everything that a stranger would like to have."""

import ctypes
import http.server
import os
import socket

MARK = "capstan-victim"
SHM_KEY = 0x43415053
home = os.environ["HOME"]
for path in (f"{home}/secret", f"/tmp/{MARK}", f"/dev/shm/{MARK}", "/kept/secret"):
    with open(path, "w") as file:
        file.write("theirs")
    os.chmod(path, 0o644)
os.chmod(home, 0o755)
libc = ctypes.CDLL(None, use_errno=True)
libc.shmget(SHM_KEY, 4096, 0o1000 | 0o666)
door = socket.socket(socket.AF_UNIX)
door.bind(f"{home}/door")
os.chmod(f"{home}/door", 0o777)
door.listen()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b'{"pid": %d, "home": "%s"}' % (os.getpid(), home.encode())
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *_):
        pass


http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
