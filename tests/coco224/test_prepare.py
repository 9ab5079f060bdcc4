"""`python -m coco224.prepare` as a user runs it: what it makes, and what it refuses."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets.exceptions import DatasetsError
from PIL import Image

from coco224 import prepare as program
from coco224.prepare import main

Done = subprocess.CompletedProcess[str]
Fits = Callable[[np.ndarray, Image.Image], None]


def pixels(row: dict[str, object], size: int) -> np.ndarray:
    image = row["image"]
    if isinstance(image, bytes):
        return np.frombuffer(image, np.uint8).reshape(size, size, 3)
    assert isinstance(image, Image.Image)
    return np.asarray(image.convert("RGB"))


def refused(done: Done, *words: str) -> None:
    """One line, no traceback, status 2."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[-1]


def test_rows_are_the_crops_of_the_photographs_and_say_so(
    tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done], assert_fits_like_pillow: Fits
) -> None:
    root = make_coco(tmp_path / "coco", train=40, val=3)
    done = prepare(root, tmp_path / "out", "--size", "64", "--num_proc", "2", "--include_val", "true")
    assert done.returncode == 0, done.stderr
    assert "train 40 rows, validation 3 rows; 0 of 43 files skipped" in done.stdout.splitlines()[-1]
    assert "pictures/s" in done.stderr
    data = datasets.load_from_disk(tmp_path / "out")
    assert {split: len(data[split]) for split in data} == {"train": 40, "validation": 3}
    for split, folder in (("train", "train2017"), ("validation", "val2017")):
        assert data[split]["file_name"][:] == sorted(path.name for path in (root / folder).iterdir())
        for row in data[split]:
            photograph = Image.open(root / folder / row["file_name"]).convert("RGB")
            assert (row["width"], row["height"]) == photograph.size == (120, 90)
            assert row["crop_box"] == [15, 0, 105, 90]
            assert_fits_like_pillow(pixels(row, 64), photograph)


@pytest.mark.parametrize("encoding", ["raw", "png", "webp", "jpeg"])
def test_lossless_encodings_hold_the_same_pixels(tmp_path: Path, make_coco: Callable[..., Path], encoding: str) -> None:
    root = make_coco(tmp_path / "coco", width=80, height=70)
    out = tmp_path / "out"
    assert main(["--coco_dir", str(root), "--out_dir", str(out), "--crop", "center", "--size", "64",
                 "--encoding", encoding, "--num_proc", "1"]) == 0  # fmt: skip
    train = datasets.load_from_disk(out)["train"]
    assert isinstance(train.features["image"], datasets.Value if encoding == "raw" else datasets.Image)
    for row in train:
        left, top, right, bottom = map(int, row["crop_box"])
        source = np.asarray(Image.open(root / "train2017" / row["file_name"]))[top:bottom, left:right]
        difference = np.abs(pixels(row, 64).astype(int) - source)
        assert difference.mean() < 3 if encoding == "jpeg" else difference.max() == 0


def test_random_crops_are_counted_and_reproducible(tmp_path: Path, make_coco: Callable[..., Path]) -> None:
    root = make_coco(tmp_path / "coco", val=1)
    rows = {}
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        options = ["--crop", "random", "--crops_per_image", "4", "--size", "32", "--seed", seed, "--num_proc", "1"]
        assert main(["--coco_dir", str(root), "--out_dir", str(tmp_path / name), *options]) == 0
        rows[name] = datasets.load_from_disk(tmp_path / name)["train"]["crop_box"][:]
    assert len(rows["a"]) == 24
    assert rows["a"] == rows["b"] != rows["c"]


