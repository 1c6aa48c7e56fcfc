"""TensorBoard and Weights & Biases: optional places that scalars and pictures go to, by name and step."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_yuan.config.schema import LoggingConfig
from megatron_yuan.errors import ConfigError
from megatron_yuan.log import logger
from megatron_yuan.report.run_folder import RunFolder


class Sink(Protocol):
    """Takes scalars and pictures."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note `values` at `step`."""
        ...

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Note a picture, [height, width, red green blue], at `step`."""
        ...

    def close(self) -> None:
        """Write out what is pending."""
        ...


def open_sinks(
    config: LoggingConfig, folder: RunFolder | None, start_step: int, settings: Mapping[str, Any]
) -> Iterator[Sink]:
    """The sinks that `config` asks for. Raises ConfigError where a package or a folder for one is missing."""
    if config.tensorboard_dir is not None:
        yield TensorBoard(config.tensorboard_dir, start_step)
    if config.wandb_project is not None:
        yield Wandb(config, folder, start_step, settings)


class TensorBoard:
    """Event files in a folder; on resume, what was noted beyond `start_step` is hidden."""

    def __init__(self, folder: str, start_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(_missing(f"tensorboard-dir is {folder}", "tensorboard", error)) from None
        try:
            self._writer = SummaryWriter(folder, purge_step=start_step + 1)
        except OSError as error:
            raise ConfigError(
                f"tensorboard-dir is {folder}, which cannot be written ({error.strerror}): name another folder."
            ) from None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note `values` at `step`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Note a picture at `step`."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run in the run folder; the sessions of one run share one id, kept there."""

    def __init__(
        self, config: LoggingConfig, folder: RunFolder | None, start_step: int, settings: Mapping[str, Any]
    ) -> None:
        asked = f"wandb-project is {config.wandb_project}"
        if folder is None:
            raise ConfigError(f"{asked}, and there is no run folder to write into: give --save DIR too.")
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(_missing(asked, "wandb", error)) from None
        self._image = wandb.Image
        folder.wandb.mkdir(exist_ok=True)
        id_file = folder.wandb / "run_id"
        resumed = start_step > 0 and id_file.exists()
        run_id = id_file.read_text().strip() if resumed else secrets.token_hex(4)
        id_file.write_text(run_id + "\n")
        try:
            self._run = wandb.init(
                project=config.wandb_project,
                name=config.wandb_exp_name,
                dir=str(folder.path),
                # Named here, always: left to wandb it may ask for a login, or fail without one.
                mode=config.wandb_mode,
                id=run_id,
                resume="allow" if config.wandb_mode == "online" else None,
                config=dict(settings),
                # The console is ours: wandb would capture it, and write between the lines.
                settings=wandb.Settings(console="off", silent=True),
            )
        except Exception as error:  # wandb's errors share no narrower base across its versions
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{asked}, wandb-mode is {config.wandb_mode}, and wandb refused ({reason}): "
                "log in with 'wandb login', or use --wandb-mode offline."
            ) from error
        if config.wandb_mode == "offline":
            logger.info(
                "wandb is offline; send it later with: wandb sync %s/wandb/offline-run-*-%s", folder.path, run_id
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note `values` at `step`."""
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Note a picture at `step`."""
        self._run.log({name: self._image(pixels)}, step=step)

    def close(self) -> None:
        """Write out, and upload where online."""
        self._run.finish()


def _missing(asked: str, extra: str, error: ImportError) -> str:
    fix = f"pip install 'megatron-yuan[{extra}]', or leave it out."
    return f"{asked}, but the package {extra} cannot be imported ({error}): {fix}"
