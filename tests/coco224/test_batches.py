"""The order is the seed's: no worker, rank or interruption changes which window of which row comes when."""

import multiprocessing
import os
import queue
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import ROOT, run

from coco224.batches import Batch, EvalBatches, TrainBatches, can_pin, train_loader
from coco224.dataset import Rows, open_photographs, open_split
from coco224.errors import DataError


@pytest.fixture(scope="module")
def rows(coco224: Path) -> Rows:
    rows = open_split(coco224, "train")
    assert rows is not None
    return rows


def batches(rows: Rows, **options: int) -> TrainBatches:
    chosen = {"seed": 0, "input_size": 160, "hflip": True, "batch_size": 8, "grad_accum": 1, "rank": 0, "world_size": 1}
    return TrainBatches(rows, **{**chosen, **options})  # type: ignore[arg-type]


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(left, right) for left, right in zip(a, b, strict=True))


def global_batch(shares: list[Batch]) -> Batch:
    """The micro-batches of all ranks of a step, in the order of their places."""
    images, numbers, places = (torch.cat(parts) for parts in zip(*shares, strict=True))
    order = places.argsort()
    assert torch.equal(places[order], torch.arange(len(places)))
    return Batch(images[order], numbers[order], places[order])


def test_a_batch_is_uint8_and_channels_last(rows: Rows) -> None:
    images, numbers, places = batches(rows)[0]
    assert (images.dtype, numbers.dtype, places.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert images.shape == (8, 3, 160, 160)
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("world_size", "grad_accum"), [(2, 1), (1, 2), (4, 1), (2, 2), (2, 4)])
def test_ranks_and_accumulation_share_one_global_batch(rows: Rows, world_size: int, grad_accum: int) -> None:
    alone = batches(rows)
    ranks = [
        batches(rows, batch_size=8 // world_size // grad_accum, grad_accum=grad_accum, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for step in (0, 5, 6, 13):  # an epoch has six
        shares = [rank[step * grad_accum + micro] for rank in ranks for micro in range(grad_accum)]
        assert equal(global_batch(shares), alone[step])


def test_an_epoch_takes_each_row_at_most_once_and_drops_the_short_batch(rows: Rows) -> None:
    train = batches(rows)
    assert (train.global_batch, train.steps_per_epoch) == (8, 54 // 8)
    epochs = [torch.cat([train[6 * epoch + step].rows for step in range(6)]) for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], torch.cat([batches(rows, seed=1)[step].rows for step in range(6)]))


def test_windows_lie_inside_and_every_second_is_mirrored(rows: Rows) -> None:
    train, mirrored, corners = batches(rows, input_size=216), 0, set()
    for step in range(6):
        for image, number in zip(*train[step][:2], strict=True):
            index, corner = number.numpy()[None], np.zeros(1, int)
            picture = torch.from_numpy(rows.read(index, corner, corner, 224)[0]).permute(2, 0, 1)
            windows = picture.unfold(1, 216, 1).unfold(2, 216, 1)  # 9 x 9 of them
            # Few columns decide; the whole window confirms.
            for flip in (False, True):
                wanted = image.flip(2) if flip else image
                hits = (windows[:, :, :, :2, 0] == wanted[:, None, None, :2, 0]).all(0).all(-1).nonzero().tolist()
                found = next((hit for hit in hits if torch.equal(windows[:, hit[0], hit[1]], wanted)), None)
                if found:
                    mirrored += flip
                    corners.add(tuple(found))
                    break
            else:
                pytest.fail("not a window of its row")
    assert 12 < mirrored < 36  # of 48
    assert len(corners) > 25


def test_without_hflip_and_at_full_size_a_row_comes_as_it_is(rows: Rows) -> None:
    images, numbers, _ = batches(rows, input_size=224, hflip=False)[3]
    corner = np.zeros(8, int)
    assert torch.equal(images.permute(0, 2, 3, 1), torch.from_numpy(rows.read(numbers.numpy(), corner, corner, 224)))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_batches(rows: Rows, num_workers: int) -> None:
    train = batches(rows, batch_size=4, grad_accum=2)
    loaded = list(train_loader(train, 4, 9, num_workers, pin_memory=False))  # over the end of an epoch
    assert len(loaded) == 10
    for k, batch in enumerate(loaded, start=8):
        assert isinstance(batch, Batch)
        assert equal(batch, train[k])
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_run_that_starts_late_goes_on_exactly(rows: Rows) -> None:
    whole = list(train_loader(batches(rows), 0, 14, 0, pin_memory=False))
    late = list(train_loader(batches(rows), 9, 14, 1, pin_memory=False))
    assert all(map(equal, whole[9:], late))


def test_the_next_batch_is_read_while_the_caller_works(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: queue.Queue[int] = queue.Queue()
    train = batches(rows)
    read = TrainBatches.__getitem__

    def noted(self: TrainBatches, k: int) -> Batch:
        begun.put(k)
        if k == 3:
            raise DataError("row 7 cannot be decoded")
        return read(self, k)

    monkeypatch.setattr(TrainBatches, "__getitem__", noted)
    loader = train_loader(train, 0, 6, 0, pin_memory=False)
    next(loader)
    assert [begun.get(timeout=10) for _ in range(2)] == [0, 1]  # 1 is nobody's wish yet
    next(loader), next(loader)
    with pytest.raises(DataError, match="row 7"):
        next(loader)
    assert not any(thread.name.startswith("reader") for thread in threading.enumerate())


@pytest.mark.parametrize(("world_size", "limit"), [(1, None), (2, None), (3, 50), (4, 2), (2, 1000)])
def test_evaluation_takes_every_row_once(rows: Rows, world_size: int, limit: int | None) -> None:
    shares = [EvalBatches(rows, 8, rank, world_size, limit) for rank in range(world_size)]
    taken = [batch for share in shares for batch in share]
    assert sum(map(len, shares)) == len(taken)
    numbers = torch.cat([batch.rows for batch in taken])
    assert sorted(numbers.tolist()) == list(range(min(limit or 54, 54)))
    assert all(batch.images.shape[1:] == (3, 224, 224) for batch in taken)
    corner = np.zeros(1, int)
    last = rows.read(numbers[-1:].numpy(), corner, corner, 224)[0]
    assert torch.equal(taken[-1].images[-1].permute(1, 2, 0), torch.from_numpy(last))


def test_impossible_sizes_are_refused(rows: Rows) -> None:
    with pytest.raises(DataError, match=r"--input_size 256 .* 224"):
        batches(rows, input_size=256)
    with pytest.raises(DataError, match=r"a batch of 64 is larger than the dataset of 54 rows"):
        batches(rows, batch_size=16, grad_accum=2, world_size=2)


def test_unprepared_photographs_make_batches_too(real_coco: Path) -> None:
    rows = open_photographs(real_coco, "validation", 64)
    assert rows is not None
    train = batches(rows, input_size=48)
    assert all(map(equal, train_loader(train, 0, 2, 2, pin_memory=False), (train[0], train[1])))


@pytest.mark.parametrize(("batch_size", "grad_accum"), [(2, 1), (2, 2), (27, 1)])
def test_the_rows_of_every_batch_are_announced_ahead_over_the_ends_of_epochs(
    rows: Rows, batch_size: int, grad_accum: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[list[int]] = []
    read: list[list[int]] = []
    ahead: list[int] = []
    inner = rows.read

    def noted(indices: np.ndarray, *window: Any) -> np.ndarray:
        read.append(indices.tolist())
        ahead.append(len(announced) - len(read))
        return inner(indices, *window)

    monkeypatch.setattr(rows, "read", noted)
    monkeypatch.setattr(rows, "expect", lambda indices: announced.append(indices.tolist()))
    mine = batches(rows, batch_size=batch_size, grad_accum=grad_accum)
    epoch = mine.steps_per_epoch * grad_accum
    for first in (0, epoch + 1):  # a run, then another one that goes on from a step
        for noticed in (announced, read, ahead):
            noticed.clear()
        for k in range(first, 4 * epoch):
            mine[k]
        assert announced[: len(read)] == read  # each once, in order
        assert min(ahead) == (4 if epoch > 4 else epoch)  # no further than the next epoch


def test_a_source_that_fetches_follows_the_epoch_that_is_read_not_the_one_that_is_announced(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[int] = []
    monkeypatch.setattr(rows, "follow", lambda order: events.append(int(order[0])))
    mine = batches(rows)
    firsts = []
    for k in range(18):  # six an epoch
        batch = mine[k]
        if k % 6 == 0:
            firsts.append(int(batch.rows[0]))
        assert events == firsts
    mine.follow(8)
    assert events == [*firsts, firsts[1]]


class Broken:
    """Rows of which one cannot be decoded."""

    decodes, size, fingerprint = True, 16, "broken"

    def __init__(self, kills: bool = False) -> None:
        self._kills = kills

    def __len__(self) -> int:
        return 8

    def order(self, rng: np.random.Generator) -> np.ndarray:
        return np.arange(8)

    def names(self, indices: object) -> list[str]:
        return []

    def follow(self, order: np.ndarray) -> None:
        pass

    def expect(self, indices: np.ndarray) -> None:
        pass

    def read(self, indices: np.ndarray, top: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
        if 5 in indices.tolist():
            if self._kills and multiprocessing.parent_process():
                os.kill(os.getpid(), signal.SIGBUS)  # as where /dev/shm is full
            raise DataError("row 5 of a/train cannot be decoded: prepare the dataset again")
        return np.zeros((len(indices), size, size, 3), np.uint8)


@pytest.mark.slow
def test_a_worker_s_error_is_its_one_line() -> None:
    loader = train_loader(batches(Broken(), input_size=16, batch_size=2), 0, 4, 2, pin_memory=False)
    next(loader), next(loader)
    with pytest.raises(DataError, match=r"^row 5 of a/train cannot be decoded: prepare the dataset again$"):
        next(loader)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_line() -> None:
    """In a process of its own: torch's handler of SIGCHLD raises wherever the main thread happens to be."""
    folder = Path(__file__).parent
    paths = os.pathsep.join(map(str, (folder, folder.parent, ROOT)))
    done = run("-c", "import test_batches; test_batches.read_from_a_worker_that_is_killed()", PYTHONPATH=paths)
    assert done.stdout.startswith("a worker process failed"), done.stderr
    assert "--num_workers 0" in done.stdout
    assert done.stdout.count("\n") == 1


def read_from_a_worker_that_is_killed() -> None:
    try:
        list(train_loader(batches(Broken(kills=True), input_size=16, batch_size=2), 0, 4, 1, pin_memory=False))
    except DataError as error:
        print(error, flush=True)
        os._exit(0)


@pytest.mark.parametrize("free", [0, 600_000])
def test_without_shared_memory_threads_read_the_same_batches(
    rows: Rows, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr("coco224.batches.shared_memory", lambda: free)
    train = batches(rows)
    with pytest.warns(UserWarning, match=r"/dev/shm has .* 3 worker processes need .* read by threads"):
        loaded = list(train_loader(train, 4, 14, 3, pin_memory=False))  # over the ends of two epochs
    monkeypatch.undo()
    assert all(map(equal, loaded, train_loader(batches(rows), 4, 14, 0, pin_memory=False)))


def test_the_processes_of_a_machine_share_its_shared_memory(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    train = batches(rows)
    monkeypatch.setattr("coco224.batches.shared_memory", lambda: 3 * train.batch_bytes)  # enough for one process
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.warns(UserWarning, match=r"/dev/shm has .* 4 worker processes need .* read by threads"):
        next(train_loader(train, 0, 1, 1, pin_memory=False))


def test_without_page_locked_memory_batches_are_in_ordinary_memory(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def refuse(*shape: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCompile with ...")
        return empty(*shape, **options)

    train = batches(rows)
    can_pin.cache_clear()
    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.warns(UserWarning, match="not in page-locked memory, .* CUDA error: out of memory$"):
        loaded = list(train_loader(train, 0, 2, 0, pin_memory=True))
    assert all(map(equal, loaded, train_loader(train, 0, 2, 0, pin_memory=False)))