def test_odd_files_are_converted_skipped_and_named(
    tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done]
) -> None:
    root = make_coco(tmp_path / "coco", train=8)
    train = root / "train2017"
    Image.open(train / "000000000000.jpg").convert("L").save(train / "grey.jpg")
    Image.open(train / "000000000000.jpg").resize((21, 14)).save(train / "tiny.png")
    whole = (train / "000000000001.jpg").read_bytes()
    (train / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "letter.jpg").write_text("Dear reader, I am no picture.")
    (train / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    done = prepare(root, tmp_path / "out", "--size", "64")
    refused(done, "3 of 15 photographs cannot be read", "--max_bad 0.01", "gone.jpg", "letter.jpg", "truncated.jpg")
    assert not (tmp_path / "out").exists()

    done = prepare(root, tmp_path / "out", "--size", "64", "--max_bad", "0.25")
    assert done.returncode == 0, done.stderr
    assert "train 10 rows, validation 2 rows; 3 of 15 files skipped" in done.stdout
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["size"] == 64
    assert manifest["options"]["crop"] == "resize_center"
    assert manifest["versions"]["pillow"]
    split = manifest["splits"]["train"]
    assert (split["files"], split["rows"], split["unreadable"]) == (13, 10, 3)
    reasons = {entry["file_name"]: entry["reason"] for entry in split["skipped"]}
    assert set(reasons) == {"truncated.jpg", "letter.jpg", "gone.jpg"}
    assert "truncated" in reasons["truncated.jpg"]
    assert "not a JPEG" in reasons["letter.jpg"]


def test_a_picture_without_a_whole_tile_is_named_but_not_bad(
    tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done]
) -> None:
    root = make_coco(tmp_path / "coco", train=3, val=1)
    Image.new("RGB", (31, 90)).save(root / "train2017" / "thin.png")
    done = prepare(root, tmp_path / "out", "--size", "32", "--crop", "grid", "--max_bad", "0")
    assert "train 18 rows, validation 6 rows; 1 of 5 files skipped" in done.stdout, done.stderr
    split = json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]["train"]
    assert split["unreadable"] == 0
    assert split["skipped"] == [
        {"file_name": "thin.png", "reason": "no whole 32x32 tile in 31x90", "unreadable": False}
    ]


def test_the_sample_needs_no_download_and_names_its_licences(coco224: Path) -> None:
    data = datasets.load_from_disk(coco224)
    assert {split: len(data[split]) for split in data} == {"train": 54, "validation": 4}
    assert set(data["validation"]["file_name"]) == {"astronaut.png"}
    assert len(set(data["train"]["file_name"])) == 5
    manifest = json.loads((coco224 / "manifest.json").read_text())
    assert manifest["options"]["crop"] == "grid"
    assert set(manifest["licences"]) == {*data["train"]["file_name"], "astronaut.png"}


def test_without_validation(tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done]) -> None:
    root = make_coco(tmp_path / "coco", val=0)
    (root / "val2017").rmdir()
    refused(prepare(root, tmp_path / "out"), "val2017", "--include_val false")
    done = prepare(root, tmp_path / "out", "--include_val", "false", "--limit", "4", "--size", "32")
    assert done.returncode == 0, done.stderr
    assert list(datasets.load_from_disk(tmp_path / "out")) == ["train"]
    assert len(datasets.load_from_disk(tmp_path / "out")["train"]) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sise", "64"], ["--sise"]),
        (["--size", "0"], ["--size 0"]),
        (["--size", "4097"], ["--size 4097 is more than 4096"]),
        (["--size", "big"], ["--size", "big"]),
        (["--crop", "middle"], ["--crop", "middle"]),
        (["--crops_per_image", "3"], ["--crops_per_image", "random"]),
        (["--overwrite", "perhaps"], ["--overwrite", "perhaps"]),
        (["--max_bad", "5"], ["--max_bad", "0 to 1"]),
        (["--num_proc", "0"], ["--num_proc 0"]),
        (["--limit", "0"], ["--limit 0"]),
        (["--push_to_hub", "true"], ["--push_to_hub"]),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], words: list[str]
) -> None:
    status = main(["--coco_dir", "sample", "--out_dir", str(tmp_path / "out"), *options])
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1
    refused(subprocess.CompletedProcess([], status, out, err), *words)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_coco_dir_is_refused_in_one_line(tmp_path: Path, prepare: Callable[..., Done]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "train2017").mkdir(parents=True)
    for folder, words in (
        ("nowhere", ["does not exist"]),
        ("empty", ["no train2017/"]),
        ("hollow", ["holds no photograph"]),
    ):
        done = prepare(tmp_path / folder, tmp_path / "out", "--include_val", "false")
        refused(done, *words)
        assert len(done.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "hollow"}


