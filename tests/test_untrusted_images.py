"""Untrusted images: known formats, bounded pixels and bounded time."""

import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from g1jax.untrusted import UntrustedError
from g1jax.untrusted_images import FORMATS, open_image


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(side: int, data: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND")


SMALL = Image.new("RGB", (16, 16), "red")
PIXELS = (b"\0" + b"\xff\0\0" * 16) * 16
JPEG = encoded(SMALL, "JPEG", progressive=True)


def wide_jpeg(width: int, height: int) -> bytes:
    at = JPEG.index(b"\xff\xc2") + 5
    return JPEG[:at] + struct.pack(">HH", height, width) + JPEG[at + 4 :]


def webp(width: int, height: int) -> bytes:
    """A canvas of this size with a small image on it."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + canvas + encoded(SMALL, "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("kind", FORMATS)
def test_known_formats_are_read(kind: str, tmp_path: Path) -> None:
    raw = encoded(SMALL, kind)
    (tmp_path / "a").write_bytes(raw)
    for source in (raw, tmp_path / "a"):
        with open_image(source, "a") as picture:
            assert picture.size == (16, 16)
            red, green, blue = picture.convert("RGB").getpixel((3, 3))  # type: ignore[misc]
            assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "its image cannot be read: not an image of the formats PNG, JPEG, WEBP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n", "not an image of the formats"),
        (encoded(SMALL, "GIF"), "not an image of the formats"),
        (png(16, PIXELS)[:-30], "its image cannot be read"),
        (png(16, PIXELS[:100]), "its image cannot be read"),
        (png(9000, PIXELS), "an image of 9000×9000 pixels; the limit is 16777216"),
        (png(60_000, PIXELS), "an image of 60000×60000 pixels; the limit is 16777216"),
        (webp(16_383, 16_383), "an image of 16383×16383 pixels"),
        (wide_jpeg(65_500, 65_500), "an image of 65500×65500 pixels"),
        (png(16, PIXELS, chunk(b"abCd") * 30_000), "an image file of more than 20000 parts"),
        (png(16, PIXELS, chunk(b"zTXt", b"a\0\0" + zlib.compress(b" " * 10_000_000))), "Decompressed data too large"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 30_000 + JPEG[2:], "an image file of more than 20000 parts"),
        (JPEG[:-2] + JPEG[JPEG.rindex(b"\xff\xda") : -2] * 100 + JPEG[-2:], "scans; the limit is 50"),
        (bytes(2**24 + 1), "an image of 16777217 bytes; the limit is 16777216"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_invalid_images_are_one_line(raw: bytes, message: str) -> None:
    start = time.process_time()
    with pytest.raises(UntrustedError) as error, open_image(raw, "rows:3") as picture:
        picture.load()
    assert str(error.value).startswith("rows:3: ")
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert time.process_time() - start < 10
