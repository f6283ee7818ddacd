"""JSON as editors and shells write it: with a byte order mark, in UTF-8, UTF-16 or UTF-32."""

import json


def plain_json(data: bytes) -> bytes:
    """Return JSON in UTF-8 without a byte order mark; the parser reports content that is not valid."""
    encoding = json.detect_encoding(data)
    return data if encoding == "utf-8" else data.decode(encoding, "replace").encode()
