"""The safetensors reader as Python sees it: what the files hold, and what is refused."""

import csv
import gc
import gzip
import json
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors

_engine = pytest.importorskip("bonaware._engine", reason="the engine is not built")
Weights = _engine.Weights


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype, shape, begin, end):
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [begin, end]})


ONE = entry("U8", [1], 0, 1)


@pytest.fixture
def file(tmp_path):
    """A function that writes a header and data to a file of its own."""
    count = iter(range(10**6))
    return lambda header, data=b"": write(tmp_path / f"{next(count)}.safetensors", header, data)


# -- values ----------------------------------------------------------------------------------


def test_recorded_files_read_as_the_library_reads_them(data):
    paths = [*data.glob("safetensors/good/*.safetensors"), *data.glob("ckpt/*/*.safetensors")]
    assert len(paths) > 15
    for path in paths:
        weights = Weights(path)
        with safetensors.safe_open(path, "np") as reference:
            assert weights.names() == sorted(reference.keys())
            for name in weights.names():
                expected = reference.get_tensor(name)
                array = weights.array(name)
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)


def cases(data):
    with (data / "safetensors/cases/expected.tsv").open() as table:
        for row in csv.reader(table, delimiter="\t"):
            if row[0] != "file":
                yield row[0].split()[0], row[2]


