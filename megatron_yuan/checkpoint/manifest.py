"""The manifest: every file of a checkpoint with size, sha256 and tensors. Written last; what it lacks is not there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from megatron_yuan.checkpoint import layout, strict_json
from megatron_yuan.checkpoint.damage import DamagedError
from megatron_yuan.checkpoint.store import TensorSpec
from megatron_yuan.errors import CheckpointError

FORMAT = "megatron-yuan checkpoint"
VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileRecord:
    """One file: size in bytes, sha256 in hex, and for a safetensors file its tensors."""

    size: int
    sha256: str
    tensors: dict[str, TensorSpec] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """All files of the checkpoint of a step, by path inside it. The tensors' shapes are the model's shape."""

    step: int
    files: dict[str, FileRecord]

    def tensors(self, kind: str) -> dict[str, tuple[str, TensorSpec]]:
        """Tensors of `kind` (model or optimizer), name -> (file, spec)."""
        chosen = {path: record for path, record in self.files.items() if path.startswith(f"{kind}/")}
        return {name: (path, spec) for path, record in chosen.items() for name, spec in record.tensors.items()}

    def to_json(self) -> str:
        """The text of manifest.json, with a hash of its own content."""
        files: dict[str, Any] = {}
        for path, record in sorted(self.files.items()):
            files[path] = {"size": record.size, "sha256": record.sha256}
            if record.tensors:
                files[path]["tensors"] = {name: spec.to_json() for name, spec in sorted(record.tensors.items())}
        content = {"version": VERSION, "step": self.step, "files": files}
        return strict_json.readable(
            {"format": FORMAT, "version": VERSION, "sha256": _hash(content), "content": content}
        )

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Manifest:
        """The inverse, for text of unknown origin: any oddity is a CheckpointError, a newer version first of all."""
        outer = strict_json.parse(text, source)
        version, content = outer.get("version"), outer.get("content")
        if outer.get("format") != FORMAT or not strict_json.is_count(version) or not version:
            raise DamagedError(f"{source} is not the manifest of a {FORMAT}")
        whole = isinstance(content, dict) and content.get("version", version) == version
        if version > VERSION and whole:
            raise CheckpointError(f"{source} has format version {version}, newer than {VERSION}: upgrade megatron-yuan")
        if not isinstance(content, dict) or not whole or outer.get("sha256") != _hash(content):
            raise DamagedError(f"{source} is damaged: it does not agree with its own sha256")
        step, files = content.get("step"), content.get("files")
        if not isinstance(step, int) or not strict_json.is_count(step) or not isinstance(files, dict):
            raise CheckpointError(f"{source} has no step or no files")
        found = cls(step, {path: _parse_record(path, entry, source) for path, entry in files.items()})
        for needed in (layout.RUN_STATE, layout.CONFIG):
            if needed not in found.files:
                raise CheckpointError(f"{source} lists no {needed}")
        return found


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.canonical(content).encode()).hexdigest()


def _parse_record(path: str, entry: Any, source: str) -> FileRecord:
    if not layout.is_own_file(path):
        raise CheckpointError(f"{source} lists the file {path[:200]!r}, which no checkpoint has: refused")
    here = f"{source}, file {path},"
    if not isinstance(entry, dict) or not strict_json.is_count(entry.get("size")):
        raise CheckpointError(f"{here} has no size")
    if not isinstance(entry.get("sha256"), str) or not _SHA256.fullmatch(entry["sha256"]):
        raise CheckpointError(f"{here} has no sha256")
    tensors: dict[str, TensorSpec] = {}
    listed = entry.get("tensors", {})
    if not isinstance(listed, dict):
        raise CheckpointError(f"{here} has no valid list of tensors")
    kind = path.partition("/")[0]
    for name, spec in listed.items():
        owner = name.rpartition(".")[0] if kind == "optimizer" else name
        if layout.file_of(owner, kind) != path:
            raise CheckpointError(f"{here} lists the tensor {name[:200]!r}, which does not belong there")
        if not isinstance(spec, list) or len(spec) != 2:
            raise CheckpointError(f"{here} tensor {name} has no type and shape")
        tensors[name] = TensorSpec.from_json(spec[0], spec[1], f"{here} tensor {name},")
    if sum(spec.nbytes for spec in tensors.values()) > entry["size"]:
        raise CheckpointError(f"{here} has {entry['size']:,} bytes, which its tensors' shapes exceed")
    return FileRecord(entry["size"], entry["sha256"], tensors)