def test_missing_options_are_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capfd.readouterr().err.splitlines() == [
        "error: the following arguments are required: --coco_dir, --out_dir; see --help"
    ]


def test_booleans_in_any_case_and_the_home_folder_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--coco_dir", "sample", "--out_dir=~/out", "--include_val", "FALSE", "--size", "16", "--num_proc", "1"]
    assert main([*words, "--limit", "1"]) == 0
    assert list(datasets.load_from_disk(tmp_path / "out")) == ["train"]


def test_an_error_cannot_command_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--coco_dir", "a\x1b]0;x\a", "--out_dir", "out"]) == 2
    assert capfd.readouterr().err.startswith(r"error: --coco_dir a\x1b]0;x\x07")


def test_out_dir_is_never_overwritten_unasked(
    tmp_path: Path, make_coco: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    root, out = make_coco(tmp_path / "coco"), tmp_path / "out"
    words = ["--coco_dir", str(root), "--out_dir", str(out), "--size", "32", "--num_proc", "1"]
    assert main(words) == 0
    before = datasets.load_from_disk(out)["train"]["image"][0]
    assert main([*words, "--crop", "center"]) == 2
    assert "--overwrite true" in capfd.readouterr().err
    assert datasets.load_from_disk(out)["train"]["image"][0] == before
    assert main([*words, "--crop", "center", "--overwrite"]) == 0
    assert datasets.load_from_disk(out)["train"]["image"][0] != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "out"]


def test_overwrite_deletes_nothing_but_a_dataset(
    tmp_path: Path, make_coco: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_coco(tmp_path / "coco")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for out, word in ((tmp_path / "home", "something else"), (root, "photographs"), (tmp_path, "photographs")):
        assert main(["--coco_dir", str(root), "--out_dir", str(out), "--overwrite", "true"]) == 2
        assert word in capfd.readouterr().err
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"
    foreign = tmp_path / "foreign"  # any dataset of the library has this file
    foreign.mkdir()
    (foreign / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert main(["--coco_dir", str(root), "--out_dir", str(foreign), "--overwrite", "true"]) == 2
    assert "something else" in capfd.readouterr().err
    words = ["--coco_dir", str(root), "--out_dir", str(tmp_path / "ours"), "--size", "32", "--num_proc", "1"]
    assert main(words) == 0
    (tmp_path / "ours" / "notes.txt").write_text("of the user")
    assert main([*words, "--overwrite", "true"]) == 2
    assert "something else" in capfd.readouterr().err
    (tmp_path / "ours" / "notes.txt").unlink()
    assert main([*words, "--overwrite", "true"]) == 0
    assert len(list((root / "train2017").iterdir())) == 6


@pytest.mark.slow
def test_help_imports_neither_torch_nor_datasets(tmp_path: Path) -> None:
    import sys

    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "coco224.prepare", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("  --")]
    assert len(lines) == 15
    assert all(re.fullmatch(r"  --\w+ \S.* {2,}\S.* \[.+\]", line) for line in lines), done.stdout
    assert [line for line in done.stdout.splitlines() if line.endswith(":")] == [
        "options:",
        "source and output:",
        "crops:",
        "work:",
        "Hugging Face Hub:",
    ]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "coco224.making.shards" in imported
    assert not imported & {"torch", "datasets"}


def test_the_real_subset(
    tmp_path: Path, real_coco: Path, prepare: Callable[..., Done], assert_fits_like_pillow: Fits
) -> None:
    done = prepare(real_coco, tmp_path / "out", "--include_val", "true")
    assert "train 310 rows, validation 62 rows; 0 of 372 files skipped" in done.stdout, done.stderr
    train = datasets.load_from_disk(tmp_path / "out")["train"]
    names = train["file_name"][:]
    for name, size in (("000000425989.jpg", (213, 140)), ("000000000036.jpg", (481, 640))):
        row = train[names.index(name)]
        assert (row["width"], row["height"]) == size
        assert_fits_like_pillow(pixels(row, 224), Image.open(real_coco / "train2017" / name))
    grey = [name for name in names if Image.open(real_coco / "train2017" / name).mode == "L"]
    for name in grey:
        crop = pixels(train[names.index(name)], 224)
        assert (crop == crop[..., :1]).all()
        assert crop.std() > 10


def test_all_that_is_left_out_is_counted(
    tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done]
) -> None:
    root = make_coco(tmp_path / "coco", train=3, val=1)
    train = root / "train2017"
    (tmp_path / "disk2").mkdir()
    for number in (1, 2):
        (train / f"{number:012d}.jpg").rename(tmp_path / "disk2" / f"{number:012d}.jpg")
    (train / "part2").symlink_to(tmp_path / "disk2")
    (train / "@eaDir").mkdir()
    (train / "@eaDir" / "thumb.jpg").write_bytes((train / "000000000000.jpg").read_bytes())
    (train / "a.gif").touch()
    os.mkfifo(train / "pipe.jpg")
    done = prepare(root, tmp_path / "out", "--size", "32", "--num_proc", "1")
    assert done.returncode == 0, done.stderr
    assert (
        "train 3 rows, validation 1 row; 0 of 4 files skipped; 2 files left out: 1 .gif, 1 not regular; "
        "1 folder passed over: 1 @eaDir; manifest: "
    ) in done.stdout
    split = json.loads((tmp_path / "out" / "manifest.json").read_text())["splits"]["train"]
    assert split["left_out"] == {".gif": 1, "folder @eaDir": 1, "not regular": 1}


