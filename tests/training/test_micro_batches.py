"""Micro-batches come with their noise keys and rates, and are on a GPU before its step begins."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from programs import TINY, into
from torch import Tensor

import training.micro_batches
import training.rates
from coco224.batches import TrainBatches
from coco224.dataset import open_split
from codec.network.bottleneck import noise_keys
from train_accel import optimizer_step
from training.micro_batches import DrawnBatches, MicroBatch, copied_ahead, micro_batches
from training.options import parse
from training.preempt import StopSignal
from training.rates import drawn_rates
from training.setup import set_up


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rates", [1, 4])
def test_keys_and_rates_are_those_of_the_step_wherever_a_run_begins(
    coco224: Path, num_workers: int, rates: int
) -> None:
    rows = open_split(coco224, "train")
    assert rows is not None
    batches = TrainBatches(
        rows, seed=3, input_size=64, hflip=True, batch_size=2, grad_accum=2, rank=1, world_size=2
    )  # 6 steps an epoch
    drawn = DrawnBatches(batches, 3, rates)
    loaded = list(micro_batches(drawn, rows.decodes, num_workers, 4, 9, torch.device("cpu")))
    assert len(loaded) == 10
    for k, batch in enumerate(loaded, start=8):
        images, numbers, places = batches[k]
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.rows, numbers)
        assert torch.equal(batch.keys, noise_keys(3, k // 2, places))
        if rates == 1:
            assert batch.rates is None
        else:
            assert torch.equal(batch.rates, drawn_rates(rates, 3, k // 2, places))


def test_no_step_draws_its_keys_and_rates(coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def noted(seed: int, step: int, places: Tensor) -> Tensor:
        threads.append(threading.current_thread().name)
        return noise_keys(seed, step, places)

    for module in (training.micro_batches, training.rates):
        monkeypatch.setattr(module, "noise_keys", noted)
    words = ["--coco_dir", coco224, *TINY, *into(tmp_path), "--rates", 3, "--lambda_mse", "0.003:0.03"]
    optimizer_step(set_up(parse([str(word) for word in words])), StopSignal())
    assert len(threads) >= 2  # keys and rates; the next batch may be drawn already
    assert all(name.startswith("reader") for name in threads)


def test_a_batch_is_copied_while_the_gpu_computes_with_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the streams are stand-ins, which note what happens in which order."""
    done: list[str] = []
    stream = ["computing"]

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = str(name)

        def wait_stream(self, other: "Stream") -> None:
            done.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def within(chosen: Stream) -> Iterator[None]:
        stream.append(chosen.name)
        yield
        stream.pop()

    def to(tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        assert non_blocking
        done.append(f"{stream[-1]} copies {int(tensor.flatten()[0])} to {device}")
        return tensor.clone()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(Tensor, "to", to)
    monkeypatch.setattr(Tensor, "record_stream", lambda t, s: done.append(f"{s.name} keeps {int(t.flatten()[0])}"))

    def batch(number: int) -> MicroBatch:
        images, keys, rates = (torch.full((2,), 10 * number + i) for i in range(3))
        return MicroBatch(images, torch.tensor([number]), keys, rates if number else None)

    for got in copied_ahead(map(batch, range(3)), torch.device("cuda")):
        done.append(f"step {int(got.rows)}")
    assert done == [
        *[f"copying copies {value} to cuda" for value in (0, 1)],
        "computing waits for copying",
        *[f"copying copies {value} to cuda" for value in (10, 11, 12)],
        *["computing keeps 0", "computing keeps 1", "step 0"],
        "computing waits for copying",
        *[f"copying copies {value} to cuda" for value in (20, 21, 22)],
        *["computing keeps 10", "computing keeps 11", "computing keeps 12", "step 1"],
        "computing waits for copying",
        *["computing keeps 20", "computing keeps 21", "computing keeps 22", "step 2"],
    ]
