"""The count of generated GPU code, which needs no GPU."""

import pytest

from benchmarks.generated import of_step


@pytest.mark.slow
def test_a_step_s_gpu_code_has_its_convolutions_and_no_matrix_product() -> None:
    counts = of_step("relu", quality=1, batch=2)
    assert counts.calls == {"convolution": 8, "convolution_backward": 8}
    assert counts.products == 0
    assert 0 < counts.kernels < 90
    assert counts.kernels_gb > 0
    assert counts.calls_gb > 0
