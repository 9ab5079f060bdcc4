"""Errors that no bug of this program makes: one line and status 2."""

import errno
import os
import pickle
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from programs import run as run_program
from torch.utils.data import DataLoader, Dataset

from coco224.command import known_cause
from codec.cli import ArgumentParser, run


def said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_file_system_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stale = OSError(errno.ESTALE, "Stale file handle", "/data/last.safetensors")
    assert said(stale, capsys) == "error: /data/last.safetensors: Stale file handle"
    full = OSError(errno.ENOSPC, "No space left on device", "/data/x")
    assert said(full, capsys).startswith("error: the disk is full (No space left on device), /data/x cannot be written")


def test_memory_and_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert said(refused.value, capsys).startswith("error: out of memory (")
    assert said(torch.OutOfMemoryError("CUDA out of memory."), capsys).startswith("error: out of memory (CUDA")
    assert said(MemoryError(), capsys).startswith("error: out of memory (MemoryError)")
    assert "damaged" in said(pickle.UnpicklingError("invalid load key"), capsys)
    made = DatasetGenerationError("An error occurred while generating the dataset")
    made.__cause__ = OSError(errno.ENOSPC, "No space left on device", "/cache/x.arrow")
    assert "/cache/x.arrow cannot be written" in said(made, capsys)
    compiler = torch._inductor.exc.InductorError(ValueError("no"), None)
    compiler.__cause__ = torch._inductor.exc.CppCompileError(["g++", "kernel.cpp"], "no such header")
    assert said(compiler, capsys).count("--compile false") == 1
    for fails in (lambda x: print(id(x)), lambda x: x @ x):  # as the forward of a block
        with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.TorchRuntimeError)) as refused:
            torch.compile(fails, backend="eager", fullgraph=True)(torch.ones(2, 3))
        capsys.readouterr()  # torch may have logged it
        assert said(refused.value, capsys).endswith("--compile false to run without it")


def test_a_library_that_a_variable_of_the_environment_stops_is_named() -> None:
    done = run_program("train_accel.py", "--coco_dir", "x", TORCH_DISTRIBUTED_DEBUG="all")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: torch cannot be loaded (ValueError: ")


def test_code_that_ends_the_program_is_an_error_and_help_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    """As a block whose forward calls sys.exit(0)."""
    assert said(SystemExit(0), capsys).startswith("error: code of a plugin or library ended the program early")
    assert "\\x1b" in said(SystemExit("\x1b[2J"), capsys)
    with pytest.raises(SystemExit) as ended:
        run(lambda: ArgumentParser(prog="x").parse_args(["--help"]))
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_bug_stays_a_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
    assert known_cause(ValueError("x")) is None


@pytest.mark.parametrize("hidden", [False, True])
def test_sigterm_is_an_orderly_end(hidden: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a library makes another error of it."""

    def main() -> int:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            assert list(tmp_path.iterdir())
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            except BaseException as error:
                if hidden:
                    raise ImportError("initialization failed") from error
                raise
        return 0

    threads = set(threading.enumerate())
    with pytest.raises(SystemExit) as ended:
        run(main)
    for timer in set(threading.enumerate()) - threads:  # it would end this process
        assert isinstance(timer, threading.Timer)
        timer.cancel()
    assert ended.value.code == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class _Unreadable(Dataset[int]):
    def __getitem__(self, number: int) -> int:
        raise OSError(errno.EIO, "Input/output error", "/data/a.jpg")

    def __len__(self) -> int:
        return 1


def test_a_worker_s_error_is_said_without_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="worker process") as failed:
        list(DataLoader(_Unreadable(), num_workers=1))
    assert said(failed.value, capsys) == "error: [Errno 5] Input/output error: '/data/a.jpg'"
