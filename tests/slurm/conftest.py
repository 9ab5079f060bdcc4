"""A SLURM for the tests of the batch scripts."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from programs import environment


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two idle nodes; the jobs compute on CPUs with this Python."""
    if missing():
        pytest.skip(f"no {', '.join(missing())} here: apt-get install slurmctld slurmd slurm-client, as .ci/run does")
    of_jobs = environment(ACCELERATE_USE_CPU="true", CUDA_VISIBLE_DEVICES="", CODEC_PYTHON=sys.executable)
    folder: Path = tmp_path_factory.mktemp("slurm")
    with Cluster(folder, of_jobs).running() as cluster:
        yield cluster
