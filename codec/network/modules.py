"""Changes the class of a module in place."""

from typing import Any

from torch import nn


def mix_in(module: nn.Module, mixin: type[nn.Module], **attributes: Any) -> None:
    """Gives the module a class derived from `mixin` and its own class, in place: `super()` calls the module's methods.

    A wrapper module would rename every key of the state dict, and `isinstance(module, nn.Conv2d)` would be False for
    it. Changing the class keeps parameters, buffers, hooks, names and the training mode.

    Args:
        attributes: class attributes of the new class.
    """
    cls = type(module)
    module.__class__ = type(cls.__name__, (mixin, cls), attributes)
