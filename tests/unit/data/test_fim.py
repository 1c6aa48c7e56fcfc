from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sentencepiece import SentencePieceProcessor

from megatron_yuan.config.schema import DataConfig
from megatron_yuan.data.fim import MARKS, FimSamples, split_documents
from megatron_yuan.data.fim_figures import FimFigures
from megatron_yuan.data.sample import Sample
from megatron_yuan.data.sampler import Microbatches
from megatron_yuan.data.tokenizer import Tokenizer
from megatron_yuan.errors import DataError
from tests.unit.data.conftest import make_texts


class Rows:
    """Samples that are what they are given."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.array(self.rows[index], np.int64))


def framed(tokenizer: Tokenizer, texts: Sequence[str], room: int = 0) -> list[int]:
    """Whole documents of `texts` in a sample that has `room` more tokens for what rearranging adds."""
    ids = [tokenizer.eod_id]
    for text in texts:
        ids += [*tokenizer.encode(text), tokenizer.eod_id]
    return ids + [tokenizer.encode("a")[0]] * room


def documents(tokens: np.ndarray, eod_id: int) -> list[list[int]]:
    return [piece[:-1].tolist() for piece, whole in split_documents(tokens, eod_id) if whole]


def originals(ids: list[int], tokenizer: Tokenizer) -> set[str]:
    """Every text that `ids` may be made of: in SPM order nothing marks the seam of prefix and middle."""
    of_prefix, of_suffix, of_middle = (tokenizer.special_ids[mark] for mark in MARKS)
    assert ids.count(of_prefix) == ids.count(of_suffix) == ids.count(of_middle) == 1 and ids[0] == of_prefix
    prefix, rest = ids[1 : ids.index(of_suffix)], ids[ids.index(of_suffix) + 1 :]
    suffix, tail = rest[: rest.index(of_middle)], rest[rest.index(of_middle) + 1 :]
    spell = tokenizer.spell
    if prefix:
        return {spell(prefix) + spell(tail) + spell(suffix)}
    return {spell(tail[:seam]) + spell(tail[seam:]) + spell(suffix) for seam in range(len(tail) + 1)}


@pytest.mark.parametrize("spm_rate", [0.0, 1.0, 0.5])
def test_undone_it_gives_the_text_it_was_made_of(tokenizer: Tokenizer, spm_rate: float) -> None:
    texts = [*make_texts(3, 150), "  leading", "two<sep>turns <sep> of", "x", "\n\n"]
    samples = FimSamples(Rows([framed(tokenizer, [text], 40) for text in texts]), tokenizer, 1.0, spm_rate, seed=5)
    for i, text in enumerate(texts):
        (found,) = documents(samples[i][0], tokenizer.eod_id)
        assert text in originals(found, tokenizer)


def segments(tokenizer: Tokenizer, seed: int, number: int) -> list[list[int]]:
    """Random ids: of texts, and, as no encoder makes them, of pieces at random (no marks, no <eod>)."""
    random = np.random.default_rng(seed)
    barred = {tokenizer.eod_id, *(tokenizer.special_ids[mark] for mark in MARKS)}
    usable = [i for i in range(tokenizer.vocab_size) if i not in barred]
    odd = [random.choice(usable, random.integers(1, 40)).tolist() for _ in range(number // 2)]
    return [*map(tokenizer.encode, make_texts(seed, number - len(odd))), *odd]


@pytest.mark.parametrize("spm_rate", [0.0, 1.0, 0.5])
def test_cut_between_tokens_undone_it_gives_the_ids_it_was_made_of(tokenizer: Tokenizer, spm_rate: float) -> None:
    given = segments(tokenizer, 11, 200)
    rows = Rows([[tokenizer.eod_id, *ids, tokenizer.eod_id, 5, 5, 5, 5] for ids in given])
    samples = FimSamples(rows, tokenizer, 1.0, spm_rate, seed=5, cut="token")
    for i, ids in enumerate(given):
        (found,) = documents(samples[i].tokens, tokenizer.eod_id)
        prefix, suffix, middle = (found.index(tokenizer.special_ids[mark]) for mark in MARKS)
        parts = found[prefix + 1 : suffix], found[middle + 1 :], found[suffix + 1 : middle]
        assert ids == [each for part in parts for each in part]
        assert len(found) == len(ids) + 3


def test_text_that_would_not_come_back_is_left_alone_and_counted(tokenizer: Tokenizer) -> None:
    class Lossy(Tokenizer):
        def encode(self, text: str) -> list[int]:
            return super().encode(text.replace("cat", "dog"))

    row = framed(tokenizer, ["a cat reads", "the long night"], 20)
    sample, figures = FimSamples(Rows([row]), Lossy(tokenizer.path), 1.0, 0.5, seed=2).rearranged(0)
    assert figures.impossible == figures.rearranged == 1
    assert sample.tokens[: len(tokenizer.encode("a cat reads")) + 2].tolist() == framed(tokenizer, ["a cat reads"])


def test_only_the_sets_it_is_for_are_rearranged(tokenizer: Tokenizer) -> None:
    class Sets(Rows):
        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(index)._replace(set_id=index % 3)

    row = framed(tokenizer, make_texts(0, 5), 60)
    samples = FimSamples(Sets([row] * 6), tokenizer, 1.0, 0.5, seed=2, sets=[1])
    assert [samples[i].tokens.tolist() == row for i in range(6)] == [True, False, True] * 2
    assert [samples[i].set_id for i in range(6)] == [0, 1, 2] * 2


def test_the_figures_are_what_a_count_of_the_samples_gives(tokenizer: Tokenizer) -> None:
    rows = [framed(tokenizer, make_texts(i, 9)) for i in range(30)]
    size = min(map(len, rows))
    samples = FimSamples(Rows([row[:size] for row in rows]), tokenizer, 0.6, 0.5, seed=4)
    total, padding, padded = FimFigures(), 0, 0
    for i in range(30):
        sample, figures = samples.rearranged(i)
        total += figures
        padding += 0 if sample.loss_mask is None else int((sample.loss_mask == 0).sum())
        padded += sample.loss_mask is not None
        same = sample.tokens.tolist() == rows[i][:size]
        assert same == (figures.rearranged == 0)
    assert (total.samples, total.tokens, total.padding, total.padded) == (30, 30 * size, padding, padded)
    assert 0 < total.rearranged < total.whole < total.segments and total.tokens_lost > 0
    assert f"{total.segments} segments rearranged" in str(total) and "truncated" in str(total)


def test_rate_0_changes_nothing_and_rate_1_every_whole_document(tokenizer: Tokenizer) -> None:
    row = framed(tokenizer, make_texts(0, 20), 200)
    assert FimSamples(Rows([row]), tokenizer, 0.0, 0.5, 1)[0][0].tolist() == row
    changed = FimSamples(Rows([row]), tokenizer, 1.0, 0.5, 1)[0][0]
    assert np.count_nonzero(changed == tokenizer.special_ids["<FIM_MIDDLE>"]) == 20


def test_the_rates_are_kept(tokenizer: Tokenizer) -> None:
    row = framed(tokenizer, make_texts(0, 8), 300)
    samples = FimSamples(Rows([row] * 40), tokenizer, 0.3, 0.25, seed=1)
    prefix, suffix, _ = (tokenizer.special_ids[mark] for mark in MARKS)
    found = np.concatenate([samples[i][0] for i in range(40)])
    done = np.count_nonzero(found == prefix)
    spm = np.count_nonzero((found[:-1] == prefix) & (found[1:] == suffix))
    assert done / (40 * 8) == pytest.approx(0.3, abs=0.06)
    assert spm / done == pytest.approx(0.25, abs=0.08)


def test_documents_cut_by_the_samples_edge_stay_as_they_are(tokenizer: Tokenizer) -> None:
    first, whole, last = (tokenizer.encode(text) for text in ("a cat reads", "the long night", "book by book"))
    eod = tokenizer.eod_id
    tokens, *_ = FimSamples(Rows([[*first, eod, *whole, eod, *last]]), tokenizer, 1.0, 0.5, seed=2)[0]
    assert tokens[: len(first) + 1].tolist() == [*first, eod]
    assert tokens[len(first) + 1] == tokenizer.special_ids["<FIM_PREFIX>"]
    only_edges = [*first, eod, *last]
    assert FimSamples(Rows([only_edges]), tokenizer, 1.0, 0.5, seed=2)[0][0].tolist() == only_edges


def test_it_depends_on_seed_and_sample_alone(tokenizer: Tokenizer) -> None:
    rows = Rows([framed(tokenizer, make_texts(4, 5), 100)] * 2)
    one, other = FimSamples(rows, tokenizer, 0.5, 0.5, 7), FimSamples(rows, tokenizer, 0.5, 0.5, 7)
    backwards = [other[i][0].tolist() for i in (1, 0)][::-1]
    assert [one[i][0].tolist() for i in (0, 1)] == backwards
    assert backwards[0] != backwards[1], "the same text in two samples is cut in two ways"
    assert FimSamples(rows, tokenizer, 0.5, 0.5, 8)[0][0].tolist() != backwards[0]


def test_a_sample_keeps_its_length_and_padding_has_no_loss(tokenizer: Tokenizer) -> None:
    # A word of one id, cut in two, makes more ids; line breaks, each apart already, and words spaced by two make fewer.
    rows = [framed(tokenizer, make_texts(i, 4)) for i in range(20)]
    samples = FimSamples(Rows(rows), tokenizer, 1.0, 0.5, 3)
    for i, row in enumerate(rows):
        tokens, mask = samples[i][:2]
        assert tokens.shape == (len(row),) and tokens.dtype == np.int64
        assert mask is None or (mask == (tokens != tokenizer.pad_id)).all()


def test_a_shorter_sample_is_padded_at_the_right_and_the_batch_masks_it(tokenizer: Tokenizer) -> None:
    # These ids spell "cat" letter by letter, as no encoder would: put into text and back they are fewer.
    letters = [tokenizer.special_ids["<eod>"], *(_byte(tokenizer, b) for b in b"the cat reads " * 8), tokenizer.eod_id]
    source = FimSamples(Rows([letters]), tokenizer, 1.0, 0.5, 3)
    tokens, mask = source[0][:2]
    real = int(np.flatnonzero(tokens == tokenizer.eod_id)[-1]) + 1
    assert real < len(letters) and mask is not None
    assert (tokens[real:] == tokenizer.pad_id).all()
    assert mask[:real].all() and not mask[real:].any()
    (batch,) = Microbatches(source, DataConfig(seq_length=len(letters) - 1), tokenizer.eod_id, 1, 1, 0, 1).step(0)
    assert batch.loss_mask.sum() == real - 1


def _byte(tokenizer: Tokenizer, value: int) -> int:
    return SentencePieceProcessor(model_file=str(tokenizer.path)).piece_to_id(f"<0x{value:02X}>")


def test_ids_that_are_no_text_stay_as_they_are(tokenizer: Tokenizer) -> None:
    row = [tokenizer.eod_id, _byte(tokenizer, 0xFF), *tokenizer.encode("cat"), tokenizer.eod_id]
    assert FimSamples(Rows([row]), tokenizer, 1.0, 0.5, 3)[0][0].tolist() == row


def test_a_document_with_an_id_that_the_tokenizer_lacks_stays_as_it_is_and_is_counted(tokenizer: Tokenizer) -> None:
    a, strange, eod = tokenizer.encode("a")[0], tokenizer.vocab_size, tokenizer.eod_id
    row = [eod, a, strange, eod, a, eod, a, a, a]
    sample, figures = FimSamples(Rows([row]), tokenizer, rate=1.0, spm_rate=0.5, seed=0).rearranged(0)
    assert sample.tokens[:4].tolist() == row[:4]
    assert figures.impossible == figures.rearranged == 1


def test_special_tokens_are_never_cut_in_two(tokenizer: Tokenizer) -> None:
    row = framed(tokenizer, ["<sep>" * 6], 60)
    samples = FimSamples(Rows([row] * 30), tokenizer, 1.0, 0.5, seed=5)
    for i in range(30):
        (found,) = documents(samples[i][0], tokenizer.eod_id)
        assert found.count(tokenizer.special_ids["<sep>"]) == 6 and len(found) == 9


def test_a_tokenizer_without_the_marks_is_refused(tokenizer: Tokenizer) -> None:
    without: Any = SimpleNamespace(path="t.model", special_ids={"<FIM_PREFIX>": 5}, eod_id=1, pad_id=2)
    with pytest.raises(DataError, match=r"fim_rate 0\.5 needs <FIM_SUFFIX>, <FIM_MIDDLE>.*t\.model"):
        FimSamples(Rows([[1]]), without, 0.5, 0.5, 0)
