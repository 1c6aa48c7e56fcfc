"""Questions from local files: JSON lines, or the published text form `question<n>A.choice...[SEP]answer`.

A file may be gzipped. A line that a published file holds more than once (its ARC-C has each twice) is asked once; of
MMLU, whose 27 repeated rows are the data set's own, every row is kept.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_yuan.errors import DataError

FILES: dict[str, tuple[str, ...]] = {
    "gsm8k": ("gsm8k_test.jsonl", "gsm8k.jsonl", "gsm8k.txt"),
    "math": ("math.jsonl", "math.txt", "math_458.txt"),
    "mmlu": ("mmlu.jsonl", "mmlu", "MMLU"),
    "arc_challenge": ("arc_challenge.jsonl", "arc_challenge.txt", "ARC_challenge.txt"),
    "humaneval": ("HumanEval.jsonl", "humaneval.jsonl"),
}
"""Names of each benchmark's file, the first that is there is read; a folder holds a text file for each subject."""

CUT = "[SEP]"
Question = dict[str, Any]


def find(benchmark: str, folder: Path) -> Path:
    """The file or folder of a benchmark's questions. DataError where there is none."""
    names = [each for name in FILES[benchmark] for each in (name, f"{name}.gz")]
    for name in names:
        if (folder / name).exists():
            return folder / name
    what = f"holds none of {', '.join(FILES[benchmark])} (or .gz)" if folder.is_dir() else "is no folder"
    raise DataError(f"task-data {folder} {what}, which {benchmark} needs.")


def read(benchmark: str, folder: Path) -> list[Question]:
    """All questions of a benchmark. DataError where they are missing or damaged; it names the line."""
    path = find(benchmark, folder)
    files = sorted(path.glob("*.txt*")) if path.is_dir() else [path]
    questions: list[Question] = []
    for file in files:
        subject = re.sub(r"(_test)?\.txt(\.gz)?$", "", file.name)
        for number, line in _records(file):
            try:
                record = json.loads(line) if ".jsonl" in file.name else {"line": line, "subject": subject}
                if not isinstance(record, dict):
                    raise ValueError(f"a JSON {type(record).__name__}, no object")
                questions.append(PARSERS[benchmark](record))
            except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
                raise DataError(f"{file}, line {number}: not a question of {benchmark} ({error!r}).") from None
    if not questions:
        raise DataError(f"{path} holds no question.")
    if benchmark == "mmlu":
        return questions
    return list({json.dumps(each, sort_keys=True): each for each in questions}.values())


def _records(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each record; one of a text file that is broken over lines is joined."""
    try:
        # A byte order mark, as some editors write one, is no part of the first question.
        how: dict[str, Any] = {"mode": "rt", "encoding": "utf-8-sig"}
        with gzip.open(path, **how) if path.suffix == ".gz" else path.open(**how) as file:
            text = file.read()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    pending = ""
    for number, line in enumerate(text.split("\n"), 1):
        pending = f"{pending}<n>{line}" if pending else line.strip("\r")
        if not pending.strip():
            pending = ""
        elif ".jsonl" in path.name or CUT in pending:
            yield number, pending
            pending = ""
    if pending:
        raise DataError(f"{path}: its last line has no {CUT}; is the file cut off?")


def _split(line: str) -> tuple[str, str]:
    question, answer = line.rsplit(CUT, 1)
    # Published lines may hold worked examples; the question asked is the last.
    question = question.rsplit("Question:", 1)[-1].removesuffix("<sep>")
    return question.replace("<n>", "\n").strip(), answer.replace("<n>", "\n").strip()


def _text(record: dict[str, Any], name: str) -> str:
    if not isinstance(record[name], str):
        raise ValueError(f"{name} is {record[name]!r}, no text")
    record[name].encode()  # half a surrogate pair, as JSON may hold one, is a ValueError
    return record[name]


def _gsm8k(record: dict[str, Any]) -> Question:
    if "line" in record:
        question, answer = _split(_text(record, "line"))
    else:
        question, answer = _text(record, "question"), _text(record, "answer")
    gold = answer.rsplit("####", 1)[-1].strip().replace(",", "")
    if not math.isfinite(float(gold)):
        raise ValueError(f"answer {gold} is no number")
    return {"question": question, "answer": gold}


def _math(record: dict[str, Any]) -> Question:
    if "line" in record:
        question, answer = _split(_text(record, "line"))
    elif "answer" in record:
        question, answer = _text(record, "problem"), _text(record, "answer")
    else:
        from megatron_yuan.evaluation.scoring import boxed

        question, answer = _text(record, "problem"), boxed(_text(record, "solution"))
    if not answer:
        raise ValueError("no answer")
    return {"question": question, "answer": answer}


def _choices(record: dict[str, Any]) -> Question:
    """The choices begin at the last "A." that stands at the start of a line, and go on in the letters' order."""
    text, letter = _split(_text(record, "line"))
    marks = [each for each in re.finditer(r"^([A-K])\.", text, re.MULTILINE)]
    first = max(i for i, mark in enumerate(marks) if mark[1] == "A")
    found = [marks[first]]
    for mark in marks[first + 1 :]:
        if ord(mark[1]) == ord(found[-1][1]) + 1:
            found.append(mark)
    letters = [mark[1] for mark in found]
    if letter not in letters:
        raise ValueError(f"answer {letter!r} is none of {''.join(letters)}")
    return {
        "subject": _text(record, "subject") if "subject" in record else "",
        "question": text,
        "letters": letters,
        "answer": letter,
        "gold": letters.index(letter),
    }


def _humaneval(record: dict[str, Any]) -> Question:
    return {name: _text(record, name) for name in ("task_id", "prompt", "test", "entry_point")}


PARSERS: dict[str, Callable[[dict[str, Any]], Question]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "mmlu": _choices,
    "arc_challenge": _choices,
    "humaneval": _humaneval,
}


def dataset(benchmark: str, folder: str, **_: object) -> dict[str, Any]:
    """As the harness asks for it (`custom_dataset` of a task): one split, `test`."""
    from datasets import Dataset

    return {"test": Dataset.from_list(read(benchmark, Path(folder)))}