def test_published_attacks_are_refused_and_edge_cases_read(data, tmp_path):
    rows = list(cases(data))
    assert len(rows) == 19
    for name, expected in rows:
        path = data / "safetensors/cases" / name
        if path.suffix == ".gz":
            (tmp_path / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
            path = tmp_path / path.stem
        if expected == "OK":
            assert len(Weights(path).names()) <= 1
        else:
            with pytest.raises(ValueError, match=r"\.safetensors: .* (must|found)"):
                Weights(path)


DTYPES = [
    ("BOOL", "bool"), ("U8", "uint8"), ("I8", "int8"), ("I16", "int16"), ("U16", "uint16"),
    ("BF16", "uint16"), ("F16", "float16"), ("I32", "int32"), ("U32", "uint32"),
    ("F32", "float32"), ("F64", "float64"), ("I64", "int64"), ("U64", "uint64"),
    ("C64", "complex64"), ("F8_E4M3", "uint8"), ("F8_E5M2", "uint8"), ("F8_E8M0", "uint8"),
]


@pytest.mark.parametrize(("stored", "read"), DTYPES)
def test_array_has_the_dtype_of_its_bits(file, stored, read):
    values = np.array([[1, 0], [0, 1], [1, 1]]).astype(read)
    path = file(f'{{"x": {entry(stored, [3, 2], 0, values.nbytes)}}}', values.tobytes())
    weights = Weights(path)
    assert weights.info("x") == (stored, (3, 2))
    assert weights.array("x").dtype == read
    np.testing.assert_array_equal(weights.array("x"), values)


def test_array_at_an_odd_address_is_marked_as_unaligned(file):
    header = f'{{"a": {ONE}, "b": {entry("F64", [2], 1, 17)}}}'
    data = b"\1" + np.array([0.5, -2.0]).tobytes()
    odd = Weights(file(header + " " * (-len(header) % 8), data)).array("b")
    assert not odd.flags.aligned
    assert odd.tolist() == [0.5, -2.0]


def test_array_is_a_read_only_view_that_keeps_the_file_mapped(file):
    path = file(f'{{"x": {entry("I32", [2], 0, 8)}}}', struct.pack("<2i", 7, -9))
    array = Weights(path).array("x")
    gc.collect()
    path.unlink()
    assert array.tolist() == [7, -9]
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    assert isinstance(array.base, Weights)


def test_scalars_and_empty_tensors_have_their_shapes(file):
    header = f'{{"s": {entry("F32", [], 0, 4)}, "e": {entry("F32", [0, 3], 4, 4)}}}'
    weights = Weights(file(header, struct.pack("<f", 2.5)))
    assert weights.array("s").shape == ()
    assert weights.array("s") == 2.5
    assert weights.array("e").shape == (0, 3)


def test_release_gives_memory_back_and_keeps_the_numbers(tmp_path):
    size = 1 << 25
    path = write(tmp_path / "big.safetensors", f'{{"x": {entry("U8", [size], 0, size)}}}')
    with path.open("ab") as tail:
        tail.truncate(path.stat().st_size + size)

    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE")

    weights = Weights(path)
    before = resident()
    assert not weights.array("x").any()
    assert resident() > before + size // 2
    weights.release("x")
    assert resident() < before + size // 4
    assert not weights.array("x").any()


def test_names_are_sorted_and_the_last_of_equal_names_counts(file):
    weights = Weights(file(f'{{"b": {ONE}, "a": {entry("U8", [9], 3, 12)}, "é": '
                           f'{entry("U8", [0], 0, 0)}, "a": {entry("U8", [2], 1, 3)}}}', b"xyz"))
    assert weights.names() == ["a", "b", "é"]
    assert weights.array("a").tobytes() == b"yz"


def test_hostile_header_of_100000_tensors_costs_no_quadratic_time(file):
    """Compared with a tenth of it: time grows some tenfold and not a hundredfold."""
    def seconds(count):
        header = ",".join(f'"{"x" * 50}{i}": {entry("U8", [0], 0, 0)}' for i in range(count))
        path = file(f"{{{header}}}")
        start = time.perf_counter()
        assert len(Weights(path).names()) == count
        return time.perf_counter() - start

    small = min(seconds(10_000) for _ in range(3))
    assert seconds(100_000) < 40 * small + 0.05


# -- the same rules as the library -----------------------------------------------------------

# Headers in front of the two bytes "12". Where the library reads a file that is refused here, the
# header of weights.h says why.
HEADERS = [
    '{"a": ONE, "b": TWO}',
    '{"a": ONE, "a": TWO, "b": TWO}',
    '{"a": TWO, "b": TWO, "a": ONE}',
    '{"a": ONE, "\\u0061": TWO}',
    '{"a": ONE, "b": TWO} x',
    '{"a": ONE, "b": TWO,}',
    '{"a": ONE, "b": TWO}\x00',
    ' \t\r\n{"a": ONE, "b": TWO}\n\r\t ',
    '{"a": ONE, "b": TWO}\f',
    '\ufeff{"a": ONE, "b": TWO}',
    '{"\ud800": ONE, "b": TWO}',
    '{"a\x01": ONE, "b": TWO}',
    '{"a\x7f": ONE, "b": TWO}',
    '{"\\ud800": ONE, "b": TWO}',
    '{"\\udc00": ONE, "b": TWO}',
    '{"\\ud83d\\ude00": ONE, "b": TWO}',
    '{"\\ud83d\\u0041": ONE, "b": TWO}',
    '{"\\/\\b\\f\\n\\r\\t\\"\\\\": ONE, "b": TWO}',
    '{"\\x": ONE, "b": TWO}',
    '{"": ONE, "b": TWO}',
    '{"__metadata__": null, "a": ONE, "b": TWO}',
    '{"__metadata__": "x", "a": ONE, "b": TWO}',
    '{"__metadata__": {"x": 1}, "a": ONE, "b": TWO}',
    '{"__metadata__": {"x": "1", "x": "2"}, "a": ONE, "b": TWO}',
    '{"__metadata__": {}, "__metadata__": {}, "a": ONE, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [-0], "data_offsets": [0, 0]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [01], "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": null, "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 2]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}, "b": TWO}',
    '{"a": {"dtype": "U8", "dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"dtype": "u8", "shape": [1], "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"\\u0064type": "\\u00558", "shape": [1], "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [18446744073709551616], "data_offsets": [0, 1]}, "b": TWO}',
    '{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}, "b": TWO}',
    '{"z": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]}, "a": ONE, "b": TWO}',
    '{"z": {"dtype": "U8", "shape": [0], "data_offsets": [3, 3]}, "a": ONE, "b": TWO}',
    '{"b": TWO}',
    '{"a": ONE}',
    "{}", "", "[]", "null",
]


def library_reads(path):
    try:
        with safetensors.safe_open(path, "np") as reference:
            return sorted(reference.keys())
    except safetensors.SafetensorError:
        return None


@pytest.mark.parametrize("header", HEADERS)
def test_header_is_judged_as_by_the_library(file, header):
    header = header.replace("ONE", ONE).replace("TWO", entry("U8", [1], 1, 2))
    path = file(header, b"12")
    expected = library_reads(path)
    if expected is None:
        with pytest.raises(ValueError, match=r"\.safetensors: "):
            Weights(path)
    else:
        assert Weights(path).names() == expected


def test_what_the_engine_cannot_use_is_refused_although_the_library_reads_it(file):
    refused = {
        entry("F4", [2], 0, 1): "a dtype of whole bytes",
        entry("U8", [1] * 9, 0, 1): "at most 8 numbers",
        '{"x": 1, "dtype": "U8", "shape": [1], "data_offsets": [0, 1]}': 'nothing else, found "x"',
        '["U8", [1], [0, 1]]': "expected '{'",
    }
    for tensor, message in refused.items():
        path = file(f'{{"a": {tensor}}}', b"1")
        assert library_reads(path) == ["a"]
        with pytest.raises(ValueError, match=message):
            Weights(path)


@pytest.mark.parametrize("seed", range(200))
def test_mutated_file_that_opens_is_one_the_library_reads(file, seed):
    rng = np.random.default_rng(seed)
    header = f'{{"a": {entry("F32", [2, 3], 0, 24)}, "b": {entry("I16", [4], 24, 32)}}}  '
    blob = bytearray(struct.pack("<Q", len(header)) + header.encode() + bytes(32))
    for _ in range(rng.integers(1, 3)):
        at = int(rng.integers(len(blob)))
        blob[at] = rng.choice(list(b'0123456789,:[]{}" \\ux\xff'))
    path = file("")
    path.write_bytes(blob)
    expected = library_reads(path)
    try:
        names = Weights(path).names()
    except ValueError:
        return  # some of these the library reads: an unknown field, for example
    assert names == expected


# -- errors ----------------------------------------------------------------------------------


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Weights(tmp_path / "no.safetensors")
    assert caught.value.filename == tmp_path / "no.safetensors"
    with pytest.raises(IsADirectoryError):
        Weights(tmp_path)
    with pytest.raises(ValueError, match="/dev/null: weights must be a regular file"):
        Weights("/dev/null")


def test_path_must_be_a_path():
    with pytest.raises(TypeError, match=r"os\.PathLike"):
        Weights(3)
    with pytest.raises(TypeError):
        Weights()
    with pytest.raises(ValueError, match="null"):
        Weights("a\0b")


def test_message_has_the_path_and_what_is_wrong(file):
    path = file(f'{{"a": {ONE}}}', b"")
    with pytest.raises(ValueError, match="need 1 bytes, the file has 0") as caught:
        Weights(str(path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("method", ["info", "array", "release"])
def test_unknown_name_is_a_key_error(file, method):
    weights = Weights(file(f'{{"a": {ONE}}}', b"1"))
    for name in ("b", "a\0", ""):
        with pytest.raises(KeyError, match="no tensor"):
            getattr(weights, method)(name)
    with pytest.raises(TypeError, match="must be a str, got int"):
        getattr(weights, method)(1)


def test_size_that_no_array_can_have_is_an_error(file):
    weights = Weights(file('{"a": {"dtype": "U8", "shape": [0, 18446744073709551615], '
                           '"data_offsets": [0, 0]}}'))
    assert weights.info("a") == ("U8", (0, 2**64 - 1))
    with pytest.raises(ValueError, match="below 2\\*\\*63"):
        weights.array("a")


def test_repr_says_what_it_is(file):
    path = str(file(f'{{"a": {ONE}}}', b"1"))
    assert repr(Weights(path)) == f"<Weights {path!r}: 1 tensors>"
    assert Weights(path).path == path


def test_opening_and_failing_keep_no_memory_or_files(file):
    good, bad = file(f'{{"a": {ONE}}}', b"1"), file(f'{{"a": {ONE}}}', b"")

    def use():
        Weights(good).array("a")
        with pytest.raises(ValueError, match="need 1"):
            Weights(bad)

    def maps():
        return Path("/proc/self/maps").read_text().count(".safetensors")

    use()
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        use()
    gc.collect()
    assert maps() == 0
    assert len(os.listdir("/proc/self/fd")) == files
