from __future__ import annotations

import torch

from megatron_yuan.data.batch import document_start, make_batch

EOD = 9
ROWS = torch.tensor([[4, EOD, 5, 6, EOD, 7, 8], [EOD, EOD, 1, 2, 3, 4, EOD]])


def test_labels_are_the_tokens_that_follow():
    batch = make_batch(ROWS, [3, 4], EOD)
    assert batch.tokens.tolist() == ROWS[:, :-1].tolist()
    assert batch.labels.tolist() == ROWS[:, 1:].tolist()
    assert batch.sample_ids == (3, 4)


def test_every_token_has_loss_and_positions_run_through_unless_told_otherwise():
    batch = make_batch(ROWS, [0, 1], EOD)
    assert batch.loss_mask.tolist() == [[1.0] * 6] * 2
    assert batch.position_ids.tolist() == [list(range(6))] * 2
    assert batch.document_start is None


def test_reset_positions_count_from_the_token_after_an_eod():
    batch = make_batch(ROWS, [0, 1], EOD, reset_position_ids=True)
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]
    assert batch.document_start is None, "documents still see each other"


def test_isolated_documents_know_where_they_start():
    batch = make_batch(ROWS, [0, 1], EOD, reset_attention_mask=True)
    assert batch.document_start is not None
    assert batch.document_start.tolist() == [[0, 0, 2, 2, 2, 5], [0, 1, 2, 2, 2, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]


def test_document_starts_equal_a_slow_count():
    tokens = torch.randint(0, 4, (5, 50), generator=torch.Generator().manual_seed(0))
    for row, found in zip(tokens.tolist(), document_start(tokens, 0).tolist(), strict=True):
        start = 0
        for i in range(50):
            start = i if i and row[i - 1] == 0 else start
            assert found[i] == start


def test_eod_mask_loss_leaves_out_what_follows_an_eod():
    batch = make_batch(ROWS, [0, 1], EOD, eod_mask_loss=True)
    assert batch.loss_mask.tolist() == [[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]]


def test_a_samples_own_mask_marks_labels():
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1]])
    batch = make_batch(ROWS, [0, 1], EOD, loss_mask_BS1=mask)
    assert batch.loss_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    both = make_batch(ROWS, [0, 1], EOD, eod_mask_loss=True, loss_mask_BS1=mask)
    assert both.loss_mask.tolist() == [[1, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]


def test_to_the_device_it_is_on_is_the_same():
    batch = make_batch(ROWS, [0, 1], EOD)
    assert batch.to(torch.device("cpu")) is batch


def test_documents_may_begin_where_no_eod_goes_before():
    begins = torch.zeros(ROWS.shape, dtype=torch.bool)
    begins[0, 3] = True
    batch = make_batch(ROWS, [0, 1], EOD, reset_attention_mask=True, begins_BS1=begins)
    assert batch.document_start is not None
    assert batch.document_start.tolist() == [[0, 0, 2, 3, 3, 5], [0, 1, 2, 2, 2, 2]]
    assert not begins[0, 2], "what was given is not written into"
