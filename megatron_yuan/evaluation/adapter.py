"""Our inference in the form that the harness asks for: log-probabilities of continuations and of texts, and answers.

To the harness every process is alone and gets all requests. Here each replica takes its share of what is still to be
asked, all stages of a replica together, and in the end every process has all answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_yuan.errors import CheckpointError, ConfigError
from megatron_yuan.evaluation.answers import Answers, fingerprint, request_key
from megatron_yuan.inference.model import LanguageModel
from megatron_yuan.inference.scoring import Question, score
from megatron_yuan.inference.stopping import cut_text
from megatron_yuan.inference.streaming import text_behind
from megatron_yuan.log import console

DEFAULT_NEW_TOKENS = 256


class Wish(NamedTuple):
    """An answer in words that is asked for."""

    prompt: list[int]
    until: tuple[str, ...]
    max_new_tokens: int


class Adapter(TemplateLM):
    """A model before the harness. `output`: where answers are kept; `speaks`: draws a progress bar."""

    def __init__(
        self,
        model: LanguageModel,
        batch_size: int = 16,
        output: Path | None = None,
        max_new_tokens: int | None = None,
        speaks: bool = True,
    ) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise CheckpointError("the model has no tokenizer; name the one of its data: --tokenizer-model FILE")
        if model.eod_id is None:
            raise ConfigError("the model has no <eod>, which questions without a context begin with.")
        if batch_size < 1:
            raise ConfigError(f"batch-size is {batch_size}, but must be 1 or more.")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens is {max_new_tokens}, but must be 1 or more.")
        self.model, self.text, self._eod = model, model.tokenizer, model.eod_id
        self.batch_size, self.limit, self._speaks = batch_size, max_new_tokens, speaks
        self.max_length = model.config.max_position_embeddings
        self.cut: dict[str, int] = {"prompts": 0, "answers": 0}
        """How many prompts were cut at the left, and answers held shorter than asked, to fit the context."""
        self.model_key = fingerprint(model) if output is not None else ""
        writes = output is not None and model.relay.stage == 0
        self.answers = Answers(output / f"answers-{model.relay.replica}.jsonl" if writes and output else None)
        # All processes leave out the same, also where they do not see the same files.
        self.answers.known = model.relay.gather_replicas(model.relay.gather_stages(self.answers.known)[0])[0]
        self.reused = 0

    def notes(self) -> list[str]:
        """What a reader of the figures should know."""
        notes = []
        if self.cut["prompts"]:
            notes.append(
                f"{self.cut['prompts']} requests were longer than the context of {self.max_length} tokens and were cut "
                "at the left"
            )
        if self.cut["answers"]:
            notes.append(
                f"{self.cut['answers']} answers had at most {self.max_length // 2} tokens, half the context, instead "
                "of the task's limit"
            )
        if self.reused:
            notes.append(f"{self.reused} answers were known from before")
        return notes

    @property
    def eot_token_id(self) -> int:
        """<eod>, which also stands where a context is empty."""
        return self._eod

    @property
    def tokenizer_name(self) -> str:
        """Known to the harness by its hash."""
        return self.text.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids, with nothing before or after."""
        return self.text.encode(string)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the harness has it."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        found = self._scored(pairs, "loglikelihood")
        return [(float(logprob), bool(greedy)) for logprob, greedy in found]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of whole texts: each token once, behind as much as the context holds."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self._eod, max_seq_len=self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, windows):
                pairs.append((tuple(context), tuple(continuation)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._scored(pairs, "rolling"), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy answers up to and without the first of a request's stop strings, or to its limit."""
        wishes = [self._wish(*request.args) for request in requests]
        keys = [request_key(self.model_key, "generate", *wish) for wish in wishes]
        by_key = dict(zip(keys, wishes, strict=True))

        def ask(mine: Sequence[str], done: Callable[[str, Any], None]) -> None:
            # The longest first: what does not fit into memory shows at once.
            order = sorted(mine, key=lambda key: (by_key[key][1:], -len(by_key[key].prompt)))
            while order:
                first = by_key[order[0]]
                batch = [key for key in order[: self.batch_size] if by_key[key][1:] == first[1:]]
                order = order[len(batch) :]
                for key, answer in zip(batch, self._answer([by_key[key] for key in batch]), strict=True):
                    done(key, answer)

        return self._found(keys, {key: -len(wish.prompt) for key, wish in by_key.items()}, ask, "answers")

    def _wish(self, prompt: str, settings: dict[str, Any]) -> Wish:
        if settings.get("do_sample") or settings.get("temperature"):
            raise ConfigError("a task asks for sampled answers, but evaluation is greedy: set do_sample: false in it.")
        until = settings.get("until") or []
        until = (until,) if isinstance(until, str) else tuple(until)
        limit = int(settings.get("max_gen_toks") or settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS)
        limit = limit if self.limit is None else min(limit, self.limit)
        if limit > self.max_length // 2:
            limit = max(1, self.max_length // 2)
            self.cut["answers"] += 1
        ids = self.tok_encode(prompt) or [self._eod]
        room = max(1, self.max_length - limit)
        self.cut["prompts"] += len(ids) > room
        return Wish(ids[-room:], until, limit)

    def _answer(self, wishes: Sequence[Wish]) -> list[str]:
        until, limit = wishes[0].until, wishes[0].max_new_tokens
        found = self.model.complete([wish.prompt for wish in wishes], limit, stop_strings=until)
        return [
            cut_text(text_behind(wish.prompt, completion.ids, self.text.spell), until)
            for wish, completion in zip(wishes, found, strict=True)
        ]

    def _fitting(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The pair, cut at the left to what the model is meant for: its last token is only predicted."""
        room = self.max_length + 1
        self.cut["prompts"] += len(context) + len(continuation) > room
        continuation = continuation[-(room - 1) :]
        return tuple(context[-max(1, room - len(continuation)) :]), tuple(continuation)

    def _scored(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], kind: str) -> list[Any]:
        """[log-probability, greedy] of each; a context is gone through once for all its continuations."""
        keys = [request_key(self.model_key, kind, *pair) for pair in pairs]
        by_key = dict(zip(keys, pairs, strict=True))
        # Choices of one question go to one replica, whichever that is.
        number = {context: i for i, context in enumerate(sorted({pair[0] for pair in pairs}, key=len, reverse=True))}

        def ask(mine: Sequence[str], done: Callable[[str, Any], None]) -> None:
            contexts: dict[tuple[int, ...], list[str]] = {}
            for key in mine:
                contexts.setdefault(by_key[key][0], []).append(key)
            questions = [Question(context, [by_key[key][1] for key in own]) for context, own in contexts.items()]
            groups = list(contexts.values())

            def tell(which: int, scores: list[Any]) -> None:
                for key, each in zip(groups[which], scores, strict=True):
                    done(key, [each.logprob, each.greedy])

            if questions:
                score(self.model, questions, self.batch_size, tell)

        return self._found(keys, {key: number[pair[0]] for key, pair in by_key.items()}, ask, "log-probabilities")

    def _found(
        self,
        keys: Sequence[str],
        rank: dict[str, int],
        ask: Callable[[Sequence[str], Callable[[str, Any], None]], None],
        what: str,
    ) -> list[Any]:
        """The answer to each key: those known, and what `ask` finds of this replica's share, and the others of theirs.

        Those of one `rank` stay together.
        """
        known = self.answers.known
        open_keys = [key for key in dict.fromkeys(keys) if key not in known]
        self.reused += len(set(keys)) - len(open_keys)
        replica, replicas = self.model.relay.replica, self.model.relay.replicas
        ranks = {each: i for i, each in enumerate(sorted({rank[key] for key in open_keys}))}
        mine = [key for key in open_keys if ranks[rank[key]] % replicas == replica]
        new: dict[str, Any] = {}
        pulse = self.model.relay.pulse
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(), disable=not self._speaks or not mine) as bar:
            line = bar.add_task(what, total=len(mine))

            def done(key: str, value: Any) -> None:
                new[key] = value
                self.answers.note(key, value)
                bar.advance(line)
                pulse.beat(f"{pulse.during}questions")

            ask(mine, done)
        for theirs in self.model.relay.gather_replicas(new):
            known.update(theirs)
        return [known[key] for key in keys]
