"""Images: the shipped digits, and CIFAR-10 in its official formats, sound, damaged and hostile.

The official Python version was pickled by Python 2 (protocol 2). A Python 3 pickle differs in its opcodes, so the files
here are assembled opcode by opcode as Python 2 wrote them.
"""

import gzip
import io
import re
import struct
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from g1jax.envs import images, plain_tar

PER_BATCH = 20  # two images of each class
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
# The order of members in the official cifar-10-python.tar.gz.
ARCHIVE_ORDER = ("data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", "data_batch_2")

Files = dict[str, bytes]  # name in the folder -> contents


# ---- Python 2 pickles, protocol 2 ------------------------------------------------------------------------------------


def py2_string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def py2_int(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def py2_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def py2_dict(items: Mapping[bytes, bytes]) -> bytes:
    """A whole file: PROTO 2, the dictionary, STOP."""
    return b"\x80\x02}(" + b"".join(py2_string(key) + value for key, value in items.items()) + b"u."


def py2_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def py2_array(array: np.ndarray, core: str = "numpy.core.multiarray", dtype: bytes = b"u1") -> bytes:
    shape = b"(" + b"".join(py2_int(size) for size in array.shape) + b"t"
    rebuilt = (
        py2_global(core, "_reconstruct") + py2_global("numpy", "ndarray") + b"K\0\x85" + py2_string(b"b") + b"\x87R"
    )
    made_dtype = py2_global("numpy", "dtype") + py2_string(dtype) + b"K\0K\1\x87R"
    made_dtype += b"(K\3" + py2_string(b"|") + b"NNN" + py2_int(-1) + py2_int(-1) + b"K\0tb"
    return rebuilt + b"(K\1" + shape + made_dtype + b"\x89" + py2_string(array.tobytes()) + b"tb"


def py2_batch(pixels: np.ndarray, labels: list[int], **array_options: str | bytes) -> bytes:
    return py2_dict(
        {
            b"batch_label": py2_string(b"training batch 1 of 5"),
            b"labels": py2_list([py2_int(label) for label in labels]),
            b"data": py2_array(pixels, **array_options),  # type: ignore[arg-type]
            b"filenames": py2_list([py2_string(b"a_s_%06d.png" % number) for number in range(len(labels))]),
        }
    )


def py2_meta(names: tuple[str, ...]) -> bytes:
    return py2_dict(
        {
            b"num_cases_per_batch": py2_int(10000),
            b"label_names": py2_list([py2_string(name.encode()) for name in names]),
            b"num_vis": py2_int(3072),
        }
    )


# ---- A small CIFAR-10 in both versions -------------------------------------------------------------------------------


def batch(number: int) -> tuple[np.ndarray, list[int]]:
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 256, (PER_BATCH, 3072), np.uint8)
    return pixels, generator.permutation(np.arange(PER_BATCH) % 10).tolist()


def python_files() -> Files:
    files = {name: py2_batch(*batch(number)) for number, name in enumerate(BATCHES)}
    return files | {"batches.meta": py2_meta(images.CIFAR10_CLASSES), "readme.html": b"<html></html>"}


def binary_files() -> Files:
    files = {"batches.meta.txt": "\n".join((*images.CIFAR10_CLASSES, "", "")).encode()}
    for number, name in enumerate(BATCHES):
        pixels, labels = batch(number)
        files[f"{name}.bin"] = np.column_stack([np.array(labels, np.uint8), pixels]).tobytes()
    return files


