"""How many processes decode rows by default."""

import os

import pytest
import torch

from training.micro_batches import decoders


@pytest.mark.parametrize(
    ("device", "cores", "ranks", "expected"),
    [("cpu", 64, 1, 2), ("cuda", 1, 1, 2), ("cuda", 8, 1, 7), ("cuda", 128, 8, 8), ("cuda", 32, 8, 3)],
)
def test_a_rank_decodes_with_its_share_of_the_cores(
    device: str, cores: int, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert decoders(torch.device(device)) == expected
