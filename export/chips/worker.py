"""`python -m export.chips.worker NAME`: compiles one part, in the environment of that compiler.

It reads a job from stdin and writes the answer to stdout, both in JSON. What compilers print goes to stderr. It ends
with the process that started it. Python 3.10 must read this file too.
"""

import json
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from export.chips.compiler import Compiler, Job, Refused
from export.chips.compilers import COMPILERS
from export.chips.lifetime import end_with

OUTPUT = "output.npy"
"""In the job's folder: the output in the chip's arithmetic, where the compiler simulates it."""


def answer(compiler: Compiler, job: Job) -> dict[str, Any]:
    """Compiles and simulates; every error of a compiler is a complaint, because they have no common class."""
    try:
        estimate = compiler.figures(job, compiler.compile(job))
    except Refused as error:
        return {"complaint": f"the compiler refuses it: {error}", "figures": {}}
    except Exception as error:
        traceback.print_exc()
        return {"complaint": f"the compiler fails: {type(error).__name__}: {first_line(error)}", "figures": {}}
    said = {"complaint": estimate.complaint, "figures": estimate.figures}
    try:
        simulated = compiler.simulate(job)
    except Exception as error:
        traceback.print_exc()
        return said | {"simulation": f"its simulator fails: {type(error).__name__}: {first_line(error)}"}
    if simulated is not None:
        np.save(job.folder / OUTPUT, simulated)
    return said


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no reason given")


def main() -> None:
    """Answers one job."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers print to stdout, also from C++
    compiler = COMPILERS[sys.argv[1]]
    given = json.load(sys.stdin)
    end_with(given["parent"])
    job = Job(given["part"], given["target"], Path(given["folder"]), given["options"])
    found = answer(compiler, job)
    json.dump(found | {"tool": f"{compiler.package} {version(compiler.package)}"}, replies)
    replies.close()


if __name__ == "__main__":
    main()
