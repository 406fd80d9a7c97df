"""Reading images that others made: known formats only, and measured by their header before a pixel is decoded."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from g1jax.errors import G1Error
from g1jax.foreign import ForeignError, read_bytes
from g1jax.terminal import one_line

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is opened, whatever a file's name ends with. Others can run programs (EPS), or hide one image in another."""
MAX_BYTES = 16 * 2**20
MAX_PIXELS = 2**24  # 4096 × 4096, of which the widest mode takes 64 MiB

_MAX_SCANS = 50  # of a progressive JPEG, each of which is a pass over all pixels; encoders write about ten
_SCAN = b"\xff\xda"
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc2]\x00[\x0b-\x14]\x08(..)(..)", re.DOTALL)
_MAX_PARTS = 20_000  # chunks of a PNG, markers of a JPEG; Pillow takes microseconds for each


@contextlib.contextmanager
def open_image(
    source: Path | bytes, where: str, *, max_bytes: int = MAX_BYTES, error: type[G1Error] = ForeignError
) -> Iterator[Image.Image]:
    """An image whose header was read and whose pixels were not: `size` is known, and bounded.

    Everything Pillow raises inside of the block, for example while it decodes, is an `error` too.

    Raises:
        error: `source` is no image of `FORMATS`, damaged, or too large; the message begins with `where`.
    """
    raw = source if isinstance(source, bytes) else read_bytes(source, max_bytes=max_bytes, error=error)
    if len(raw) > max_bytes:
        raise error(f"{where}: an image of {len(raw)} bytes, and at most {max_bytes} are read")
    _check_parts(raw, where, error)
    _check_size(_size_in_header(raw), where, error)  # Pillow warns of large ones, on standard error
    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
            _check_size(picture.size, where, error)
            yield picture
    except G1Error:
        raise
    except Exception as reason:  # Pillow raises a dozen kinds, down to IndexError and struct.error
        raise error(f"{where}: its image cannot be read: {_why(reason)}") from None


def _check_size(size: tuple[int, int] | None, where: str, error: type[G1Error]) -> None:
    if size is not None and not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise error(f"{where}: an image of {size[0]}×{size[1]} pixels, and at most {MAX_PIXELS} are decoded")


def _size_in_header(raw: bytes) -> tuple[int, int] | None:
    """Width and height, if they stand where they usually do."""
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
    """Bounds what the size of a file does not: its parts, each of four bytes or more, and a microsecond or more."""
    parts = 0
    if raw.startswith(b"\x89PNG"):
        at = 8
        while at < len(raw) and parts <= _MAX_PARTS:
            at += 12 + int.from_bytes(raw[at : at + 4], "big")
            parts += 1
    elif raw.startswith(b"\xff\xd8"):
        # Within compressed data the byte 0xff is followed by 0, or by one of eight restart markers.
        parts = raw.count(b"\xff") - sum(raw.count(bytes([0xFF, code])) for code in (0, *range(0xD0, 0xD8)))
        if (scans := raw.count(_SCAN)) > _MAX_SCANS:
            raise error(f"{where}: a JPEG of {scans} scans, and at most {_MAX_SCANS} are decoded")
    if parts > _MAX_PARTS:
        raise error(f"{where}: an image file of more than {_MAX_PARTS} parts")


def _why(reason: Exception) -> str:
    said = one_line(str(reason), 200)
    said = "" if "<_io.BytesIO" in said else said  # "cannot identify image file <_io.BytesIO object at 0x…>"
    return said or f"no image of the formats {', '.join(FORMATS)}"