def test_names_that_steer_a_terminal_are_escaped(
    tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done]
) -> None:
    root = make_coco(tmp_path / "coco", train=1, val=1)
    (root / "train2017" / "\x1b[2Jgone\nover.jpg").write_text("no picture")
    done = prepare(root, tmp_path / "out", "--num_proc", "1")
    refused(done, "1 of 3 photographs cannot be read", "\\x1b[2Jgone\\nover.jpg")
    assert "\x1b[2J" not in done.stderr


def test_a_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, make_coco: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_coco(tmp_path / "coco", train=1, val=1)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--coco_dir=~/coco", "--out_dir=~/out", "--size", "32", "--num_proc", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "out"]


def test_an_out_dir_that_cannot_be_made_is_refused_before_the_work(
    tmp_path: Path, make_coco: Callable[..., Path], prepare: Callable[..., Done]
) -> None:
    root = make_coco(tmp_path / "coco", train=1, val=1)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", Path("/proc/out")):
        done = prepare(root, out)
        refused(done, f"--out_dir {out.parent}", "cannot be written", "name another folder")
        assert len(done.stderr.splitlines()) == 1


def test_a_grid_says_how_many_rows_it_makes(
    tmp_path: Path, make_coco: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_coco(tmp_path / "coco", train=2, val=0)
    Image.new("1", (3200, 1600)).save(root / "train2017" / "giant.png")
    words = ["--coco_dir", str(root), "--out_dir", str(tmp_path / "out"), "--include_val", "false", "--size", "32"]
    assert main([*words, "--crop", "grid", "--num_proc", "1"]) == 0
    out, err = capfd.readouterr()
    assert f"--crop grid makes 5012 rows of 3 photographs, 5000 rows of {root}/train2017/giant.png" in err
    assert "train 5012 rows" in out


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: out of memory"),
        (DatasetsError("no features"), 2, "error: the dataset in .* is complete, but alice/coco is not; .*no features"),
    ],
)
def test_what_ends_the_check_of_the_hub_or_the_upload_is_one_line(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    uploads = isinstance(error, DatasetsError)
    monkeypatch.setattr(program, "open_repository", (lambda *_: "") if uploads else fail)
    monkeypatch.setattr(program, "is_made", lambda _: True)
    monkeypatch.setattr("datasets.load_from_disk", fail)
    words = ["prepare", "--coco_dir", "sample", "--out_dir", "out", "--push_to_hub", "--hub_dataset_id", "alice/coco"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        program.cli()
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(said, line)
