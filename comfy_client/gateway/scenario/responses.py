"""What all HTTP responses have in common: security headers, and large bodies in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

SECURITY_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_CHUNK_BYTES = 64 * 1024


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """Yield a body in pieces, so that the stall timeout does not hit clients that read slowly."""
    for begin in range(0, len(data), _CHUNK_BYTES):
        yield data[begin : begin + _CHUNK_BYTES]
