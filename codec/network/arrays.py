"""Tensors as numpy arrays."""

from torch import Tensor

from codec.description.file import Arrays


def as_arrays(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as numpy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