def write_folder(place: Path, files: Files) -> Path:
    folder = place / ("cifar-10-batches-bin" if "batches.meta.txt" in files else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


def write_archive(place: Path, files: Files, prefix: str = "") -> Path:
    version = "bin" if "batches.meta.txt" in files else "py"
    path = place / ("cifar-10-binary.tar.gz" if version == "bin" else "cifar-10-python.tar.gz")
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(f"{prefix}cifar-10-batches-{version}")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        first = [name for name in ARCHIVE_ORDER if name in files]
        for name in (*first, *(name for name in files if name not in first)):
            member = tarfile.TarInfo(f"{prefix}cifar-10-batches-{version}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return path


def first_images(per_class: int) -> np.ndarray:
    """What load_images must return: image by image, pixel plane by pixel plane."""
    chosen: list[list[np.ndarray]] = [[] for _ in range(10)]
    for number in range(len(BATCHES)):
        for row, label in zip(*batch(number), strict=True):
            chosen[label].append(np.stack([plane.reshape(32, 32) for plane in np.split(row, 3)], axis=-1))
    return np.array([of_class[:per_class] for of_class in chosen])


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CIFAR-10."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv(images.CIFAR10_VARIABLE, raising=False)


# ---- The digits ------------------------------------------------------------------------------------------------------


def test_digits_are_ten_classes_of_different_images() -> None:
    digits = images.load_images("digits", 174)
    assert digits.name == "digits"
    assert digits.class_names[0] == "zero"
    assert digits.class_names[9] == "nine"
    assert digits.images.shape == (10, 174, 10, 10, 3)
    assert digits.images.dtype == np.uint8
    assert len(np.unique(digits.images.reshape(1740, -1), axis=0)) == 1740


def test_digits_are_black_on_white() -> None:
    digits = images.load_images("digits", 20).images
    assert (digits[:, :, 0] == 255).all()
    assert (digits.min(axis=(2, 3, 4)) < 20).all()
    assert (images.resize(digits, 28).min(axis=(2, 3, 4)) < 20).all()


def test_fewer_images_are_the_first_of_more() -> None:
    few, many = images.load_images("digits", 4), images.load_images("digits", 9)
    np.testing.assert_array_equal(few.images, many.images[:, :4])


def test_images_cannot_be_written_to() -> None:
    digits = images.load_images("digits", 4)
    with pytest.raises(ValueError, match="read-only"):
        digits.images[0, 0] = 0


@pytest.mark.parametrize(("per_class", "message"), [(175, "174 images of each class"), (0, "at least 1")])
def test_impossible_numbers_of_digits_are_refused(per_class: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images.load_images("digits", per_class)


# ---- Resizing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 28, 32, 80])
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_resize_keeps_leading_axes_and_each_image_apart(leading: tuple[int, ...], size: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (*leading, 1, 1, 3), np.uint8)
    plain = np.broadcast_to(colours, (*leading, 32, 32, 3))
    resized = images.resize(plain, size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, np.broadcast_to(colours, (*leading, size, size, 3)))


def test_resize_to_the_same_size_changes_nothing() -> None:
    pixels = first_images(2)
    np.testing.assert_array_equal(images.resize(pixels, 32), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), np.uint8)])
def test_resize_refuses_other_arrays(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="resize needs uint8"):
        images.resize(pixels, 8)


# ---- CIFAR-10, sound -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_class", [1, 3, 12])
@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize("files", [python_files, binary_files])
def test_every_official_form_gives_the_same_images(
    files: Callable[[], Files], write: Callable[[Path, Files], Path], per_class: int, tmp_path: Path
) -> None:
    loaded = images.load_images(str(write(tmp_path, files())), per_class)
    assert loaded.name == "cifar10"
    assert loaded.class_names == images.CIFAR10_CLASSES
    np.testing.assert_array_equal(loaded.images, first_images(per_class))
    assert not loaded.images.flags.writeable


def test_arrays_repickled_by_numpy_2_are_read(tmp_path: Path) -> None:
    files = {name: py2_batch(*batch(n), core="numpy._core.multiarray") for n, name in enumerate(BATCHES)}
    np.testing.assert_array_equal(images.load_images(str(write_folder(tmp_path, files)), 3).images, first_images(3))


def test_no_more_batches_are_read_than_needed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, python_files() | {"data_batch_3": b"damaged"})
    assert images.load_images(str(folder), 4).images.shape[1] == 4
    with pytest.raises(ValueError, match="data_batch_3 is damaged"):
        images.load_images(str(folder), 5)


def test_too_few_images_names_the_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12 images of class 'airplane'; 13 were asked for"):
        images.load_images(str(write_folder(tmp_path, binary_files())), 13)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    files = python_files()
    del files["data_batch_2"]
    for path in (write_folder(tmp_path, files), write_archive(tmp_path, files)):
        with pytest.raises(ValueError, match="has no data_batch_2"):
            images.load_images(str(path), 3)


@pytest.mark.parametrize("write", [write_folder, write_archive])
def test_class_names_come_from_the_meta_file(write: Callable[[Path, Files], Path], tmp_path: Path) -> None:
    names = ("plane", *images.CIFAR10_CLASSES[1:])
    python = python_files() | {"batches.meta": py2_meta(names)}
    binary = binary_files() | {"batches.meta.txt": "\r\n".join(names).encode()}
    for files in (python, binary):
        assert images.load_images(str(write(tmp_path, files)), 1).class_names == names


def test_without_a_meta_file_the_official_names_are_used(tmp_path: Path) -> None:
    files = python_files()
    del files["batches.meta"]
    for path in (write_folder(tmp_path, files), write_archive(tmp_path, files)):
        assert images.load_images(str(path), 1).class_names == images.CIFAR10_CLASSES


