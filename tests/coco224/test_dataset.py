"""Reading: the right pixels of the right rows, from any process, in little memory, and no dataset that is none."""

import io
import json
import multiprocessing
import os
import pickle
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from programs import ROOT

from coco224.dataset import Rows, open_photographs, open_split
from coco224.errors import DataError
from coco224.prepare import main


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory, make_coco: Callable[..., Path]) -> Path:
    return make_coco(tmp_path_factory.mktemp("data") / "coco", train=70, val=3)


@pytest.fixture(scope="module", params=["raw", "png"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, coco: Path) -> Path:
    out = tmp_path_factory.mktemp("data") / request.param
    words = ["--coco_dir", str(coco), "--out_dir", str(out), "--size", "48", "--num_proc", "1"]
    assert main([*words, "--encoding", request.param]) == 0
    return out


def opened(folder: Path, split: str = "train") -> Rows:
    rows = open_split(folder, split)
    assert rows is not None
    return rows


def whole(rows: Rows, indices: list[int]) -> np.ndarray:
    corner = np.zeros(len(indices), int)
    return rows.read(np.array(indices), corner, corner, rows.size)


def test_rows_are_what_datasets_reads(
    dataset: Path, coco: Path, assert_fits_like_pillow: Callable[[np.ndarray, Image.Image], None]
) -> None:
    rows, table = opened(dataset), datasets.load_from_disk(dataset)["train"]
    assert (len(rows), rows.size) == (70, 48)
    order = [69, 0, 31, 32, 33, 0, 64]  # a shard ends after each 32 files
    assert rows.names(order) == [table["file_name"][i] for i in order]
    for index, picture in zip(order, whole(rows, order), strict=True):
        assert_fits_like_pillow(picture, Image.open(coco / "train2017" / table["file_name"][index]))


def test_windows_are_cut_where_asked(dataset: Path) -> None:
    rows = opened(dataset)
    indices, top, left = np.array([3, 40, 3]), np.array([0, 16, 5]), np.array([16, 0, 9])
    windows = rows.read(indices, top, left, 32)
    assert windows.shape == (3, 32, 32, 3)
    for window, picture, y, x in zip(windows, whole(rows, indices.tolist()), top, left, strict=True):
        assert (window == picture[y : y + 32, x : x + 32]).all()


def digest(rows: Rows) -> tuple[str, int]:
    return rows.fingerprint, int(whole(rows, [0, 69]).sum())


def test_the_guides_code_reads_the_rows(coco224: Path) -> None:
    snippets = re.findall("```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    by_hand: dict[str, Any] = {}
    batches: dict[str, Any] = {}
    for snippet, names in zip(snippets, (by_hand, batches), strict=True):
        exec(snippet.replace("/path/to/coco224", str(coco224)), names)
    assert (by_hand["pixels"] == whole(opened(coco224), [0])[0]).all()
    assert batches["images"].shape == (8, 3, 192, 192)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_rows_travel_to_another_process(dataset: Path, method: str) -> None:
    rows = opened(dataset)
    assert len(pickle.dumps(rows)) < 1000
    if method == "spawn":
        assert digest(pickle.loads(pickle.dumps(rows))) == digest(rows)
        return
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(digest, (rows,)) == digest(rows)


def test_the_fingerprint_names_the_pixels(dataset: Path, coco: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", str(coco), "--size", "48", "--encoding", dataset.name, "--num_proc", "1"]
    assert main([*words, "--out_dir", str(tmp_path / "same")]) == 0
    assert main([*words, "--out_dir", str(tmp_path / "other"), "--limit", "69"]) == 0
    assert opened(tmp_path / "same").fingerprint == opened(dataset).fingerprint
    assert opened(tmp_path / "other").fingerprint != opened(dataset).fingerprint


def test_memory_does_not_grow_with_the_dataset(coco: Path, tmp_path: Path) -> None:
    """One shard under a thousand names: 32,000 rows of 150 kB, 4.8 GB of pixels."""
    assert main(["--coco_dir", str(coco), "--out_dir", str(tmp_path / "a"), "--limit", "32", "--num_proc", "1"]) == 0
    state = tmp_path / "a" / "train" / "state.json"
    description = json.loads(state.read_text())
    (shard,) = (state.parent / entry["filename"] for entry in description["_data_files"])
    for number in range(1, 1000):
        (state.parent / f"{number}.arrow").symlink_to(shard)
        description["_data_files"].append({"filename": f"{number}.arrow"})
    state.write_text(json.dumps(description))

    def anonymous_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = anonymous_mb()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        rows = opened(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(rows) == 32_000
    for first in range(0, 32_000, 320):
        whole(rows, list(range(first, first + 16)))
    assert anonymous_mb() - before < 30


def test_an_absent_split_is_none(coco: Path, tmp_path: Path) -> None:
    words = ["--coco_dir", str(coco), "--out_dir", str(tmp_path / "a"), "--limit", "2", "--num_proc", "1"]
    assert main([*words, "--include_val", "false"]) == 0
    assert open_split(tmp_path / "a", "validation") is None


def damaged(folder: Path, how: str) -> Path:
    shard = next((folder / "train").glob("*.arrow"))
    if how == "truncated":
        with shard.open("rb+") as file:
            file.truncate(shard.stat().st_size // 2)
    elif how == "lost":
        shard.unlink()
    elif how == "state":
        (folder / "train" / "state.json").write_text("{")
    elif how == "columns":
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(folder)
    elif how == "sizes":
        table = datasets.Dataset.from_dict(
            {"image": [bytes(48), bytes(27)], "file_name": ["a", "b"]},
            features=datasets.Features({"image": datasets.Value("binary"), "file_name": datasets.Value("string")}),
        )
        datasets.DatasetDict({"train": table}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "missing or damaged"),
        ("lost", "missing or damaged"),
        ("state", "is damaged"),
        ("columns", "no column file_name and image"),
        ("sizes", "different sizes"),
    ],
)
def test_a_damaged_dataset_says_so(coco: Path, tmp_path: Path, how: str, words: str) -> None:
    out = tmp_path / "a"
    assert main(["--coco_dir", str(coco), "--out_dir", str(out), "--limit", "40", "--num_proc", "1"]) == 0
    with pytest.raises(DataError, match=words):
        open_split(damaged(out, how), "train")


def test_a_folder_that_is_no_dataset_says_what_to_do(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_split(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match=r"no dataset_dict.json.*coco224.prepare"):
        open_split(tmp_path, "train")
    with pytest.raises(DataError, match="--use_prepared false"):
        open_split(coco, "train")


def test_unprepared_rows_are_the_prepared_ones(dataset: Path, coco: Path) -> None:
    rows = open_photographs(coco, "train", 48)
    assert rows is not None
    assert (len(rows), rows.size) == (70, 48)
    assert rows.names([5, 0]) == opened(dataset).names([5, 0])
    assert (whole(rows, [5, 69, 0]) == whole(opened(dataset), [5, 69, 0])).all()
    assert open_photographs(coco, "validation", 48) is not None


def test_an_unreadable_photograph_is_replaced_by_the_next(tmp_path: Path, make_coco: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco", val=0)
    for number in (2, 5):
        (root / "train2017" / f"{number:012d}.jpg").write_text("no picture")
    rows = open_photographs(root, "train", 32)
    assert rows is not None
    with pytest.warns(UserWarning, match=r"000000000002.jpg cannot be read \(not a JPEG") as warned:
        pictures = whole(rows, [2, 3, 5, 0, 2])
    assert len(warned) == 2
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[2] == pictures[3]).all()


def test_an_unprepared_root_lacks_what_it_lacks(tmp_path: Path, make_coco: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco", val=0)
    (root / "val2017").rmdir()
    assert open_photographs(root, "validation") is None
    with pytest.raises(DataError, match="no train2017/"):
        open_photographs(tmp_path, "train")
    for photograph in (root / "train2017").iterdir():
        photograph.write_text("no picture")
    rows = open_photographs(root, "train", 32)
    assert rows is not None
    with pytest.warns(UserWarning, match="cannot be read"), pytest.raises(DataError, match="none of the 6"):
        whole(rows, [0])


def write(folder: Path, images: pa.Array, names: pa.Array) -> Path:
    """A dataset of one shard with these columns."""
    (folder / "train").mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}', encoding="utf-8-sig")
    (folder / "train" / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}], "_fingerprint": "f"}')
    table = pa.table({"image": images, "file_name": names})
    with pa.OSFile(str(folder / "train" / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return folder


@pytest.mark.parametrize("offsets", [[0, 2**30, 2**31 - 1], [-48, 0, 48], [2**20, 2**20 + 48, 2**20 + 96], [0, 96, 0]])
@pytest.mark.parametrize("column", ["raw", "encoded", "names"])
def test_offsets_that_point_outside_are_refused(tmp_path: Path, column: str, offsets: list[int]) -> None:
    images, names = pa.array([bytes(48)] * 2), pa.array(["a" * 7] * 2)
    if column == "encoded":
        images = pa.StructArray.from_arrays([images], ["bytes"])
    shard = write(tmp_path / "a", images, names) / "train" / "a.arrow"
    written, length = shard.read_bytes(), 7 if column == "names" else 48
    honest = np.array([0, length, 2 * length], np.int32).tobytes()
    assert written.count(honest) == 1
    shard.write_bytes(written.replace(honest, np.array(offsets, np.int32).tobytes()))
    with pytest.raises(DataError, match=r"is damaged .*prepare the dataset again"):
        open_split(tmp_path / "a", "train")


def test_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    names = pa.array(["a"])
    for number, (image, name, words) in enumerate(
        (
            (pa.array([bytes(48)]), pa.array([7]), "file_name is int64"),
            (pa.array(["text"]), names, "image is string"),
            (pa.StructArray.from_arrays([pa.array([5])], ["bytes"]), names, "image is struct"),
            (pa.array([b""]), names, "not square"),
            (pa.array([], pa.binary()), pa.array([], pa.string()), "no rows"),
            (pa.StructArray.from_arrays([pa.array([b""])] * 2, ["bytes"] * 2), names, "image is struct"),
        )
    ):
        with pytest.raises(DataError, match=words):
            open_split(write(tmp_path / str(number), image, name), "train")


def test_a_null_in_a_later_row_is_refused_at_opening(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    png, names = file.getvalue(), pa.array(["a", "b", "c"])
    for number, (image, name, words) in enumerate(
        (
            (pa.array([bytes(48), bytes(48), None]), names, "rows without image"),
            (pa.array([bytes(48)] * 3), pa.array(["a", None, "c"]), "rows without file_name"),
            (pa.array([{"bytes": png}, None, {"bytes": png}]), names, "rows without image"),
            (pa.array([{"bytes": png}, {"bytes": png}, {"bytes": None}]), names, "rows that refer to other files"),
        )
    ):
        with pytest.raises(DataError, match=words):
            open_split(write(tmp_path / str(number), image, name), "train")


@pytest.mark.parametrize("column", ["image", "file_name"])
def test_a_column_twice_is_refused(tmp_path: Path, column: str) -> None:
    folder = write(tmp_path / "a", pa.array([bytes(48)]), pa.array(["a"]))
    table = pa.table([pa.array([bytes(48)]), pa.array(["a"]), pa.array(["b"])], ["image", "file_name", column])
    with pa.OSFile(str(folder / "train" / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(DataError, match=f"has two columns {column}: make"):
        open_split(folder, "train")


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_stream_is_refused_before_it_is_read(tmp_path: Path, codec: str) -> None:
    """200 MB of zeros in some kB; read, they would be in memory."""
    folder = write(tmp_path / "a", pa.array([bytes(48)]), pa.array(["a"]))
    shard = folder / "train" / "a.arrow"
    batch = pa.record_batch({"image": pa.array([bytes(10**8)] * 2), "file_name": pa.array(["a", "b"])})
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    assert shard.stat().st_size < 10**6
    del batch
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"it is compressed, which no file of coco224\.prepare is"):
        open_split(folder, "train")
    assert pa.total_allocated_bytes() - before < 10**6


def test_a_stream_with_a_dictionary_is_refused(tmp_path: Path) -> None:
    names = pa.array(["a"]).dictionary_encode()
    with pytest.raises(DataError, match="has a dictionary"):
        open_split(write(tmp_path / "a", pa.array([bytes(48)]), names), "train")


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    assert len(opened(write(tmp_path / "a", pa.array([bytes(48)] * 2), pa.array(["a", "b"])))) == 2


@pytest.mark.parametrize(
    "state",
    [
        "[" * 100_000,
        "[]",
        '{"_data_files": 7, "_fingerprint": "f"}',
        '{"_data_files": [], "_fingerprint": "f"}',
        '{"_data_files": [{"filename": "../../a.arrow"}], "_fingerprint": "f"}',
        '{"_data_files": [{"filename": "pipe"}], "_fingerprint": "f"}',
        r'{"_data_files": [{"filename": "a\u0000b"}], "_fingerprint": "f"}',
        r'{"_data_files": [{"filename": "\ud800"}], "_fingerprint": "f"}',
        '{"_data_files": [{"filename": "a.arrow"}, {"filename": "a.arrow"}], "_fingerprint": "f"}',
        json.dumps({"_data_files": [{"filename": str(n)} for n in range(100_000)], "_fingerprint": "f"}),
    ],
)
def test_a_strangers_description_is_refused(tmp_path: Path, state: str) -> None:
    folder = write(tmp_path / "a", pa.array([bytes(48)]), pa.array(["a"]))
    os.mkfifo(folder / "train" / "pipe")
    (folder / "train" / "state.json").write_text(state)
    with pytest.raises(DataError, match="damaged"):
        open_split(folder, "train")


def test_an_encoded_row_is_decoded_as_a_photograph_is(tmp_path: Path) -> None:
    """Sixteen bits are scaled, and what is transparent is white."""
    grey = Image.fromarray(np.full((16, 16), 40_000, np.uint16))
    files = []
    for image in (grey, Image.new("RGBA", (16, 16), (0, 0, 0, 0))):
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    images = pa.StructArray.from_arrays([pa.array(files)], ["bytes"])
    dataset = opened(write(tmp_path / "a", images, pa.array(["grey", "clear"])))
    assert [int(row.mean()) for row in whole(dataset, [0, 1])] == [156, 255]


def test_an_encoded_row_is_a_picture_of_its_size_in_a_format_of_ours(tmp_path: Path) -> None:
    def png(width: int, height: int) -> bytes:
        file = io.BytesIO()
        Image.new("1", (width, height)).save(file, "PNG")
        return file.getvalue()

    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    rows = {"eps": eps, "bomb": png(20_000, 20_000), "other": png(17, 16), "torn": png(16, 16)[:40], "empty": b""}
    images = pa.StructArray.from_arrays([pa.array([png(16, 16), *rows.values()])], ["bytes"])
    dataset = opened(write(tmp_path / "a", images, pa.array(["first", *rows])))
    for number, name in enumerate(rows, start=1):
        with pytest.raises(DataError, match=rf"^row {number} of .*again$") as caught:
            whole(dataset, [number])
        assert "\n" not in str(caught.value), name
