"""The count of generated GPU code, which needs no GPU."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from benchmarks.generated import of_step


@pytest.mark.slow
def test_a_step_s_gpu_code_has_its_convolutions_and_no_matrix_product() -> None:
    """In a process of its own: what torch remembers of the GPU would break later compilations on the CPU.

    It is no fork: autograd refuses to work in one if an earlier test has started its threads.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        counts = pool.submit(of_step, "relu", quality=1, batch=2).result(timeout=300)
    assert counts.calls == {"convolution": 8, "convolution_backward": 8}
    assert counts.products == 0
    assert 0 < counts.kernels < 90
    assert 0 < counts.gb < 0.27  # with Inductor's own decompositions 0.28
