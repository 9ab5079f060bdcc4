"""The blocks that replace GDN. All modules of this folder are imported: to add a block, add a file.

Your own block only needs `from codec.blocks import register_activation`; see `registry` for its interface.
"""

from importlib import import_module
from pkgutil import iter_modules

from codec.blocks.guard import code_of_block
from codec.blocks.registry import (
    Block,
    block_named,
    block_names,
    block_options,
    block_shapes,
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
    "block_shapes",
    "code_of_block",
    "load_plugin",
    "make_options",
    "new_block",
    "options_dict",
    "register_activation",
]
