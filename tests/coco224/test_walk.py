"""Which files of a folder are taken, and that all others are counted."""

import os
from pathlib import Path

import pytest

from coco224.errors import DataError, counted, printable
from coco224.walk import left_out_in_words, say_left_out, walk

JPG = frozenset({".jpg"})


def files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12")
    return root


def test_links_to_folders_are_followed_and_loops_left_out_once(tmp_path: Path) -> None:
    root = files(tmp_path / "a", "z/1.jpg", "2.JPG")
    files(tmp_path / "disk2", "3.jpg", "deep/4.jpg")
    (root / "part2").symlink_to(tmp_path / "disk2")
    (root / "b").symlink_to(root / "z")  # the real folder wins over the earlier name
    (tmp_path / "disk2" / "loop").symlink_to(root)
    (root / "5.jpg").symlink_to(tmp_path / "disk2" / "3.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (root / "self").symlink_to("self")
    found = walk(root, JPG)
    assert found.files == [
        ("2.JPG", 2),
        ("5.jpg", 2),
        ("gone.jpg", 0),
        ("part2/3.jpg", 2),
        ("part2/deep/4.jpg", 2),
        ("z/1.jpg", 2),
    ]
    assert found.left_out == {"folder linked twice": 2, "broken link": 1}


def test_what_is_left_out_is_counted_by_reason(tmp_path: Path) -> None:
    files(tmp_path, "1.jpg", "a.gif", "b.GIF", "notes", "._1.jpg", "@eaDir/1.jpg/t.jpg", "__MACOSX/1.jpg")
    files(tmp_path, "$RECYCLE.BIN/2.jpg", ".git/3.jpg", "$5.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    found = walk(tmp_path, JPG)
    assert [name for name, _ in found.files] == ["$5.jpg", "1.jpg"]
    assert left_out_in_words(found.left_out) == (
        "6 files left out: 2 .gif, 2 not regular, 1 hidden, 1 no suffix; "
        "4 folders passed over: 1 $RECYCLE.BIN, 1 .git, 1 @eaDir, 1 __MACOSX"
    )
    assert left_out_in_words({".gif": 1}) == "1 file left out: 1 .gif"
    assert left_out_in_words({}) == ""


FOREIGN = (
    *("lost+found", "#recycle", "#Recycle", "#snapshot", "~snapshot", ".snapshot", "@Recently-Snapshot", ".Trash-1000"),
    *("System Volume Information", "RECYCLER", "FOUND.000", "LOST.DIR", "Network Trash Folder"),
)


@pytest.mark.parametrize("rank", [None, "", "0", "1"])
def test_folders_of_systems_are_passed_over_and_the_first_rank_says_so(
    rank: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files(tmp_path, *(f"{name}/1.jpg" for name in FOREIGN), "#1/1.jpg", "~/1.jpg", "snapshot/1.jpg")
    found = walk(tmp_path, JPG)
    assert [name for name, _ in found.files] == ["#1/1.jpg", "snapshot/1.jpg", "~/1.jpg"]
    assert sum(found.left_out.values()) == len(FOREIGN)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    say_left_out(tmp_path, found.left_out)
    assert (f"{len(FOREIGN)} folders passed over" in capsys.readouterr().err) == (rank != "1")


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/b cannot be read \(Permission denied\)"):
        walk(tmp_path, JPG)
    with pytest.raises(DataError, match=r"nowhere cannot be read \(No such file"):
        walk(tmp_path / "nowhere", JPG)


def test_names_do_not_steer_a_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\udcff 像") == "a\\x1b[2Jb\\nc\\udcff 像"


def test_one_and_many() -> None:
    assert [counted(count, noun) for count, noun in ((1, "step"), (2, "step"), (1, "process"), (0, "process"))] == [
        *("1 step", "2 steps", "1 process", "0 processes")
    ]
