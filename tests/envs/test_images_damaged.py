"""CIFAR-10 files that are hostile or damaged."""

import gzip
import io
import re
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from g1jax.envs import images, plain_tar
from tests.envs.cifar10_files import (
    Files,
    batch,
    binary_files,
    py2_batch,
    py2_dict,
    py2_global,
    py2_list,
    py2_meta,
    py2_string,
    python_files,
    write_archive,
    write_folder,
)

pytestmark = pytest.mark.usefixtures("without_cifar10")


# ---- CIFAR-10, hostile -----------------------------------------------------------------------------------------------


def call(module: str, name: str, argument: str) -> bytes:
    return py2_global(module, name) + py2_string(argument.encode()) + b"\x85R"


@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize("file", ["data_batch_1", "batches.meta"])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("__builtin__", "eval"),
        ("builtins", "exec"),
        ("numpy", "load"),
        ("numpy", "fromfile"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.testing", "runstring"),
        ("g1jax.envs.images", "load_images"),
    ],
)
def test_a_pickle_that_asks_for_code_is_refused_and_not_run(
    module: str, name: str, file: str, write: Callable[[Path, Files], Path], tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    hostile = py2_dict({b"data": call(module, name, f"touch {marker}")})
    path = write(tmp_path, python_files() | {file: hostile})
    with pytest.raises(
        ValueError, match=f"not a plain CIFAR-10 file: it imports {re.escape(module)}.{re.escape(name)}"
    ):
        images.load_images(str(path), 1)
    assert not marker.exists()


def test_setting_attributes_cannot_reach_the_stand_ins(tmp_path: Path) -> None:
    """The BUILD opcode on a global instead of an instance must not write to it."""
    poisoned = b"\x80\x02" + py2_global("numpy", "ndarray") + b"}" + py2_string(b"values") + b"K\0sb."
    with pytest.raises(ValueError, match="data_batch_1 is damaged or not a plain"):
        images.load_images(str(write_folder(tmp_path, python_files() | {"data_batch_1": poisoned})), 1)
    assert images.load_images(str(write_folder(tmp_path / "sound", python_files())), 1).images.shape[0] == 10


@pytest.mark.parametrize("dtype", [b"O8", b"f4", b"i1", b"V1"])
def test_other_dtypes_are_refused(dtype: bytes, tmp_path: Path) -> None:
    files = python_files() | {"data_batch_1": py2_batch(*batch(0), dtype=dtype)}
    with pytest.raises(ValueError, match="not uint8"):
        images.load_images(str(write_folder(tmp_path, files)), 1)


@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_huge_files_are_not_read(
    write: Callable[[Path, Files], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, binary_files())
    monkeypatch.setattr(images, "_MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"data_batch_1.* more than 1000 bytes"):
        images.load_images(str(path), 1)


def doubled(depth: int) -> bytes:
    """A tuple of twice the tuple before it: it has few parts, but and hashing or printing it takes exponential time."""
    return b")" + b"q\0h\0\x86" * depth


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "lacks the array"),  # a memo of 17 GB if stored as an array
        (b"\x80\x02" + b"]" + b"](" * 30_000 + b"e" * 30_000 + b".", "no dictionary"),
        (b"\x80\x02" + b"(" * 90_000 + b"}." + b"t" * 9, "lacks the array"),
        (b"\x80\x02" + b"]" * 110_000 + b".", "more than 100000 instructions"),
        (b"\x80\x02}" + doubled(60) + b"K\0s.", "a key is a tuple"),
        (b"\x80\x02}" + doubled(60) + doubled(60) + b"\x93.", "imports a name that is not a string"),
        (b"\x80\x02" + py2_global("numpy", "dtype") + doubled(60) + b"\x85R.", "not uint8"),
        (b"\x80\x02}" + b"T\xff\xff\xff\x7fa.", "damaged at byte"),
        (b"\x80\x02}" + b"T\xff\xff\xff\xffa.", "damaged at byte"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "instruction|no dictionary|damaged"),
        (b"\x80\x02I" + b"9" * 1_000_000 + b"\n.", "an instruction that plain data does not need: b'I'"),
        (b"\x80\x02" + b"c" + b"a" * 1_000_000, "damaged at byte"),
        (
            py2_batch(np.zeros((1, 3072), np.uint8), [0]).replace(b"K\1J\0\x0c\0\0t", b"J\xff\xff\xff\x7f" * 2 + b"t"),
            "shape",
        ),
        (b"\x80\x02}e.", "damaged"),
        (b"\x80\x02.", "damaged"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_a_crafted_pickle_takes_little_time_and_memory(contents: bytes, message: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, python_files() | {"data_batch_1": contents})
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(
            ValueError, match=f"data_batch_1 is damaged or not a plain CIFAR-10 file: .*({message})"
        ) as fault:
            images.load_images(str(folder), 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(fault.value).isprintable()
    assert peak < 50_000_000
    assert time.process_time() - start < 10


def header(name: str, size: int | bytes, kind: bytes = b"0") -> bytes:
    digits = b"%011o\0" % size if isinstance(size, int) else size
    raw = bytearray(name.encode().ljust(100, b"\0") + b"0000644\0" * 3 + digits + b"0" * 11 + b"\0" + b" " * 8 + kind)
    raw += b"\0" * (512 - len(raw))
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize(
    ("unpacked", "message"),
    [
        ([header("a", 8**11 - 1), *[bytes(2**20)] * 20], "it holds more than 16777216 bytes"),
        ([header("a", 8**11 - 1, b"x"), *[bytes(2**20)] * 20], "it holds more than 16777216 bytes"),
        ([header("a", 8**11 - 1, b"L"), *[bytes(2**20)] * 20], "it holds more than 16777216 bytes"),
        ([header("a", b"\x80" + b"\xff" * 11)], "not an octal number"),
        ([header("a", 0)] * 2000, "it has more than 1000 members"),
        (
            [header("cifar-10-batches-py/data_batch_1", 8**11 - 1), *[bytes(2**20)] * 100],
            "data_batch_1 has more than 4194304 bytes",
        ),
        ([b"\1" * 512], "not an octal number|checksum"),
        ([header("a", 3)[:400]], "a header is cut short"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_crafted_archive_takes_little_time_and_memory(
    unpacked: list[bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_tar, "MAX_BYTES", 2**24)
    monkeypatch.setattr(images, "_MAX_FILE_BYTES", 2**22)
    path = tmp_path / "cifar-10-python.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as archive:
        for part in unpacked:
            archive.write(part)
    start = time.process_time()
    tracemalloc.start()
    try:
        refuse(path, message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12_000_000
    assert time.process_time() - start < 10


# ---- CIFAR-10, damaged -----------------------------------------------------------------------------------------------


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.load_images(str(path), 1)


@pytest.mark.parametrize("files", [python_files, binary_files])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.6])
def test_truncated_archives_are_named(files: Callable[[], Files], kept: float, tmp_path: Path) -> None:
    path = write_archive(tmp_path, dict(reversed(files().items())))  # the first batch last
    contents = path.read_bytes()
    path.write_bytes(contents[: int(len(contents) * kept)])
    refuse(path, rf"{re.escape(path.name)} (is|has no data_batch_1: it is) damaged")


def test_damage_inside_an_archive_is_named(tmp_path: Path) -> None:
    path = write_archive(tmp_path, python_files())
    contents = bytearray(path.read_bytes())
    contents[1000:] = bytes(len(contents) - 1000)
    path.write_bytes(contents)
    refuse(path, r"cifar-10-python\.tar\.gz .*is damaged")


@pytest.mark.parametrize("length", [0, 1, 30, 5000, -1])
def test_truncated_pickles_are_named(length: int, tmp_path: Path) -> None:
    files = python_files()
    files["data_batch_1"] = files["data_batch_1"][:length]
    refuse(write_folder(tmp_path, files), "data_batch_1 is damaged")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (py2_batch(batch(0)[0], [10, *batch(0)[1][1:]]), "the label 10, and only 0 to 9 exist"),
        (py2_batch(batch(0)[0], [-1, *batch(0)[1][1:]]), "not whole numbers from 0 to 9"),
        (py2_batch(batch(0)[0], [2**20, *batch(0)[1][1:]]), "not whole numbers from 0 to 9"),
        (py2_batch(batch(0)[0], batch(0)[1][1:]), "shape"),
        (py2_batch(batch(0)[0][:, 1:], batch(0)[1]), "shape"),
        (py2_batch(batch(0)[0].ravel(), batch(0)[1]), "shape"),
        (py2_dict({b"labels": py2_list([b"K\0"])}), "lacks the array"),
        (py2_dict({b"labels": py2_list([b"K\0"]), b"data": py2_string(b"\0" * 3072)}), "lacks the array"),
        (b"\x80\x02K\1.", "no dictionary"),
    ],
)
def test_wrong_python_batches_are_refused(contents: bytes, message: str, tmp_path: Path) -> None:
    refuse(write_folder(tmp_path, python_files() | {"data_batch_1": contents}), f"data_batch_1 is damaged.*{message}")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (binary_files()["data_batch_1.bin"][:-1], "not a multiple of 3073"),
        (b"\x0a" + binary_files()["data_batch_1.bin"][1:], "the label 10, and only 0 to 9 exist"),
    ],
)
def test_wrong_binary_batches_are_refused(contents: bytes, message: str, tmp_path: Path) -> None:
    files = binary_files() | {"data_batch_1.bin": contents}
    refuse(write_folder(tmp_path, files), rf"data_batch_1\.bin is damaged.*{message}")


@pytest.mark.parametrize(
    "names",
    [
        images.CIFAR10_CLASSES[1:],
        (*images.CIFAR10_CLASSES[1:], "truck"),
        (*images.CIFAR10_CLASSES[1:], "a | b"),
        (*images.CIFAR10_CLASSES[1:], "-"),
    ],
)
def test_names_that_cannot_stand_in_a_board_text_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    python = python_files() | {"batches.meta": py2_meta(names)}
    binary = binary_files() | {"batches.meta.txt": "\n".join(names).encode()}
    for files in (python, binary):
        refuse(write_folder(tmp_path, files), "not ten different plain words")


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no archive")
    refuse(text, "notes.txt is damaged or not a plain CIFAR-10 file")
    other = tmp_path / "cifar-100-python.tar.gz"
    with tarfile.open(other, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-100-python/train"), io.BytesIO())
    refuse(other, "holds neither of the two versions")
