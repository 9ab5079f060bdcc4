"""What importing a codec leaves out of CompressAI, and that the rest of the process can still have it."""

import sys

import pytest
import scipy.stats
from programs import run

from codec.compressai import GaussianConditional, _without_unused
from codec.network.gaussian import Gaussian

CODE = """
import sys
import codec.checkpoint
print(*sorted({"pandas", "scipy.stats", "torch._dynamo", "torch_geometric", "torchvision"} & sys.modules.keys()))
import compressai.transforms
from compressai.datasets import ImageFolder
print(compressai.transforms.RGB2YCbCr()(sys.modules["torch"].zeros(1, 3, 2, 2)).shape, ImageFolder.__getitem__.__name__)
"""


@pytest.mark.slow
def test_a_codec_needs_neither_datasets_nor_point_clouds_and_they_can_be_imported_afterwards() -> None:
    done = run("-c", CODE)
    assert done.returncode == 0, done.stderr
    none, rest = done.stdout.splitlines()
    assert none == ""
    assert rest == "torch.Size([1, 3, 2, 2]) __getitem__"


def test_what_was_imported_before_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = scipy.stats
    with _without_unused():
        import scipy.stats as found
    assert found is there is sys.modules["scipy.stats"]
    monkeypatch.delitem(sys.modules, "scipy.stats")
    monkeypatch.setattr(scipy, "stats", there)
    with _without_unused():
        import scipy.stats as empty
    assert not hasattr(empty, "norm")
    assert "scipy.stats" not in sys.modules


@pytest.mark.parametrize("quantile", [5e-10, 0.025])
def test_the_quantile_is_that_of_scipy_to_the_last_bit(quantile: float) -> None:
    ours, theirs = (each._standardized_quantile(quantile) for each in (Gaussian, GaussianConditional))
    assert ours == theirs == scipy.stats.norm.ppf(quantile)
