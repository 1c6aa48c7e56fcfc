from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_yuan.data.blend import parse_blend
from megatron_yuan.data.index_file import HEADER_BYTES
from megatron_yuan.errors import DataError
from tests.indexed_data import counting_documents, write_indexed


@pytest.fixture
def pair(tmp_path: Path) -> str:
    return write_indexed(tmp_path / "zh_text_document", counting_documents(0, 20))


def test_a_set_alone_is_read_whole(pair):
    documents = counting_documents(0, 20)
    (source,) = parse_blend("data_path", [pair])
    assert (source.documents, source.tokens) == (20, sum(map(len, documents)))
    assert source.name == "zh" and source.dtype == np.uint16


def test_weights_stand_before_their_prefixes(pair, tmp_path):
    other = write_indexed(tmp_path / "en", counting_documents(1, 5), np.int32)
    sources = parse_blend("data_path", ["0.25", pair, "3", other])
    assert [(source.prefix, source.weight) for source in sources] == [(pair, 0.25), (other, 3.0)]
    assert sources[1].dtype == np.int32


def test_without_weights_a_set_counts_by_its_tokens(pair, tmp_path):
    other = write_indexed(tmp_path / "en", counting_documents(1, 5))
    assert all(source.weight == source.tokens for source in parse_blend("data_path", [pair, other]))


def test_a_set_of_weight_0_is_left_out(pair):
    assert [source.prefix for source in parse_blend("data_path", ["1", pair, "0", "/does/not/exist"])] == [pair]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (["1", "P", "2"], "odd number of entries"),
        (["1", "P", "-1", "b"], "weights 1.0, -1.0; each must be 0 or more"),
        (["nan", "P", "1", "b"], "weights nan, 1.0"),
        (["inf", "P", "1", "b"], "weights inf, 1.0"),
        (["0", "P", "0", "b"], "one above 0"),
        (["1", "P", "2", "P"], "names P twice"),
        (["P", "P"], "names P twice"),
        (["P", "b"], "b.idx does not exist"),
        (["b.bin"], "without .bin or .idx"),
    ],
)
def test_a_blend_that_makes_no_sense_is_refused(pair, tmp_path, entries, says):
    entries = [entry.replace("P", pair) for entry in entries]
    with pytest.raises(DataError, match=re.escape(says.replace("P", pair))) as caught:
        parse_blend("train_data_path", entries)
    assert str(caught.value).startswith("train_data_path ") and "Fix: " in str(caught.value)


def test_the_same_set_by_another_path_is_still_twice(pair):
    roundabout = f"{Path(pair).parent}/../{Path(pair).parent.name}/{Path(pair).name}"
    with pytest.raises(DataError, match="twice"):
        parse_blend("data_path", [pair, roundabout])


@pytest.mark.parametrize("missing", [".bin", ".idx"])
def test_half_a_pair_is_named(pair, missing):
    os.remove(pair + missing)
    with pytest.raises(DataError, match=re.escape(f"data_path {pair}: {pair}{missing} does not exist")):
        parse_blend("data_path", [pair])


@pytest.mark.parametrize("change", [-2, +2, -1000])
def test_data_and_index_of_different_lengths_are_refused(pair, change):
    size = os.path.getsize(pair + ".bin")
    os.truncate(pair + ".bin", size + change)
    with pytest.raises(DataError, match=rf"{re.escape(pair)}: \.bin has {size + change} bytes, .*describes {size}\."):
        parse_blend("data_path", [pair])


@pytest.mark.parametrize("left", [0, 5, HEADER_BYTES, HEADER_BYTES + 30, -1, -8])
def test_a_truncated_index_is_refused(pair, left):
    size = os.path.getsize(pair + ".idx")
    os.truncate(pair + ".idx", left if left >= 0 else size + left)
    with pytest.raises(DataError, match=re.escape(f"{pair}.idx is")):
        parse_blend("data_path", [pair])


@pytest.mark.parametrize(
    ("place", "kind"),
    [(9, np.uint64), (17, np.uint8), (-8, np.int64), (-8 * 21, np.int64), (-8 * 22, np.int64), (-8 * 41, np.int64)],
    ids=["version", "dtype", "last document", "first document", "last offset", "first offset"],
)
def test_an_index_with_a_wrong_number_is_refused(pair, place, kind):
    index = Path(pair + ".idx")
    data = bytearray(index.read_bytes())
    start = place % len(data)
    size = np.dtype(kind).itemsize
    data[start : start + size] = (np.frombuffer(data, kind, 1, start) + kind(6)).tobytes()
    index.write_bytes(data)
    with pytest.raises(DataError, match=re.escape(f"{pair}.idx is") + ".*damaged"):
        parse_blend("data_path", [pair])


def test_lengths_that_only_sum_up_right_are_refused(pair):
    index = Path(pair + ".idx")
    data = bytearray(index.read_bytes())
    lengths = np.frombuffer(data, np.int32, 20, HEADER_BYTES)
    lengths[3] += 5
    lengths[9] -= 5
    index.write_bytes(data)
    with pytest.raises(DataError, match="do not follow one another"):
        parse_blend("data_path", [pair])


def test_a_file_of_another_kind_is_no_index(pair):
    Path(pair + ".idx").write_bytes(b"x" * 500)
    with pytest.raises(DataError, match="not a megatron index"):
        parse_blend("data_path", [pair])


def test_a_pair_without_tokens_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no tokens"):
        parse_blend("data_path", [write_indexed(tmp_path / "none", [])])
