"""Convert weights between a native checkpoint and the published layouts, tensor by tensor.

    python tools/convert_checkpoint.py --load HF_FOLDER --save RUN_FOLDER --to native
    python tools/convert_checkpoint.py --load MEGATRON_FOLDER --save RUN_FOLDER --to native      (mp_rank_00_PPP/*.pt)
    python tools/convert_checkpoint.py --load RUN_FOLDER --save HF_FOLDER --to hf [--ckpt-step 1000]

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
    arguments = parser.parse_args()

    # torch takes seconds to import; a mistyped command line must not.
    from megatron_yuan.convert.hf import import_hf
    from megatron_yuan.convert.hf_config import unlike_published
    from megatron_yuan.convert.hf_export import export_hf
    from megatron_yuan.convert.hf_folder import open_hf_folder
    from megatron_yuan.convert.megatron_legacy import import_legacy, is_legacy

    if arguments.to == "native" and arguments.ckpt_step is not None:
        raise ConfigError("ckpt-step chooses a step of a run, but an HF folder has none; drop it.")
    if arguments.to == "native" and is_legacy(arguments.load):
        written = import_legacy(arguments.load, arguments.save)
        print("weights alone were taken; the optimizer's state there is left behind: go on with --finetune")
    elif arguments.to == "native":
        written = import_hf(arguments.load, arguments.save)
    else:
        written = export_hf(arguments.load, arguments.save, arguments.ckpt_step)
        unlike = unlike_published(open_hf_folder(written).config.model)
        if unlike:
            print(f"the published code does not know of {', '.join(unlike)}: it would compute otherwise")
    print(f"wrote {written}")


if __name__ == "__main__":
    run_command_line(main)
