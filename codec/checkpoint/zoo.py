"""The pretrained weights of CompressAI's model zoo."""

import socket
from pathlib import Path

import torch
from torch import Tensor

from coco224.files import FULL, in_words
from codec.description.architecture import DEFAULT_ARCH
from codec.errors import InputError

_LAST_NARROW = {"bmshj2018_factorized": 5, "bmshj2018_hyperprior": 5, "mbt2018_mean": 4}
"""The last quality with the smaller widths."""

_SECONDS = 30.0
"""The longest wait for a server."""


def zoo_widths(quality: int, arch: str = DEFAULT_ARCH) -> tuple[int, int]:
    """(N, M) of an architecture in CompressAI's zoo at quality 1..8."""
    return (128, 192) if quality <= _LAST_NARROW[arch] else (192, 320)


def zoo_state(quality: int, arch: str = DEFAULT_ARCH) -> dict[str, Tensor]:
    """The zoo's weights of an architecture (MSE), downloaded once into torch's hub cache.

    Raises:
        InputError: the weights cannot be downloaded, or the file in the cache is damaged.
    """
    from codec.compressai import zoo

    cached = Path(torch.hub.get_dir(), "checkpoints", _file_name(quality, arch))
    was_there = cached.exists()
    waits = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS)  # torch.hub gives none
    try:
        state: dict[str, Tensor] = getattr(zoo, arch)(quality, pretrained=True, progress=False).state_dict()
    except Exception as error:  # on damaged data the unpickler raises any exception, also OSError
        if isinstance(error, OSError) and (error.errno in FULL or error.filename):
            raise InputError(f"--pretrained true: {in_words(error)}; TORCH_HOME names another cache") from error
        if isinstance(error, OSError) and not was_there:  # URLError and every time-out below it
            raise InputError(
                f"--pretrained true: CompressAI's {arch} of quality {quality} cannot be downloaded ({error}); "
                "use --pretrained false to start from random weights or --init_checkpoint FILE to start from a file"
            ) from error
        if not cached.exists():
            raise
        raise InputError(
            f"--pretrained true: {cached} is damaged (an interrupted download): remove it, and the next run fetches it "
            "again"
        ) from error
    finally:
        socket.setdefaulttimeout(waits)
    return state


def _file_name(quality: int, arch: str) -> str:
    """The file name of the weights in torch's hub cache."""
    from codec.compressai import model_urls

    return str(model_urls[arch.replace("_", "-")]["mse"][quality]).rpartition("/")[2]
