"""`python -m benchmarks`: every benchmark but benchmarks.gpu in a process of its own, then the pages that show them."""

import subprocess
import sys

BENCHMARKS = (
    *("step", "forms", "profile", "overhead", "ddp", "curves", "data", "memory", "startup", "coding", "damage"),
    *("everywhere", "generated", "large", "device", "deployment", "fidelity", "families", "compilers"),
    *("chips", "page"),
)

if __name__ == "__main__":
    for name in (*BENCHMARKS, "table"):
        print(f"== {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
