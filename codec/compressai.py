"""What the codecs take from CompressAI, which is imported without the libraries that a codec does not use.

`import compressai` loads its datasets and transforms, and with them torchvision, torch_geometric, pandas and
torch._dynamo; and scipy.stats for one quantile. That takes longer than torch itself.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_UNUSED = ("compressai.datasets", "compressai.transforms", "scipy.stats", "torch_geometric", "torchvision")


class _Empty(MetaPathFinder, Loader):
    """Finds an empty module for each of these names, and for those below it.

    Attributes:
        found: the names of the empty modules, each after its package.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.found: list[str] = []

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        empty = any(f"{name}.".startswith(f"{each}.") for each in self.names)
        return ModuleSpec(name, self, is_package=True) if empty else None

    def exec_module(self, module: ModuleType) -> None:
        self.found.append(module.__name__)


@contextmanager
def _without_unused() -> Iterator[None]:
    """Within it what is not imported yet is empty; afterwards it can be imported."""
    finder = _Empty([name for name in _UNUSED if name not in sys.modules])
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in reversed(finder.found):
            del sys.modules[name]
            package, _, last = name.rpartition(".")
            if package:
                delattr(sys.modules[package], last)


with _without_unused():
    from compressai import zoo
    from compressai.entropy_models import EntropyBottleneck, EntropyModel, GaussianConditional
    from compressai.layers import GDN
    from compressai.models import CompressionModel, FactorizedPrior, MeanScaleHyperprior, ScaleHyperprior
    from compressai.models.base import get_scale_table
    from compressai.models.utils import remap_old_keys
    from compressai.zoo.image import model_urls
    from compressai.zoo.pretrained import load_pretrained

__all__ = [
    "GDN",
    "CompressionModel",
    "EntropyBottleneck",
    "EntropyModel",
    "FactorizedPrior",
    "GaussianConditional",
    "MeanScaleHyperprior",
    "ScaleHyperprior",
    "get_scale_table",
    "load_pretrained",
    "model_urls",
    "remap_old_keys",
    "zoo",
]
