"""Lines of JSON, which the checker does not know how to write."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(ctx, value):
    if isinstance(value, str):
        return value.encode()
    return json.dumps(value).encode() + b"\n"
