"""The pretrained weights of CompressAI's model zoo."""

from torch import Tensor

from codec.errors import InputError


def zoo_widths(quality: int) -> tuple[int, int]:
    """(N, M) of bmshj2018_factorized in CompressAI's zoo at quality 1..8."""
    return (128, 192) if quality <= 5 else (192, 320)


def zoo_state(quality: int) -> dict[str, Tensor]:
    """The zoo's weights of bmshj2018_factorized (MSE), downloaded once into torch's hub cache.

    Raises:
        InputError: they cannot be downloaded.
    """
    from compressai.zoo import bmshj2018_factorized

    try:
        state: dict[str, Tensor] = bmshj2018_factorized(quality, pretrained=True, progress=False).state_dict()
    except OSError as error:  # URLError and every time-out below it
        raise InputError(
            f"--pretrained true: CompressAI's weights of quality {quality} cannot be downloaded ({error}); use "
            "--pretrained false to start from random weights or --init_checkpoint FILE to start from a file"
        ) from error
    return state
