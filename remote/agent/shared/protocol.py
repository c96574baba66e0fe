"""Frames over a byte stream, the same on both ends: two lengths, a JSON object, raw bytes.

>II   length of the JSON, length of the bytes

to the agent    {"id": n, "op": ..., "args": {...}} | {"id": n, "data": {...}}
                {"id": n, "end": true} | {"ping": true}
from it         {"id": n, "event": {...}} | {"id": n, "result": {...}}
                {"id": n, "error": {...}} | {"alive": true}
"""

import json
import struct
import zlib
from typing import Any, Callable, Dict, Optional, Tuple

HEADER = struct.Struct(">II")
MAX_JSON = 64 << 20
MAX_BLOB = 4 << 20
CHUNK = 512 << 10
"""Bytes of a file in one frame."""
PIECE = 8 << 20
"""Bytes of a large file that one of several channels carries at a time."""

Frame = Tuple[Dict[str, Any], bytes]


class BadFrame(Exception):
    """The other end sent what can't be a frame of ours."""


def encode(message: Dict[str, Any], blob_length: int = 0) -> bytes:
    """Header and JSON; the caller sends `blob_length` raw bytes behind it."""
    text = json.dumps(message, separators=(",", ":")).encode("ascii")
    return HEADER.pack(len(text), blob_length) + text


def decode_json(text: bytes) -> Dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"no JSON: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise BadFrame("no JSON object")
    return message


def read_frame(
    read_exactly: Callable[[int], bytes],
    max_json: int = MAX_JSON,
    max_blob: int = MAX_BLOB,
    max_parts: Optional[int] = None,
) -> Frame:
    """`read_exactly(n)` returns n bytes or raises EOFError. Raises BadFrame before reading a body
    that is too large.

    `max_parts`: commas and brackets in the JSON; without it 16 MB of brackets become 400 MB of
    lists.
    """
    json_length, blob_length = HEADER.unpack(read_exactly(HEADER.size))
    if json_length > max_json or blob_length > max_blob:
        raise BadFrame(f"a frame of {json_length} + {blob_length} bytes")
    text = read_exactly(json_length)
    if max_parts is not None and text.count(b",") + text.count(b"[") + text.count(b"{") > max_parts:
        raise BadFrame("an answer of too many parts")
    message = decode_json(text)
    return message, read_exactly(blob_length) if blob_length else b""


def pack(data: bytes) -> Tuple[bytes, bool]:
    """Compress what gains from it; checkpoints and images don't. Returns the bytes to send, and
    whether they are compressed."""
    sample = data[: 16 << 10]
    if len(data) < 200 or len(zlib.compress(sample, 1)) > 0.85 * len(sample):
        return data, False
    return zlib.compress(data, 1), True


def unpack(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes come out, whatever was sent; raises BadFrame for more or for damage."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, limit)
    except zlib.error as error:
        raise BadFrame(f"damaged compression: {error}") from None
    if inflater.unconsumed_tail or not inflater.eof:
        raise BadFrame("more than was announced")
    return plain
