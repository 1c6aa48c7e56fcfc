"""Look at data: at a set's documents, and at what a run is trained on.

    python tools/inspect_data.py document PREFIX 17 --tokenizer-model FILE    document 17 (from 0), decoded
    python tools/inspect_data.py find PREFIX TEXT --tokenizer-model FILE      documents whose text contains TEXT
    python tools/inspect_data.py lengths PREFIX --png lengths.png             how long documents are
    python tools/inspect_data.py verify PREFIX                                every byte against the passport
    python tools/inspect_data.py step RUN 120                                 the samples of step 120 as trained on
    python tools/inspect_data.py shares RUN --samples 100000                  measured shares of the sets beside weights

PREFIX is of PREFIX.bin and PREFIX.idx. RUN is a run folder (--save), whose data lie where its settings say; where these
are relative, call this from where the run was started.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_yuan.errors import ConfigError, run_command_line
from megatron_yuan.log import configure, console

if TYPE_CHECKING:
    from megatron_yuan.data.tokenizer import Tokenizer


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_subparsers(dest="what", required=True, metavar="WHAT")

    def command(name: str, help: str, subject: str = "prefix") -> argparse.ArgumentParser:
        each = of.add_parser(name, help=help)
        each.add_argument(subject, metavar=subject.upper(), type=Path if subject == "run" else str)
        if subject == "prefix" and name != "lengths":
            each.add_argument("--tokenizer-model", help="SentencePiece model that made the data")
        return each

    document = command("document", "one document, decoded")
    document.add_argument("number", metavar="I", type=int, help="from 0")
    document.add_argument("--ids", action="store_true", help="its ids instead; needs no tokenizer")
    find = command("find", "documents whose text contains a text")
    find.add_argument("text", metavar="TEXT")
    find.add_argument("--limit", type=int, default=20, help="stop after so many documents (20)")
    lengths = command("lengths", "lengths of documents")
    lengths.add_argument("--png", type=Path, help="draw the histogram into this file")
    command("verify", "a pair against its passport, every byte read")
    step = command("step", "the samples of one step of a run", "run")
    step.add_argument("number", metavar="N", type=int, help="from 1")
    step.add_argument("--limit", type=int, help="show only the first so many samples")
    step.add_argument("--json", type=Path, help="write ids, masks, positions and spans into this file instead")
    command("shares", "measured shares of a run's sets", "run").add_argument(
        "--samples", type=int, help="of the first so many samples; unset, of the whole run"
    )
    arguments = parser.parse_args()
    if getattr(arguments, "limit", None) is not None and arguments.limit < 1:
        raise ConfigError(f"limit is {arguments.limit}, but must be at least 1.")
    return arguments


def main() -> None:
    """Look, and print what was found."""
    arguments = parse()
    configure()
    lines = {
        "document": show_document,
        "find": find_documents,
        "lengths": show_lengths,
        "verify": verify,
        "step": show_step,
        "shares": show_shares,
    }
    lines[arguments.what](arguments)


def show_document(arguments: argparse.Namespace) -> None:
    """One document."""
    from megatron_yuan.inspection.documents import Documents

    documents = Documents(arguments.prefix, None if arguments.ids else _tokenizer(arguments))
    ids = documents[arguments.number]
    console().print(f"document {arguments.number} of {len(documents):,}: {len(ids):,} tokens", style="bold")
    # Written as it is: the console would take out carriage returns and make spaces of tabs.
    print(" ".join(map(str, ids.tolist())) if arguments.ids else documents.text(arguments.number))


def find_documents(arguments: argparse.Namespace) -> None:
    """One line for each document that contains the text, with what stands around it."""
    from megatron_yuan.inspection.documents import Documents, shown

    documents, found = Documents(arguments.prefix, _tokenizer(arguments)), 0
    for number, place in documents.find(arguments.text):
        console().print(f"{number}: {shown(documents.text(number), place, len(arguments.text))}")
        found += 1
        if found == arguments.limit:
            console().print(f"stopped after {found} documents (--limit)", style="dim")
            return
    console().print(f"{found} of {len(documents):,} documents contain it", style="bold")


def show_lengths(arguments: argparse.Namespace) -> None:
    """Totals, quantiles, a histogram, and its picture."""
    from megatron_yuan.inspection.documents import Documents
    from megatron_yuan.inspection.lengths import describe_lengths, draw_lengths

    documents = Documents(arguments.prefix)
    for line in describe_lengths(documents.source.name, documents.lengths):
        console().print(line)
    if arguments.png is not None:
        draw_lengths(documents.source.name, documents.lengths, arguments.png)
        console().print(f"drew {arguments.png}")


def verify(arguments: argparse.Namespace) -> None:
    """A pair against its passport."""
    from megatron_yuan.inspection.documents import open_tokenizer
    from megatron_yuan.inspection.soundness import verify_pair

    model = arguments.tokenizer_model
    with tempfile.TemporaryDirectory() as nowhere:
        verify_pair(
            arguments.prefix, open_tokenizer(model, "") if model else None, Path(nowhere), lambda t: console().print(t)
        )


def show_step(arguments: argparse.Namespace) -> None:
    """The samples of a step."""
    from megatron_yuan.inspection.step import open_step
    from megatron_yuan.inspection.step_report import step_json, step_lines

    step = open_step(arguments.run, arguments.number)
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(step_json(step)) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"json is {arguments.json}, which cannot be written ({error.strerror}).") from None
        return
    for line in step_lines(step, arguments.limit):
        console().print(line)


def show_shares(arguments: argparse.Namespace) -> None:
    """Measured shares."""
    from megatron_yuan.inspection.shares import measure_shares, share_lines

    for line in share_lines(*measure_shares(arguments.run, arguments.samples)):
        console().print(line)


def _tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    from megatron_yuan.inspection.documents import open_tokenizer

    return open_tokenizer(arguments.tokenizer_model, arguments.prefix)


if __name__ == "__main__":
    run_command_line(main)
