"""A blend as a YAML file (--data-args-path), with a name, a language and a weight for each set:

    sets:
      - {name: zh-web, prefix: data/zh_text_document, weight: 0.6, language: zh}
      - {name: code, prefix: data/code_text_document, weight: 0.4, language: code, fim: true, max_epochs: 2}
    valid:
      - {prefix: data/zh_valid_text_document, language: zh}
    test: []

Without `valid` and `test`, --split divides the sets; with either, `sets` are trained on whole. A prefix that is not
absolute counts from the file's folder. A file in Megatron-LM's form, weights and prefixes in turn, is a blend too.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from megatron_yuan.config.fields import perhaps
from megatron_yuan.config.yaml_file import load_plain
from megatron_yuan.data.blend import Entry, read_entries
from megatron_yuan.errors import DataError

PARTS = "sets", "valid", "test"
KEYS = "name", "prefix", "weight", "language", "fim", "max_epochs"


def read_blend_file(path: str | Path) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """The sets to train on, to validate on and to test on. Raises DataError that names file, set and key."""
    path = Path(path)
    where = f"data_args_path {path}"
    try:
        tree = load_plain(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror}). Fix: name a YAML file of sets.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).replace('in "<unicode string>", ', "").split())[:300]
        raise DataError(f"{where} is not YAML: {words}. Fix: mend the file.") from None
    if isinstance(tree, str):  # Megatron-LM's form
        return [_at(path, entry) for entry in read_entries(where, tree.split())], [], []
    if not isinstance(tree, dict) or not tree.get("sets"):
        raise DataError(f"{where} has no sets. Fix: a key 'sets:' with a list of '- {{prefix: ..., weight: ...}}'.")
    for key in tree:
        if key not in PARTS:
            raise DataError(f"{where} has an unknown key {key!r}{perhaps(str(key), PARTS)}. Fix: {', '.join(PARTS)}.")
    sets, valid, test = (_entries(f"{where}, {part}", path, tree.get(part)) for part in PARTS)
    return sets, valid, test


def _entries(where: str, path: Path, items: Any) -> list[Entry]:
    if items is None:
        return []
    if not isinstance(items, list):
        raise DataError(f"{where} holds {_shown(items)}. Fix: a list of sets, '- {{prefix: ..., weight: ...}}' each.")
    entries = [_entry(f"{where}, set {number}", path, item) for number, item in enumerate(items, 1)]
    labels = [entry.label for entry in entries if entry.label is not None]
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"{where} has two sets named {label}. Fix: give each a name of its own.")
    return entries


def _entry(where: str, path: Path, item: Any) -> Entry:
    if not isinstance(item, dict) or not _is_text(item.get("prefix")):
        raise DataError(f"{where} has no prefix. Fix: 'prefix: PREFIX' of PREFIX.bin and PREFIX.idx.")
    for key in item:
        if key not in KEYS:
            raise DataError(f"{where} has an unknown key {key!r}{perhaps(str(key), KEYS)}. Fix: {', '.join(KEYS)}.")
    for key in ("name", "language"):
        if item.get(key) is not None and not _is_text(item[key]):
            raise DataError(f"{where}: {key} is {_shown(item[key])}, but must be a text (in quotes, say). Fix: one.")
    if item.get("fim") is not None and not isinstance(item["fim"], bool):
        raise DataError(f"{where}: fim is {_shown(item['fim'])}. Fix: true or false.")
    weight, most = _number(where, "weight", item.get("weight")), _number(where, "max_epochs", item.get("max_epochs"))
    if most is not None and not (0 < most < math.inf):
        raise DataError(f"{where}: max_epochs is {most}, but must be above 0. Fix: drop it, or give the most you want.")
    entry = Entry(item["prefix"], weight, item.get("name"), item.get("language"), item.get("fim"), most)
    return _at(path, entry)


def _number(where: str, key: str, value: Any) -> float | None:
    try:
        if value is None or not isinstance(value, bool | list | dict):
            return None if value is None else float(value)  # YAML 1.1 reads 1e-4 (no dot) as text
    except (ValueError, TypeError, OverflowError):
        pass
    raise DataError(f"{where}: {key} is {_shown(value)}, which is no number. Fix: such as 0.25.")


def _at(path: Path, entry: Entry) -> Entry:
    prefix = str(path.parent / Path(entry.prefix).expanduser())
    return Entry(prefix, entry.weight, entry.label, entry.language, entry.fim, entry.max_epochs)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
