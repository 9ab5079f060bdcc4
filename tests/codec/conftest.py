"""Entropy tables that the coder's tests share."""

import pytest
import torch

from codec.coder import Coder
from codec.entropy import with_tables
from codec.files import tables_of
from codec.model import Architecture, Codec
from codec.tables import Tables


@pytest.fixture(scope="session")
def tables() -> Tables:
    """Of a codec whose densities are narrow and wide: rows of a few to some hundred intervals."""
    torch.manual_seed(0)
    codec = Codec(Architecture(8, 24))
    with torch.no_grad():
        codec.entropy_bottleneck.matrices[0].add_(torch.linspace(-3, 25, 24)[:, None, None])
    return tables_of(with_tables(codec))


@pytest.fixture(scope="session")
def coder(tables: Tables) -> Coder:
    return Coder(tables)
