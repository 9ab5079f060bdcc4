"""Entropy tables that the coder's tests share."""

import pytest
import torch

from codec.bitstream.coder import Coder
from codec.bitstream.tables import Tables
from codec.description.architecture import Architecture
from codec.network.architectures import new_codec
from codec.network.tables import tables_of, with_tables


@pytest.fixture(scope="session")
def tables() -> Tables:
    """Of a codec whose densities are narrow and wide: rows of a few to some hundred intervals."""
    torch.manual_seed(0)
    codec = new_codec(Architecture(8, 24))
    with torch.no_grad():
        codec.entropy_bottleneck.matrices[0].add_(torch.linspace(-3, 25, 24)[:, None, None])
    return tables_of(with_tables(codec))


@pytest.fixture(scope="session")
def coder(tables: Tables) -> Coder:
    return Coder(tables)
