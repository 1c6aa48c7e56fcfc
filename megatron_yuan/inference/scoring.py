"""How likely texts are: of a context, each of its continuations; the context is gone through once for all of them.

Shapes: B rows, C longest continuation, H hidden, V ids in use.

Contexts are padded at the left and batched by length. Where continuations have more than one token, the context's
caches are handed to a row of each, and all their tokens go through at once. A router that looks at all tokens at hand
would have what else is in a batch decide the scores: its texts go through one by one, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_yuan.inference.decoding import Decoder, pad_left
from megatron_yuan.inference.model import LanguageModel

LOGITS = 2**26
"""Scores held at a time; more are made in parts."""


class Score(NamedTuple):
    """Of one continuation behind its context."""

    logprob: float
    """Sum of the natural logarithms of its tokens' probabilities."""
    greedy: bool
    """Whether each of its tokens is the likeliest one where it stands."""


class Question(NamedTuple):
    """A context, at least one token, and continuations of at least one token each."""

    context: Sequence[int]
    continuations: Sequence[Sequence[int]]


@torch.inference_mode()
def score(
    model: LanguageModel,
    questions: Sequence[Question],
    batch_size: int = 16,
    done: Callable[[int, list[Score]], None] = lambda number, scores: None,
) -> list[list[Score]]:
    """The scores of each question's continuations, in order; `done` is told each as it is known.

    On several stages every process calls this with the same questions.
    """
    alone = model.config.moe_router == "expert-choice"
    batch_size = 1 if alone else batch_size
    order = sorted(range(len(questions)), key=lambda i: -len(questions[i].context))
    found: list[list[Score]] = [[] for _ in questions]
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        found_here = (
            [_score_alone(model, questions[batch[0]])] if alone else _score_batch(model, [questions[i] for i in batch])
        )
        for number, scores in zip(batch, found_here, strict=True):
            found[number] = scores
            done(number, scores)
    return found


def _score_batch(model: LanguageModel, questions: Sequence[Question]) -> list[list[Score]]:
    ids_BP, first_B = pad_left([question.context for question in questions], model.device)
    most = max(len(each) for question in questions for each in question.continuations)
    decoder = Decoder(
        model, model.checked(ids_BP), first_B, ids_BP.shape[1] + most, True, model.vocabulary_in_use, model.relay
    )
    first_BH = _last(decoder.hidden())
    owners = [row for row, question in enumerate(questions) for _ in question.continuations]
    continuations = [each for question in questions for each in question.continuations]
    states = first_BH[owners].unsqueeze(1) if first_BH is not None else None
    if most > 1:
        rest = _continue(model, decoder, owners, continuations)
        states = torch.cat((states, rest), dim=1) if states is not None and rest is not None else None
    scores = None if states is None else _judge(model, states, continuations)
    flat = iter(_shared(model, scores, len(continuations)))
    return [[next(flat) for _ in question.continuations] for question in questions]


def _score_alone(model: LanguageModel, question: Question) -> list[Score]:
    """Each text from its start by itself; continuations that differ in their last token alone are one."""
    seen: dict[tuple[int, ...], Tensor | None] = {}
    scores = []
    for continuation in question.continuations:
        before = tuple(continuation[:-1])
        if before not in seen:
            ids_1S = model.checked(torch.tensor([[*question.context, *before]]))
            hidden = Decoder(model, ids_1S, None, 0, False, model.vocabulary_in_use, model.relay).hidden()
            seen[before] = None if hidden is None else hidden[:, len(question.context) - 1 :]
        states = seen[before]
        scores += _shared(model, None if states is None else _judge(model, states, [continuation]), 1)
    return scores


def _shared(model: LanguageModel, scores: Tensor | None, count: int) -> list[Score]:
    logprobs, greedy = model.relay.share(scores, (2, count), torch.float64, model.device).tolist()
    return [Score(logprob, bool(best)) for logprob, best in zip(logprobs, greedy, strict=True)]


def _last(hidden_BSH: Tensor | None) -> Tensor | None:
    return None if hidden_BSH is None else hidden_BSH[:, -1]


def _continue(
    model: LanguageModel, decoder: Decoder, owners: list[int], continuations: Sequence[Sequence[int]]
) -> Tensor | None:
    """States [B, C - 1, H] behind all tokens of the continuations but their last; short ones are padded at the right,
    where nothing looks back on it."""
    most = max(map(len, continuations)) - 1
    rows = torch.tensor(owners, device=model.device)
    filled = [[*each[:-1], *[0] * (most - len(each) + 1)] for each in continuations]
    branch = decoder.branch(rows, torch.tensor(filled, device=model.device))
    return branch.hidden(every=True)


def _judge(model: LanguageModel, states_BCH: Tensor, continuations: Sequence[Sequence[int]]) -> Tensor:
    """[2, B] float64: log-probability of each continuation, and 1 where all of it is the likeliest."""
    logprobs = torch.zeros(len(continuations), dtype=torch.float64, device=states_BCH.device)
    greedy = torch.ones_like(logprobs)
    for position, rows, tokens in _columns(continuations, states_BCH.device):
        step = max(1, LOGITS // model.config.padded_vocab_size)
        for part, ids in zip(rows.split(step), tokens.split(step), strict=True):
            logits_BV = model.logits(states_BCH[part, position])[:, : model.vocabulary_in_use].float()
            chosen_B = logits_BV.gather(1, ids.unsqueeze(1)).squeeze(1)
            logprobs[part] += chosen_B.double() - logits_BV.logsumexp(dim=-1).double()
            greedy[part] *= logits_BV.argmax(dim=-1) == ids
    return torch.stack((logprobs, greedy))


def _columns(continuations: Sequence[Sequence[int]], device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Position, the continuations that reach it, and their tokens there."""
    for position in range(max(map(len, continuations))):
        rows = [row for row, each in enumerate(continuations) if len(each) > position]
        tokens = [continuations[row][position] for row in rows]
        yield position, torch.tensor(rows, device=device), torch.tensor(tokens, device=device)
