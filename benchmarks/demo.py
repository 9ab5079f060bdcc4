"""`python -m benchmarks.demo`: the demo in a process of its own: its time, and what its last screen says."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Row, publish
from codec_demo import BLOCK, SUMMARY

MINUTES = 5.0, 8.0
"""The longest time with AVX512, and without."""


def main() -> None:
    """Runs the demo and keeps its figures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        start = time.perf_counter()
        command = [sys.executable, "-m", "codec_demo", "--out_dir", str(out)]
        subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
        minutes = (time.perf_counter() - start) / 60
        summary = json.loads((out / SUMMARY).read_text())
    has_avx512 = "avx512f" in Path("/proc/cpuinfo").read_text()
    rows = [Row("the demo, from a prepared environment", minutes, "min", at_most=MINUTES[not has_avx512])]
    publish("demo", [*rows, *compared(summary)], {"summary": summary})


def compared(summary: dict[str, Any]) -> list[Row]:
    """How far the codecs are from each other in PSNR, at files of one size."""
    psnr = {each["codec"]: each["psnr"] for each in summary["codecs"]}
    pairs = [
        (f"{BLOCK}, float", "GDN, float", -0.1),
        (f"{BLOCK}, int8", f"{BLOCK}, float", -0.1),
        (f"{BLOCK}, int8", "JPEG", 1.0),
    ]
    where = f"{summary['photograph']}, at most {summary['target_bpp']} bits per pixel"
    return [
        Row(
            f"{one} over {other}",
            psnr[one] - psnr[other],
            "dB",
            at_least=bar,
            sides={f"{one}, dB": psnr[one], f"{other}, dB": psnr[other]},
            note=where,
        )
        for one, other, bar in pairs
    ]


if __name__ == "__main__":
    main()
