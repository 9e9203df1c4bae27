"""What a peer does wrong (RFC 9113, section 5.4): to a whole connection, or to one stream."""

from __future__ import annotations


class BrokenConnectionError(Exception):
    """The connection can't go on. ``code`` is one of the error codes in `xds.transport.frames`."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class BrokenStreamError(Exception):
    """One stream can't go on."""

    def __init__(self, stream: int, code: int, why: str) -> None:
        super().__init__(why)
        self.stream, self.code = stream, code
