"""Reading untrusted images: known formats only, with the size checked in the header before any pixel is decoded."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from g1jax.errors import G1Error
from g1jax.terminal import one_line
from g1jax.untrusted import UntrustedError, read_bytes

FORMATS = ("PNG", "JPEG", "WEBP")
"""The formats that are opened, whatever the suffix. Others can run programs (EPS) or hide one image in another."""
MAX_BYTES = 16 * 2**20
MAX_PIXELS = 2**24  # 4096 × 4096, or 64 MiB in the widest mode

_MAX_SCANS = 50  # of a progressive JPEG; each is a pass over all pixels, and encoders write about ten
_SCAN = b"\xff\xda"
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc2]\x00[\x0b-\x14]\x08(..)(..)", re.DOTALL)
_MAX_PARTS = 20_000  # chunks of a PNG, markers of a JPEG; Pillow takes microseconds for each


@contextlib.contextmanager
def open_image(
    source: Path | bytes, where: str, *, max_bytes: int = MAX_BYTES, error: type[G1Error] = UntrustedError
) -> Iterator[Image.Image]:
    """An image with its header read and its pixels not yet decoded: `size` is known and bounded.

    Any exception of Pillow's inside the block, for example while decoding, is raised as `error`.

    Raises:
        error: `source` is not an image of `FORMATS`, is damaged, or is too large; the message starts with `where`.
    """
    raw = source if isinstance(source, bytes) else read_bytes(source, max_bytes=max_bytes, error=error)
    if len(raw) > max_bytes:
        raise error(f"{where}: an image of {len(raw)} bytes; the limit is {max_bytes}")
    _check_parts(raw, where, error)
    _check_size(_size_in_header(raw), where, error)  # before Pillow, which warns about large ones on standard error
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            _check_size(picture.size, where, error)
            yield picture
    except G1Error:
        raise
    except Exception as reason:  # Pillow raises a dozen kinds, down to IndexError and struct.error
        message = one_line(str(reason), 200)
        if not message or "<_io.BytesIO" in message:  # "cannot identify image file <_io.BytesIO object at 0x…>"
            message = f"not an image of the formats {', '.join(FORMATS)}"
        raise error(f"{where}: its image cannot be read: {message}") from None


def _check_size(size: tuple[int, int] | None, where: str, error: type[G1Error]) -> None:
    if size is not None and not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise error(f"{where}: an image of {size[0]}×{size[1]} pixels; the limit is {MAX_PIXELS}")


def _size_in_header(raw: bytes) -> tuple[int, int] | None:
    """Width and height, if the header has them at the usual place."""
    if raw.startswith(b"\x89PNG") and len(raw) >= 24:
        return int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
    if raw[8:16] == b"WEBPVP8X" and len(raw) >= 30:
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    if raw[8:16] == b"WEBPVP8L" and len(raw) >= 25:
        bits = int.from_bytes(raw[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    frame = _JPEG_FRAME.search(raw) if raw.startswith(b"\xff\xd8") else None
    return (int.from_bytes(frame[2], "big"), int.from_bytes(frame[1], "big")) if frame else None


def _check_parts(raw: bytes, where: str, error: type[G1Error]) -> None:
    """Bounds the number of parts: each may be as small as four bytes and takes a microsecond or more to decode."""
    parts = 0
    if raw.startswith(b"\x89PNG"):
        at = 8
        while at < len(raw) and parts <= _MAX_PARTS:
            at += 12 + int.from_bytes(raw[at : at + 4], "big")
            parts += 1
    elif raw.startswith(b"\xff\xd8"):
        # In compressed data the byte 0xff is followed by 0 or by one of eight restart markers.
        parts = raw.count(b"\xff") - sum(raw.count(bytes([0xFF, code])) for code in (0, *range(0xD0, 0xD8)))
        if (scans := raw.count(_SCAN)) > _MAX_SCANS:
            raise error(f"{where}: a JPEG of {scans} scans; the limit is {_MAX_SCANS}")
    if parts > _MAX_PARTS:
        raise error(f"{where}: an image file of more than {_MAX_PARTS} parts")
