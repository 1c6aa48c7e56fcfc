"""Convert weights between a native checkpoint and the published layouts, tensor by tensor.

    python tools/convert_checkpoint.py --load HF_FOLDER --save RUN_FOLDER --to native
    python tools/convert_checkpoint.py --load MEGATRON_FOLDER --save RUN_FOLDER --to native      (mp_rank_00_PPP/*.pt)
    python tools/convert_checkpoint.py --load RUN_FOLDER --save HF_FOLDER --to hf [--ckpt-step 1000] [--with-code]

With code, transformers opens the folder: AutoModelForCausalLM.from_pretrained(HF_FOLDER, trust_remote_code=True).
Every tensor is accounted for, none changes a bit, and memory stays at about one tensor of one expert.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_yuan.errors import ConfigError, run_command_line


def main() -> None:
    """Convert, and say where the result is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--load",
        type=Path,
        required=True,
        help="HF folder, Megatron folder of the published code, or run folder or checkpoint",
    )
    parser.add_argument("--save", type=Path, required=True, help="folder to write; must not exist, or be empty")
    parser.add_argument("--to", choices=("hf", "native"), required=True, help="layout to write")
    parser.add_argument("--ckpt-step", type=int, help="with --to hf: the step to take, instead of the latest")
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="with --to hf: write modelling code, the tokenizer's settings and a model card too, for transformers",
    )
    arguments = parser.parse_args()

    # torch takes seconds to import; a mistyped command line must not.
    from megatron_yuan.checkpoint.load import open_checkpoint
    from megatron_yuan.convert.hf import import_hf
    from megatron_yuan.convert.hf_config import unlike_published
    from megatron_yuan.convert.hf_export import export_hf
    from megatron_yuan.convert.hf_folder import open_hf_folder
    from megatron_yuan.convert.megatron_legacy import import_legacy, is_legacy
    from megatron_yuan.report.model_card import model_card

    if arguments.to == "native" and arguments.ckpt_step is not None:
        raise ConfigError("ckpt-step chooses a step of a run, but an HF folder has none; drop it.")
    if arguments.to == "native" and arguments.with_code:
        raise ConfigError(
            "with-code writes modelling code for transformers, which --to native has no use for; drop it."
        )
    if arguments.to == "native" and is_legacy(arguments.load):
        written = import_legacy(arguments.load, arguments.save)
        print("weights alone were taken; the optimizer's state there is left behind: go on with --finetune")
    elif arguments.to == "native":
        written = import_hf(arguments.load, arguments.save)
    else:
        more = {}
        if arguments.with_code:
            checkpoint = open_checkpoint(arguments.load, arguments.ckpt_step)
            if checkpoint.tokenizer is None:
                print(f"{checkpoint.path} has no tokenizer: the export will have weights and code alone")
            more["README.md"] = model_card(checkpoint, arguments.save.resolve().name).encode()
        written = export_hf(
            arguments.load,
            arguments.save,
            arguments.ckpt_step,
            with_code=arguments.with_code,
            more_files=more,
        )
        unlike = unlike_published(open_hf_folder(written).config.model)
        if unlike and not arguments.with_code:
            print(f"the published code does not know of {', '.join(unlike)}: it would compute otherwise")
    print(f"wrote {written}")


if __name__ == "__main__":
    run_command_line(main)
