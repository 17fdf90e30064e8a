"""A Flask application that answers what it gets; run by itself, or by gunicorn."""

import logging
import os

from flask import Flask, request

app = Flask(__name__)


@app.post("/")
def echo():
    return request.get_data(), 200, {"content-type": "application/json"}


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app.run("127.0.0.1", int(os.environ["PORT"]))
