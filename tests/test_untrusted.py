"""Untrusted JSON and TOML: each error is one line that names the place, in bounded time and memory."""

import json
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from g1jax import untrusted
from g1jax.errors import G1Error
from g1jax.untrusted import (
    UntrustedError,
    file_inside,
    parse_json,
    read_bytes,
    read_json,
    read_json_lines,
    read_text,
    read_toml,
)

DEEP = 200_000


def error_of(raw: bytes | str, **limits: Any) -> str:
    with pytest.raises(UntrustedError) as error:
        parse_json(raw, "a.json", **limits)
    message = str(error.value)
    assert message.startswith("a.json: ")
    assert message.isprintable()
    assert len(message) < 300
    return message


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1.5e3",
        '"a\\"b\\\\"',
        '{"a": [1, {"b": null}], "c": ""}',
        " [true,\n false] ",
        '"\\ud83d\\ude00 \\\\ud800 é"',
    ],
)
def test_ordinary_json_is_what_python_reads(text: str) -> None:
    assert parse_json(text, "a.json") == parse_json(text.encode(), "a.json") == json.loads(text)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "column 1: not JSON"),
        (b'{"a": 1}\n{', "line 2, column 1: not JSON: Extra data"),
        (b'{"a"\n:\n tru}', "line 3, column 2: not JSON"),
        (b'{"a": "\xff"}', "line 1, byte 8 of the file: not UTF-8"),
        (b'"\xed\xa0\x80"', "byte 2 of the file: not UTF-8"),  # a surrogate's bytes
        ("\ud800", "a lone surrogate at character 1"),
        (rb'"\ud800"', "column 2: a lone surrogate"),
        (rb'["\\\ude00"]', "column 5: a lone surrogate"),
        (rb'"\ud83d\ud83d\ude00"', "column 2: a lone surrogate"),
        (b'{"a": NaN}', "the number NaN"),
        (b"[-Infinity]", "the number -Infinity"),
        (b"1e999", "1e999"),
        (b"1" * 301, "an integer of 301 digits"),
        (b"[" * DEEP, "line 1, byte 65 of the text: nested deeper than 64 levels"),
        (b'{"a":' * DEEP, "nested deeper than 64 levels"),
        (b'["\\"[[\n",' + b"[" * 64, "line 2, byte 73 of the text: nested deeper than 64 levels"),
        (b'{"a\\u001b[31m": 1, "a\\u001b[31m": 2}', r"'a\x1b[31m' occurs twice"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_error_is_one_line_that_names_the_place(raw: bytes | str, message: str) -> None:
    assert message in error_of(raw)


def test_limits() -> None:
    assert "the limit is 3 bytes" in error_of(b"1234", max_bytes=3)
    assert "more than 4 values" in error_of(b"[1,2,3,\n4,5]", max_values=4)
    assert "deeper than 1 levels" in error_of(b"[[]]", max_depth=1)
    assert parse_json(b"[1,2,3,4,5]", "", max_values=5) == [1, 2, 3, 4, 5]
    assert parse_json(b"[[]]", "", max_depth=2) == [[]]


def test_containers_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "MAX_CONTAINERS", 3)
    assert parse_json(b"[[],[]]", "") == [[], []]
    assert "more than 3 lists and objects by line 2" in error_of(b"[[],\n[],{}]")


def test_not_a_number_can_be_allowed() -> None:
    found = parse_json(b"[NaN, Infinity, -Infinity, 1e999]", "", allow_nan=True)
    assert repr(found) == "[nan, inf, -inf, inf]"


def test_the_limit_of_digits_does_not_depend_on_python() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert "an integer of 100000 digits" in error_of(b"1" * 100_000)
    finally:
        sys.set_int_max_str_digits(before)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_nesting_is_counted_the_same_across_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({'q"[\\': ["\\\\", '\\"]]', {"x": [[], {}]}], "é[": "}"}).encode()
    monkeypatch.setattr(untrusted, "_CHUNK", chunk)
    assert parse_json(text, "", max_depth=5) == json.loads(text)
    assert "deeper than 4 levels" in error_of(text, max_depth=4)


