"""The commands that an installation puts on the PATH: each is `python -m MODULE`, with its exit statuses."""

from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from codec.cli import run


def _command(module: str) -> Callable[[], NoReturn]:
    def command() -> NoReturn:
        run(lambda: import_module(module).main())

    return command


train = _command("train_accel")
evaluate = _command("codec.evaluate")
compress = _command("codec.compress")
decompress = _command("codec.decompress")
push = _command("codec.push")
export = _command("export.__main__")
export_report = _command("export.report")
export_npu = _command("export.npu")
runtime = _command("export.runtime")
