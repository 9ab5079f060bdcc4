"""`make gpu`, or `python -m benchmarks.gpu`: every part says pass, fail or not applicable, with the reason.

Prints a table and writes `benchmarks/results/gpu.json`. Exit status: 0 no part failed, 1 one failed, 2 there is no GPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

CORES_OF_A_PART = 4
CROPS, TINY_CROPS = 64, 8
"""Crops of each of five photographs: batches of 128 fit twice, and a tiny run ends within its first epoch."""

AT_ONCE = 4
"""Parts that run at once where they do not measure time: most of it goes to imports and compilers."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts; returns the exit status."""
    options = _parser().parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    together = max(1, min(AT_ONCE, cores // CORES_OF_A_PART)) if options.device == "cuda" else 1
    if options.device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    threads = cores // together if options.device == "cuda" else 1
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    import torch  # after the variables, which it reads

    gpus = torch.cuda.device_count()
    if options.device == "cuda" and not gpus:
        print("error: there is no CUDA GPU here; --device cpu --tiny tries the script without one", file=sys.stderr)
        return 2
    if options.device == "cpu":
        import matplotlib.figure  # noqa: F401, so that no fork has to
        import torch._dynamo  # for the same reason
    from benchmarks.gpu.parts import PARTS
    from benchmarks.gpu.report import RESULT, place, report, say, summary
    from benchmarks.gpu.runner import FAIL, run_all
    from benchmarks.gpu.setting import Setting
    from benchmarks.pictures import prepared

    names = [part.name for part in PARTS]
    if unknown := set(options.part or ()) - set(names):
        print(f"error: --part {' '.join(sorted(unknown))}: use some of {', '.join(names)}", file=sys.stderr)
        return 2
    chosen = [part for part in PARTS if not options.part or part.name in options.part]
    out = options.out or (None if options.tiny else RESULT)  # a dry run has no results to keep
    where, outcomes = place(), []
    with TemporaryDirectory() as folder:
        coco224 = prepared(Path(folder), TINY_CROPS if options.tiny else CROPS)
        setting = Setting(options.device, options.tiny, coco224, Path(folder))
        for outcome in run_all(chosen, setting, gpus or 2, options.minutes, together):
            outcomes.append(outcome)
            say(outcome)
            if out:  # after each part: the machine may be gone before the end
                report(outcomes, where, out)
    print(summary(outcomes, where))
    return int(any(outcome.status == FAIL for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Checks and measures the trainer.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run [cuda]")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes: whether the script works, no figures")
    parser.add_argument("--minutes", type=float, default=10, help="time of all parts [10]")
    parser.add_argument("--part", nargs="+", metavar="NAME", help="these parts only [all]")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the results [benchmarks/results/gpu.json; none with --tiny]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
