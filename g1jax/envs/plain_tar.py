"""Reads the files of a gzipped tar archive sequentially, in bounded time and memory. Nothing is extracted to disk.

Python's `tarfile` reads extended headers of any declared size, and decompresses without a limit.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import IO

MAX_BYTES = 2**28  # unpacked; CIFAR-10 takes 186 MB
MAX_MEMBERS = 1000  # CIFAR-10 has nine
_BLOCK = 512
_CHUNK = 2**16


class ArchiveError(ValueError):
    """An archive is damaged or expands too far."""


Read = Callable[[int], bytes]
"""Reads up to this many bytes of a member."""


def members(file: IO[bytes]) -> Iterator[tuple[str, Read]]:
    """The names of an archive's regular files, each with a reader that is valid until the next iteration.

    Raises:
        ArchiveError: it is not a gzipped tar archive, is damaged, or exceeds `MAX_BYTES` or `MAX_MEMBERS`.
    """
    unpacked = _Unpacked(file)
    for number in range(MAX_MEMBERS):
        header = unpacked.read(_BLOCK)
        if not header.strip(b"\0"):  # two empty blocks end an archive
            if number == 0:
                raise ArchiveError("it is empty")
            return
        name, size, is_file = _parse(header)
        left = size

        def read(count: int) -> bytes:
            nonlocal left
            data = unpacked.read(min(count, left))
            left -= len(data)
            return data

        if is_file:
            yield name, read
        unpacked.skip(left + -size % _BLOCK)
    raise ArchiveError(f"it has more than {MAX_MEMBERS} members")


def _parse(header: bytes) -> tuple[str, int, bool]:
    """A member's name, size and whether it is a regular file."""
    if len(header) < _BLOCK:
        raise ArchiveError("a header is cut short")
    found = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _octal(header[148:156]) != found:
        raise ArchiveError("the checksum of a header is wrong")
    name = header[:100].split(b"\0")[0]
    if header[257:262] == b"ustar" and (prefix := header[345:500].split(b"\0")[0]) and header[262:264] != b"  ":
        name = prefix + b"/" + name
    return name.decode("ascii", "replace"), _octal(header[124:136]), header[156:157] in (b"0", b"\0")


def _octal(digits: bytes) -> int:
    digits = digits.strip(b" \0")
    if not digits or not all(ord("0") <= digit <= ord("7") for digit in digits):
        raise ArchiveError("a number in a header is not an octal number")
    return int(digits, 8)


class _Unpacked:
    """The decompressed bytes of a gzip file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._inflate = file, zlib.decompressobj(wbits=31)
        self._ready, self._left = b"", MAX_BYTES

    def read(self, count: int) -> bytes:
        """Exactly this many bytes, in about as much memory; fewer only at the start of an empty file."""
        parts = []
        while count > 0:
            if not self._ready and not self._fill():
                break
            parts.append(self._ready[:count])
            self._ready = self._ready[count:]
            count -= len(parts[-1])
        return b"".join(parts)

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.read(min(count, _CHUNK))) or count

    def _fill(self) -> bool:
        """Decompresses the next bytes; returns whether there are any."""
        while not self._ready:
            packed = self._inflate.unconsumed_tail or self._file.read(_CHUNK)
            if self._inflate.eof or not packed:
                if not self._inflate.eof and self._left < MAX_BYTES:
                    raise ArchiveError("it is cut short")
                return False
            try:
                self._ready = self._inflate.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise ArchiveError(f"it is not gzip, or damaged: {error}") from None
            self._left -= len(self._ready)
            if self._left < 0:
                raise ArchiveError(f"it holds more than {MAX_BYTES} bytes")
        return True
