"""Runs code of users' blocks: what it raises is one line, and it cannot end the program."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import torch

from coco224.command import SignalCame
from codec.errors import InputError, in_plugin, plugin_error


@contextmanager
def code_of_block(fault: str) -> Iterator[None]:
    """Runs a method of a block, which may be a user's.

    Args:
        fault: what an error of it means, for example "g_a.1: the block's fit fails".

    Raises:
        InputError: the method raised something; an InputError of its own passes as it is, and so does a signal.
    """
    try:
        yield
    except (InputError, SignalCame):
        raise
    except BaseException as error:
        raise InputError(f"{fault}: {plugin_error(error)}") from error


def execute(loader: SourceFileLoader, module: ModuleType) -> BaseException | None:
    """Runs a plugin in its own thread and returns what it raised; threads that it starts end with the program."""

    def work() -> None:
        try:
            loader.exec_module(module)
        except BaseException as error:
            raised.append(error)

    raised: list[BaseException] = []
    _forbid_exit()
    folder, dtype = Path.cwd(), torch.get_default_dtype()
    try:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join()
    finally:
        os.chdir(folder)
        torch.set_default_dtype(dtype)
        for name in ("stdout", "stderr"):
            if getattr(sys, name).closed:
                setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    return raised[0] if raised else None


def _forbid_exit() -> None:
    """From now on os._exit raises SystemExit where a plugin's code calls it; a process that it forks may still end."""

    def leave(status: int) -> NoReturn:
        frame: FrameType | None = sys._getframe()
        while frame and os.getpid() == process:
            if in_plugin(frame):
                raise SystemExit(status)
            frame = frame.f_back
        end(status)

    end, process = os._exit, os.getpid()
    if end.__module__ != __name__:
        os._exit = leave
