"""Compressed files of one device, decoded on the other."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.setting import Setting
from benchmarks.harness import Row
from coco224.dataset import open_rows
from codec.checkpoint import open_codec
from codec.files import FileCodec
from training.record import LAST

STEPS = 40
PICTURES = 4
CODECS: dict[str, tuple[object, ...]] = {
    "gdn": ("--act", "gdn"),
    "mbt2018_mean, relu": ("--arch", "mbt2018_mean", "--act", "relu"),
    "relu in int8": (
        *("--act", "relu", "--qat", "true", "--qat_scope", "all"),
        *("--qat_calib_steps", 4, "--qat_freeze_after", 8),
    ),
}


def exchange(setting: Setting) -> Iterator[Row]:
    """Files of both devices on both devices: each must decode to the same picture, up to rounding."""
    pictures = _pictures(setting)
    for name, options in CODECS.items():
        steps = 10 if setting.tiny else STEPS
        folder = setting.train(name, "--loss_type", "mse", "--compile", "false", "--max_steps", steps, *options)
        sides = {side: _opened(folder / LAST, device) for side, device in (("GPU", setting.device), ("CPU", "cpu"))}
        latents = {side: codec.latents(pictures) for side, codec in sides.items()}
        # A symbol of z moves many of y: with a hyperprior those of z are compared.
        symbols = {
            side: np.stack([each.y if each.z is None else each.z for each in found]) for side, found in latents.items()
        }
        yield Row(
            f"{name}: symbols that differ between GPU and CPU",
            float(np.mean(symbols["GPU"] != symbols["CPU"])),
            "of all",
            at_most=1e-3,
            sides={"symbols that are not 0": float(np.mean(symbols["CPU"] != 0))},
        )
        for writer, reader in (("GPU", "CPU"), ("CPU", "GPU")):
            files = sides[writer].encode(latents[writer], *pictures.shape[-2:])
            own, other = (_stacked(sides[side].decompress(files)) for side in (writer, reader))
            yield Row(
                f"{name}: values of {PICTURES} files of the {writer}, decoded on the {reader}, more than one level off",
                float(((own - other).abs() > 1).float().mean()),
                "of all",
                at_most=1e-3,
                sides={"largest difference, levels": float((own - other).abs().max())},
            )


def _opened(path: object, device: str) -> FileCodec:
    return FileCodec(open_codec(path).to(device), str(path))  # type: ignore[arg-type]


def _stacked(pictures: list[Tensor]) -> Tensor:
    return torch.stack([picture.cpu() for picture in pictures]).int()


def _pictures(setting: Setting) -> Tensor:
    """Crops uint8 [PICTURES, 3, S, S] of the training split."""
    rows = open_rows(setting.coco224, "train", use_prepared=True)
    assert rows is not None
    corner = np.zeros(PICTURES, np.int32)
    # Rows of one photograph are neighbours: take them from different ones.
    chosen = np.linspace(0, len(rows) - 1, PICTURES).astype(np.int64)
    return torch.from_numpy(rows.read(chosen, corner, corner, rows.size)).permute(0, 3, 1, 2)
