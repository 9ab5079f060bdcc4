"""The blocks that take GDN's place. Every module of this folder is imported: adding a block is adding a file.

A block of one's own needs only `from codec.blocks import register_activation`; see `registry` for its shape.
"""

from importlib import import_module
from pkgutil import iter_modules

from codec.blocks.registry import (
    Block,
    block_named,
    block_names,
    block_options,
    load_plugin,
    make_options,
    new_block,
    options_dict,
    register_activation,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "Block",
    "block_named",
    "block_names",
    "block_options",
    "load_plugin",
    "make_options",
    "new_block",
    "options_dict",
    "register_activation",
]
