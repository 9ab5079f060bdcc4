"""A prepared dataset to the Hub and back: the same rows in the same order, downloaded or streamed."""

import copy
import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import Hub, point_at
from programs import TINY, into, rows, run, same, train, weights

from coco224.batches import TrainBatches
from coco224.dataset import open_rows
from coco224.errors import DataError
from coco224.reading import parquet, stream
from coco224.reading.stream import StreamedRows

PUSH = ["--push_to_hub", "true", "--hub_dataset_id", "alice/coco"]


@pytest.fixture(scope="module")
def published(coco224: Path, tmp_path_factory: pytest.TempPathFactory) -> Hub:
    """A Hub that has the embedded photographs as a dataset, uploaded by the command from the folder `coco224`."""
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        point_at(hub, tmp_path_factory.mktemp("hf"), patch)
        done = run("-m", "coco224.prepare", "--coco_dir", "sample", "--out_dir", coco224, *PUSH, HF_HUB_OFFLINE="0")
        assert done.returncode == 0, done.stderr
        assert "holds this dataset already" in done.stdout
        assert done.stdout.endswith("uploaded: train_accel.py --coco_dir alice/coco\n")
    return hub


@pytest.fixture
def coco_hub(published: Hub, hub: Hub) -> Hub:
    """An own Hub with that dataset, and empty caches."""
    hub.repositories, hub.objects = published.repositories, published.objects
    return hub


def pixels(data: object, count: int) -> np.ndarray:
    zero = np.zeros(count, np.int32)
    read: np.ndarray = data.read(np.arange(count), zero, zero, data.size)  # type: ignore[attr-defined]
    return read


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_come_back_as_they_were(coco_hub: Hub, coco224: Path, streaming: bool) -> None:
    for split, count in (("train", 54), ("validation", 4)):
        here, there = open_rows(coco224, split, True), open_rows("alice/coco", split, True, streaming)
        assert here
        assert there
        assert len(here) == len(there) == count
        assert (there.size, there.fingerprint) == (here.size, here.fingerprint)
        assert there.names([0, count - 1]) == here.names([0, count - 1])
        assert (pixels(there, count) == pixels(here, count)).all()


