"""A run that is killed at any moment and restarted ends as one that was left alone, bit for bit (kills.py: many)."""

from pathlib import Path

import pytest
from programs import run

pytestmark = pytest.mark.slow

KILLS = Path(__file__).with_name("kills.py")


@pytest.mark.parametrize(
    ("ranks", "kills", "seed", "arch"), [(1, 3, 3, "bmshj2018_factorized"), (2, 2, 4, "mbt2018_mean")]
)
def test_killed_runs_leave_what_the_undisturbed_one_leaves(
    ranks: int, kills: int, seed: int, arch: str, coco224: Path
) -> None:
    done = run(KILLS, "--ranks", ranks, "--kills", kills, "--seed", seed, "--arch", arch, "--coco_dir", coco224)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} of {kills} disturbed runs left what the undisturbed one left, bit for bit" in done.stdout