@pytest.mark.parametrize(
    "raw",
    [
        b'"' + b'\\"' * 4_000_000,
        b"\\" * 8_000_000,
        b'["",' * 2_000_000,
        b"[]," * 2_600_000,
        b'"' + rb"\ud83d\ude00" * 600_000 + rb"\ud800",
        b'{"a":1,' * 60 + b'"' + b"\\\\" * 4_000_000,
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_eight_crafted_megabytes_take_bounded_time_and_memory(raw: bytes) -> None:
    tracemalloc.start()
    start = time.process_time()
    try:
        error_of(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10
    assert peak < 2**28


# Files


def test_files_are_read_whole_or_rejected(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json(file) == {"a": "é"}
    assert read_text(file) == '{"a": "é"}'
    assert read_bytes(file, max_bytes=14) == file.read_bytes()
    with pytest.raises(UntrustedError, match=r"a\.json: more than 13 bytes"):
        read_json(file, max_bytes=13)
    with pytest.raises(UntrustedError, match=r"none\.json: cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UntrustedError, match=r"cannot be read|not a regular file"):
        read_json(tmp_path)


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(UntrustedError, match="not a regular file"):
            read_json(path)


def test_invalid_file_names_are_escaped() -> None:
    for name in ("a\0b", "a\ud800b"):
        with pytest.raises(UntrustedError, match=r"'a\\(x00|ud800)b': not a valid file name"):
            read_bytes(name)
    with pytest.raises(UntrustedError, match=r"^'a\\n\\x1b\[1m': cannot be read: No such file"):
        read_bytes("a\n\x1b[1m")


class OtherError(G1Error):
    pass


def test_the_caller_chooses_the_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"{")
    for name in ("a.json", "none.json"):
        with pytest.raises(OtherError, match=name):
            read_json(tmp_path / name, error=OtherError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "not TOML: "),
        ("a = " + "[" * 10_000, "not TOML: "),
        ("a = [[[[[[[[[1]]]]]]]]]", "nested too deeply"),
        ("b = 1\n" + "a." * 20_000 + "a = 1", "line 2, column 1: a dotted key of too many parts"),
        ("b = 1\n" + '"a" . ' * 30 + "a = 1", "line 2, column 1: a dotted key of too many parts"),
        ("a = {" + "a." * 30 + "a = 1}", "line 1|column 6: a dotted key of too many parts"),
        ("a = 9223372036854775808", "an integer of more than 64 bits"),
        ("a = " + "9" * 20_000, "an integer of more than 64 bits|not TOML"),
        ("a = '" + "a" * 70_000 + "'", "more than 65536 bytes"),
        ("a = 1\na = 2", "not TOML: "),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_invalid_or_slow_toml(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(text)
    start = time.process_time()
    with pytest.raises(UntrustedError, match=message) as error:
        read_toml(file)
    assert str(error.value).startswith(f"{file}: ")
    assert str(error.value).isprintable()
    assert time.process_time() - start < 5


def test_ordinary_toml_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[a]\nb = [1, 2.5, "No. It is v1.2.3. e.g. one. Two. Three. Four."]\n')
    assert read_toml(tmp_path / "a.toml")["a"]["b"][:2] == [1, 2.5]


def test_lines_are_read_one_by_one_and_bad_ones_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\r\n\n[' + b" " * 99 + b']\n\xff\n{"a": 2}\n{"a":')
    reported: list[str] = []
    rows = list(read_json_lines(file, max_line_bytes=50, on_error=lambda error: reported.append(str(error))))
    assert rows == [(1, {"a": 1}), (5, {"a": 2})]
    assert [line.removeprefix(str(file)).split(": ")[0] for line in reported] == [":3", ":4", ":6"]
    with pytest.raises(UntrustedError, match=r"rows\.jsonl:3: a line of more than 50 bytes"):
        list(read_json_lines(file, max_line_bytes=50))
    with pytest.raises(UntrustedError, match=r"rows\.jsonl:4: line 1, byte 1 of the file: not UTF-8"):
        list(read_json_lines(file))


def test_files_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"a")
    (tmp_path / "outside.png").write_bytes(b"b")
    (folder / "within.png").symlink_to("images/a.png")
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "pipe")
    assert file_inside(folder, "images/a.png", "row 1").read_bytes() == b"a"
    assert file_inside(folder, "within.png", "row 1").read_bytes() == b"a"
    (tmp_path / "elsewhere").symlink_to(folder)
    assert file_inside(tmp_path / "elsewhere", "within.png", "row 1").read_bytes() == b"a"
    for name in ("../outside.png", "images/../../outside.png", "/etc/passwd", "out.png", "up/outside.png"):
        with pytest.raises(UntrustedError, match=r"^row 1: .* is outside the folder "):
            file_inside(folder, name, "row 1")
    for name in ("pipe", "images", ".", "none.png"):
        with pytest.raises(UntrustedError, match=r"^row 1: there is no file "):
            file_inside(folder, name, "row 1")
    for name in ("loop.png", "a\0b", "\ud800", "a" * 300):
        with pytest.raises(UntrustedError, match=r"^row 1: .* (is not a valid file name|there is no file)") as error:
            file_inside(folder, name, "row 1")
        assert str(error.value).isprintable()
    for name in ("a" * 3000, "a/" * 1500):
        with pytest.raises(UntrustedError, match="row 1: ") as caught:
            file_inside(folder, name, "row 1")
        assert len(str(caught.value)) < 1000


def test_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    for folder in (snapshot, tmp_path / "models--a--b" / "blobs", tmp_path / "models--c--d" / "blobs"):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w")
    (snapshot / "own").symlink_to("../../blobs/weights")
    (snapshot / "other").symlink_to("../../../models--c--d/blobs/weights")
    assert file_inside(snapshot, "own", "index").read_bytes() == b"w"
    with pytest.raises(UntrustedError, match="other is outside the folder"):
        file_inside(snapshot, "other", "index")


def test_lenient_parsing_replaces_values_and_keeps_the_limits() -> None:
    text = r"""{"a": NaN, "b": 1e999, "c": -Infinity, "d": 1, "d": 2, "e": "\ud800 \\ud800 \ud83d\ude00\uDC00"}"""
    expected = {"a": None, "b": None, "c": None, "d": 2, "e": "\ufffd \\ud800 😀\ufffd"}
    assert parse_json(text, "a.json", lenient=True) == expected
    assert parse_json(b'{"a": ' + b"9" * 400 + b', "b": "\xff"}', "a.json", lenient=True) == {"a": None, "b": "\ufffd"}
    assert "nested deeper" in error_of("[" * DEEP, lenient=True)
    assert "not JSON" in error_of("[", lenient=True)
    assert "the limit is" in error_of("[1]", lenient=True, max_bytes=2)