def test_the_repository_has_a_card_and_the_manifest(published: Hub, coco224: Path) -> None:
    files = published.files("datasets/alice/coco")
    assert files["manifest.json"] == (coco224 / "manifest.json").read_bytes()
    _, head, text = files["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(head)
    assert [split["num_examples"] for split in card["dataset_info"]["splits"]] == [54, 4]
    assert card["task_categories"] == ["image-to-image"]
    for words in ("| train | 54 | 5 | 0 |", "`astronaut.png`: NASA", "--coco_dir alice/coco", "reshape(224, 224, 3)"):
        assert words in text, words


def test_a_run_streams_resumes_and_equals_an_uninterrupted_one(coco_hub: Hub, tmp_path: Path) -> None:
    words = ["--coco_dir", "alice/coco", "--streaming", "true", *TINY]
    assert train(*words, *into(tmp_path / "once"), "--max_steps", 8) == 0
    assert train(*words, *into(tmp_path / "twice"), "--max_steps", 4) == 0
    assert train(*words, *into(tmp_path / "twice"), "--max_steps", 8) == 0
    assert same(weights(tmp_path / "once"), weights(tmp_path / "twice"))
    assert len(rows(tmp_path / "once", "train")) == 8


def test_the_order_of_a_stream_is_a_permutation_that_needs_few_blocks_at_a_time() -> None:
    stream = object.__new__(StreamedRows)
    blocks, length, stream._window = 300, 100, 20
    stream._groups = [("file", group) for group in range(blocks)]
    stream._starts = np.arange(blocks + 1) * length
    order = stream.order(np.random.default_rng(0))
    assert sorted(order) == list(range(blocks * length))
    assert (order != stream.order(np.random.default_rng(1))).any()
    assert (order == stream.order(np.random.default_rng(0))).all()
    stream.follow(order)
    assert sorted(stream._next) == list(range(blocks))
    places = np.argsort(np.array(stream._next))[order // length]  # of each row's block, in the order of fetching
    spread = [int(np.ptp(places[start : start + 64])) for start in range(0, len(places) - 64, 640)]
    assert max(spread) <= 21
    assert np.median(spread) >= 15


def test_a_stream_is_the_same_for_every_number_of_ranks(coco_hub: Hub) -> None:
    def batch(rank: int, ranks: int) -> np.ndarray:
        stream = open_rows("alice/coco", "train", True, streaming=True)
        assert stream
        size = {"input_size": 64, "hflip": True, "batch_size": 8 // ranks, "grad_accum": 1}
        images: np.ndarray = TrainBatches(stream, seed=0, rank=rank, world_size=ranks, **size)[9].images.numpy()
        return images

    assert (np.concatenate([batch(0, 2), batch(1, 2)]) == batch(0, 1)).all()


def test_a_stream_whose_connection_breaks_goes_on(coco_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = open_rows("alice/coco", "train", True, streaming=True)
    assert stream
    coco_hub.trouble("GET .*train.*parquet", status=0, times=1)
    assert pixels(stream, 54).shape == (54, 224, 224, 3)


def test_a_damaged_block_is_no_fault_of_the_network(coco_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_PAUSES", ())
    monkeypatch.setattr(stream.time, "sleep", lambda _: pytest.fail("it waits for the network"))
    coco_hub.repositories = copy.deepcopy(coco_hub.repositories)
    files = coco_hub.files("datasets/alice/coco")
    (name,) = (name for name in files if name.startswith("data/train"))
    middle = len(files[name]) // 2
    damaged = files[name][: middle - 5000] + bytes(10_000) + files[name][middle + 5000 :]
    coco_hub.repositories["datasets/alice/coco"].commit(files | {name: damaged})
    rows = open_rows("alice/coco", "train", True, streaming=True)
    assert rows
    with pytest.raises(DataError, match=r"row group \d+ of .*train.* is damaged .*: upload the dataset again"):
        pixels(rows, 54)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_group_that_would_take_gigabytes_is_refused(
    coco_hub: Hub, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MOST_GROUP", 10**6)
    with pytest.raises(DataError, match=r"alice/coco.*: a row group has [\d,]+ bytes: upload the dataset again"):
        open_rows("alice/coco", "train", True, streaming)


def test_a_downloaded_dataset_needs_no_network(coco_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_rows("alice/coco", "train", True)
    assert first
    coco_hub.kill()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    again = open_rows("alice/coco", "train", True)
    assert again
    assert (pixels(again, 54) == pixels(first, 54)).all()


def test_a_path_wins_over_a_name_on_the_hub(
    coco_hub: Hub, coco224: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice" / "coco").symlink_to(coco224)
    monkeypatch.chdir(tmp_path)
    assert open_rows("alice/coco", "train", True)
    assert not coco_hub.requests
    with pytest.raises(DataError, match="--streaming true, but --coco_dir alice/coco is a local folder"):
        open_rows("alice/coco", "train", True, streaming=True)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_neither_names_both_readings(coco_hub: Hub, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="alice/nothing is neither a local folder nor a dataset on the Hub"):
        open_rows("alice/nothing", "train", True, streaming)
    files = coco_hub.repositories["datasets/alice/coco"]
    coco_hub.repositories["datasets/alice/plain"] = type(files)(private=False)
    coco_hub.repositories["datasets/alice/plain"].commit({"README.md": b""})
    with pytest.raises(DataError, match=r"without manifest.json: python -m coco224.prepare did not upload it"):
        open_rows("alice/plain", "train", True, streaming)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="is not a local folder, and the Hub"):
        open_rows("alice/other", "train", True, streaming)


def test_an_upload_that_broke_off_is_completed_by_the_same_command(hub: Hub, tmp_path: Path) -> None:
    words = ["-m", "coco224.prepare", "--coco_dir", "sample", "--limit", 2, "--out_dir", tmp_path / "out", *PUSH]
    hub.trouble("commit/main", status=403)
    done = run(*words, HF_HUB_OFFLINE="0")
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith(f"error: the dataset in {tmp_path / 'out'} is complete, but alice/coco is not")
    hub.troubles.clear()
    done = run(*words, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    assert "manifest.json" in hub.files("datasets/alice/coco")
    assert json.loads(hub.files("datasets/alice/coco")["manifest.json"])["options"]["limit"] == 2


def test_a_token_that_cannot_upload_is_refused_before_the_work(hub: Hub, tmp_path: Path) -> None:
    words = ["-m", "coco224.prepare", "--coco_dir", "sample", "--out_dir", tmp_path / "out"]
    done = run(*words, *PUSH, HF_HUB_OFFLINE="0", HF_TOKEN="hf_stranger")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --hub_dataset_id alice/coco: the Hub does not know this token")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["./d224", "データ/coco224", "data/.coco224", "data/coco--224", "-a/b", "a/b.", f"a/{'b' * 96}"]
)
def test_a_name_that_the_hub_would_not_take_is_a_path(name: str) -> None:
    with pytest.raises(DataError, match=r"--coco_dir .* does not exist: give a folder"):
        open_rows(name, "train", use_prepared=True)


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_answers_with_a_fault_is_not_out_of_reach(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits between its tries
    hub.trouble("manifest.json", status=status, times=99)
    with pytest.raises(DataError, match=f"the Hub, .* answers with status {status}: try again later"):
        open_rows("alice/coco", "train", use_prepared=True)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "7",
        '{"options": {"size": "224"}, "splits": {}}',
        '{"options": {"size": 1e9}, "splits": {}}',
        '{"options": {"size": 224}, "splits": {"train": {"rows": -1, "fingerprint": "a"}}}',
        '{"options": {"size": 224}, "splits": {"train": {"rows": 1}}}',
        '{"options": {"size": 224}, "splits": 5}',
    ],
)
def test_a_strangers_manifest_is_refused_in_one_line(coco_hub: Hub, content: str, streaming: bool) -> None:
    coco_hub.repositories = copy.deepcopy(coco_hub.repositories)
    repository = coco_hub.repositories["datasets/alice/coco"]
    repository.commit(coco_hub.files("datasets/alice/coco") | {"manifest.json": content.encode()})
    with pytest.raises(DataError, match=r"manifest\.json is damaged") as caught:
        open_rows("alice/coco", "train", True, streaming)
    assert len(str(caught.value)) < 300


def test_a_full_cache_of_datasets_says_so(coco_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: object) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset") from full

    monkeypatch.setattr(datasets.Dataset, "from_parquet", fail)
    with pytest.raises(DataError, match=r"the cache .* is full .*: make room, set HF_DATASETS_CACHE, or .*--streaming"):
        open_rows("alice/coco", "train", use_prepared=True)
