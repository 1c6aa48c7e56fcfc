"""Text in segments that can be encoded one by one, and so be remembered: the same ids as of the whole, several times
as fast.

Byte-pair encoding only ever joins two neighbouring symbols to a piece of the vocabulary. So no symbol reaches over a
boundary between characters a and b if no piece has b right after a: what happens on one side is then the same whatever
is on the other. All such boundaries are cut, which leaves words and short phrases; most have been met before.

This holds for models of one kind (`Segments.sound`): byte-pair encoding; text taken as it is but for spaces, each of
which is U+2581; no piece marked unused, as one that is split again would look at the text's other pieces; and bytes
for unknown characters, as runs of these would otherwise become one <unk>. Others are encoded whole. (A unigram model's
scores are sums of float32 over all the text before, so what it chooses may depend on that.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise

import numpy as np
import sentencepiece

from megatron_yuan.data.sentencepiece_model import WITHOUT_PREFIX, read_settings
from megatron_yuan.data.tokenizer import SPACE, Tokenizer

REMEMBERED = 200_000  # segments; about 40 MB
LONGEST_REMEMBERED = 64  # characters
_TAIL = 2**14  # characters looked through first for a place to cut
_END = "\0"  # stands between segments; texts with it are encoded whole


class Segments:
    """Encodes plain text, which holds no special token and no NUL, with the SentencePiece model of `tokenizer`.

    In one thread: unasked, SentencePiece takes one for each core, and there is a worker for each already.
    """

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype) -> None:
        self._model, self.dtype = tokenizer.model, dtype
        model, settings = tokenizer.model, read_settings(tokenizer.model.serialized_model_proto())
        size = model.get_piece_size()
        self.sound = (
            settings.bpe
            and settings.identity
            and settings.byte_fallback
            and not any(model.is_unused(i) for i in range(size))
        )
        """Whether texts may be cut at all."""
        self._mark = SPACE if settings.prefix else ""
        if self.sound:
            self._joined = _JoinedPairs([model.id_to_piece(i) for i in range(size)])
            self._in_specials = {pair for token in tokenizer.in_text for pair in pairwise(token)}
            self._ends_of_specials = {token[-1] for token in tokenizer.in_text}
            self._bare = sentencepiece.SentencePieceProcessor()
            self._bare.LoadFromSerializedProto(model.serialized_model_proto() + WITHOUT_PREFIX)
            self._known: dict[str, bytes] = {}

    def last_cut(self, text: str, after: int = 0) -> int:
        """The last place behind `after` at which `text`, special tokens and all, may be cut in two; 0: nowhere.

        What is behind it then continues what is before it: no special token ends there, nor reaches over it.
        """
        for start in (max(after, len(text) - _TAIL), after):
            for cut in reversed((self._joined.free(_characters(text[start:])) + start).tolist()):
                pair = text[cut - 1], text[cut]
                if pair[0] not in self._ends_of_specials and pair not in self._in_specials:
                    return cut
        return 0

    def encode(self, runs: Sequence[str], continued: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Ids of `runs`, none of which is empty, one after another, and the number of ids of each [len(runs)] int64.

        `continued`: the first run goes on from text before it.
        """
        if not runs:
            return np.zeros(0, self.dtype), np.zeros(0, np.int64)
        if not self.sound:
            encoded = self._model.encode(list(runs), num_threads=1)
            ids = np.array(list(chain.from_iterable(encoded)), self.dtype)
            return ids, np.fromiter(map(len, encoded), np.int64, len(runs))
        text = (_END + self._mark).join(runs)
        characters = _characters(text if continued else self._mark + text)
        cuts = self._joined.free(characters)
        # With an end put before each segment's first character, two more stand around the one between runs.
        segments = np.insert(characters, cuts, 0).tobytes().decode("utf-32-le").split(_END)
        ids = self._look_up(segments)
        # A run's end leaves two empty segments, by which the first segment of each run is found.
        starts = np.concatenate(([0], np.flatnonzero(characters == 0) + 1))
        first = np.searchsorted(cuts, starts, side="right") + np.arange(len(runs))
        sizes = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.frombuffer(b"".join(ids), self.dtype), np.add.reduceat(sizes, first) // self.dtype.itemsize

    def _look_up(self, segments: list[str]) -> list[bytes]:
        known = self._known
        try:
            return [known[segment] for segment in segments]
        except KeyError:
            pass
        new = [segment for segment in set(segments) if segment not in known]
        if len(known) + len(new) > REMEMBERED:
            known.clear()
            new = list(set(segments))
        encoded = self._bare.encode(new, num_threads=1)
        flat = np.array(list(chain.from_iterable(encoded)), self.dtype).tobytes()
        ends = list(accumulate(len(ids) * self.dtype.itemsize for ids in encoded))
        known.update((s, flat[start:end]) for s, start, end in zip(new, [0, *ends], ends, strict=False))
        found = [known[segment] for segment in segments]
        for segment in new:
            if len(segment) > LONGEST_REMEMBERED:
                del known[segment]
        return found


class _JoinedPairs:
    """Which pairs of characters stand next to each other in some piece."""

    def __init__(self, pieces: Sequence[str]) -> None:
        text = "\0".join(pieces).replace(" ", SPACE)
        characters = _characters(text)
        inside = (characters[:-1] != 0) & (characters[1:] != 0)
        self._kind = np.zeros(0x110000, np.int32)  # 0: in no piece of two characters or more
        alphabet = np.unique(np.concatenate((characters[:-1][inside], characters[1:][inside])))
        self._kind[alphabet] = np.arange(1, len(alphabet) + 1)
        self._kind[ord(" ")] = self._kind[ord(SPACE)]
        self._width = len(alphabet) + 1
        pairs = self._number(characters)[inside]
        self._bits = np.zeros(self._width * self._width // 8 + 1, np.uint8)
        np.bitwise_or.at(self._bits, pairs >> 3, (1 << (pairs & 7)).astype(np.uint8))

    def free(self, characters: np.ndarray) -> np.ndarray:
        """The i for which characters i - 1 and i stand together in no piece."""
        pairs = self._number(characters)
        return np.flatnonzero((self._bits[pairs >> 3] >> (pairs & 7).astype(np.uint8) & 1) == 0) + 1

    def _number(self, characters: np.ndarray) -> np.ndarray:
        kinds = self._kind[characters]
        return kinds[:-1].astype(np.int64) * self._width + kinds[1:]


def _characters(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