def test_only_expected_members_are_read_and_none_is_extracted(tmp_path: Path) -> None:
    files = {"../../escaped": b"out", "data_batch_11": b"other"} | python_files()
    path = write_archive(tmp_path / "a" / "b", files, prefix="./")
    np.testing.assert_array_equal(images.load_images(str(path), 3).images, first_images(3))
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


# ---- CIFAR-10, where it is looked for --------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["home/.cache/g1jax", "home/data"])
@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_the_usual_places_are_searched(source: str, place: str, tmp_path: Path) -> None:
    write_archive(tmp_path / place, binary_files())
    assert images.load_images(source, 1).name == "cifar10"


@pytest.mark.parametrize("home", ["home", None])
def test_nothing_is_found_by_accident_in_the_working_directory(
    home: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a home, `~` is no folder of this name either."""
    if home is None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    for place in ("data", "~/data", ".cache/g1jax"):
        write_archive(tmp_path / "here" / place, binary_files())
    assert images.load_images("auto", 1).name == "digits"


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_the_variable_names_an_archive_a_folder_or_its_parent(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "mine", python_files())
    for place in (folder, folder.parent, write_archive(tmp_path, binary_files())):
        monkeypatch.setenv(images.CIFAR10_VARIABLE, str(place))
        np.testing.assert_array_equal(images.load_images(source, 2).images, first_images(2))


def test_auto_without_cifar10_gives_digits() -> None:
    assert images.load_images("auto", 4).name == "digits"


def test_not_found_says_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = ".*" + re.escape(images.CIFAR10_PAGE) + ".*G1JAX_CIFAR10"
    with pytest.raises(FileNotFoundError, match=r"~/\.cache/g1jax, ~/data \(.*cifar-10-python\.tar\.gz" + advice):
        images.load_images("cifar10", 4)
    with pytest.raises(FileNotFoundError, match=r"No CIFAR-10 at 'no/such\.tar\.gz'" + advice):
        images.load_images("no/such.tar.gz", 4)
    monkeypatch.setenv(images.CIFAR10_VARIABLE, str(tmp_path / "gone"))
    for source in ("auto", "cifar10"):
        with pytest.raises(FileNotFoundError, match="gone" + advice):
            images.load_images(source, 4)


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
        ValueError, match=f"not a plain CIFAR-10 file: it asks for {re.escape(module)}.{re.escape(name)}"
    ):
        images.load_images(str(path), 1)
    assert not marker.exists()


def test_setting_attributes_cannot_reach_the_stand_ins(tmp_path: Path) -> None:
    """The BUILD opcode on a global, instead of on an instance, would write to it if it could."""
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
    """A tuple of two of the tuples before it: its parts are few, and hashing or printing it takes for ever."""
    return b")" + b"q\0h\0\x86" * depth


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"\x80\x02}r\xff\xff\xff\x7f.", "lacks the array"),  # a memo of 17 GB, if it is an array
        (b"\x80\x02" + b"]" + b"](" * 30_000 + b"e" * 30_000 + b".", "no dictionary"),
        (b"\x80\x02" + b"(" * 90_000 + b"}." + b"t" * 9, "lacks the array"),
        (b"\x80\x02" + b"]" * 110_000 + b".", "more than 100000 instructions"),
        (b"\x80\x02}" + doubled(60) + b"K\0s.", "a key is a tuple"),
        (b"\x80\x02}" + doubled(60) + doubled(60) + b"\x93.", "asks for a name that is no text"),
        (b"\x80\x02" + py2_global("numpy", "dtype") + doubled(60) + b"\x85R.", "not uint8"),
        (b"\x80\x02}" + b"T\xff\xff\xff\x7fa.", "cut short"),
        (b"\x80\x02}" + b"T\xff\xff\xff\xffa.", "cut short"),
        (b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".", "instruction|no dictionary|damaged"),
        (b"\x80\x02I" + b"9" * 1_000_000 + b"\n.", "an instruction that plain data does not need: b'I'"),
        (b"\x80\x02" + b"c" + b"a" * 1_000_000, "a name at byte 3 is cut short or too long"),
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
        ([header("a", b"\x80" + b"\xff" * 11)], "a number that is none"),
        ([header("a", 0)] * 2000, "it has more than 1000 members"),
        (
            [header("cifar-10-batches-py/data_batch_1", 8**11 - 1), *[bytes(2**20)] * 100],
            "data_batch_1 has more than 4194304 bytes",
        ),
        ([b"\1" * 512], "a number that is none|checksum"),
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
