"""Shared by all commands: exit status, one-line errors, and an orderly end after a signal. Imports no library."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from coco224.errors import DataError, message, one_line
from coco224.files import in_words
from coco224.ranks import is_first_here

_FIRST_RANK_PRINTS = 3.0  # seconds
_MOST_SECONDS = 10.0  # from SIGTERM to the end


class SignalCame(BaseException):
    """A signal came. Not an Exception, so that no library handles it as an error."""


class Terminated(SignalCame):
    """SIGTERM came."""


def run(main: Callable[[], int | None], bad_input: tuple[type[Exception], ...] = (DataError,)) -> NoReturn:
    """Exits with main's status, or with 2 and one line on stderr for bad input; a bug shows its traceback.

    After Ctrl-C the status is 130, after SIGTERM 143; temporary files are removed before.

    Errors of the file system, of memory, and of a library whose cause is known also give one line. Under a launcher
    all ranks meet the same bad input: only the first rank of each node prints it. If only one rank fails, it prints.

    Args:
        bad_input: the classes of errors that say in one line what is wrong with the input.
    """
    atexit.register(gc.freeze)  # else the interpreter's end searches all objects of torch for cycles, for two seconds
    first_rank = is_first_here()
    try:
        status = _until_sigterm(main)
    except bad_input as error:
        if first_rank:
            failures = getattr(error, "failures", ())
            for each in failures if len(failures) > 1 else ():
                print("failed:", one_line(each), file=sys.stderr)
            print("error:", one_line(error), file=sys.stderr)
        else:
            time.sleep(_FIRST_RANK_PRINTS)  # the launcher stops all ranks as soon as one has ended
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except Terminated:
        if first_rank:  # a launcher stops all others when one has ended
            print("stopped by SIGTERM", file=sys.stderr)
        status = 128 + signal.SIGTERM
    except Exception as error:
        words = known_cause(error)
        if words is None:
            raise
        print("error:", one_line(words), file=sys.stderr)
        status = 2
    sys.exit(status)


def _until_sigterm(main: Callable[[], int | None]) -> int | None:
    """The result of main. SIGTERM raises Terminated in it; a second one, or some seconds, end the process at once."""
    came = False

    def end(number: int, _: FrameType | None) -> NoReturn:
        nonlocal came
        came = True
        signal.signal(number, signal.SIG_DFL)
        # Python drops what is raised in a callback of the garbage collector.
        timer = threading.Timer(_MOST_SECONDS, os.kill, (os.getpid(), number))
        timer.daemon = True
        timer.start()
        raise Terminated

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return main()
    signal.signal(signal.SIGTERM, end)
    try:
        return main()
    except Exception as error:
        if came:  # a library that was being loaded makes an ImportError of it
            raise Terminated from error
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is end:  # a training has handlers of its own
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def known_cause(error: Exception) -> str | None:
    """The cause and what to do, for errors that are not bugs of this program; None for all others.

    Classes of libraries are recognized by name, so that no library is imported here.
    """
    name, text = type(error).__name__, message(error)
    if isinstance(error, OSError):
        return in_words(error) if error.errno is not None else text or name
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return f"out of memory ({text or name}): give smaller pictures, a smaller batch, or a machine with more"
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):
        return f"{text}: name the file or folder itself"
    if library := _not_loaded(error):
        return f"{library} cannot be loaded ({name}: {text}): correct the variables that it reads, or install it again"
    if name not in _LIBRARIES:
        return None
    inner = error.__cause__ or error.__context__
    words = known_cause(inner) if isinstance(inner, Exception) else None
    advice = _LIBRARIES[name]
    return words if words and words.endswith(advice) else f"{words or f'{name}: {text}'}: {advice}"


def _not_loaded(error: Exception) -> str:
    """The library whose import an error ended; empty for other errors, and for those of our own files."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    paths = [Path(code.co_filename).parts for code in frames if code.co_name == "<module>"]
    if not paths or "site-packages" not in paths[-1]:
        return ""
    library = paths[-1][paths[-1].index("site-packages") + 1].removesuffix(".py")
    return "" if library in _OURS else library


_OURS = frozenset({"codec", "codec_demo", "codec_pipeline", "coco224", "export", "train_accel", "training"})
_COMPILER = "torch.compile failed; use --compile false to run without it"
_LIBRARIES = {
    "HFValidationError": "give the name of a repository as USER/NAME",
    "UnpicklingError": "the file is damaged or not a checkpoint; give another",
    "DatasetGenerationError": "the dataset cannot be made; make room in the cache of datasets, or set HF_HOME",
    "InductorError": _COMPILER,
    "BackendCompilerFailed": _COMPILER,
    "CppCompileError": _COMPILER,
    "TorchRuntimeError": _COMPILER,
    "Unsupported": _COMPILER,
    "InvalidCxxCompiler": _COMPILER,
}
