"""Files that are whole or absent, and further names of them."""

import errno
import os
from pathlib import Path

import pytest

from codec.durable import link_or_copy, whole_or_absent


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A file, and an earlier one that is called best."""
    (tmp_path / "last").write_text("new")
    (tmp_path / "best").write_text("old")
    return tmp_path / "last"


def test_another_name_takes_no_room_and_keeps_what_it_names(last: Path) -> None:
    best = last.with_name("best")
    link_or_copy(last, best)
    assert best.samefile(last)
    with whole_or_absent(last) as beside:
        beside.write_text("newer")
    assert best.read_text() == "new"


def test_without_hard_links_it_is_a_copy(last: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    best = last.with_name("best")
    link_or_copy(last, best)
    assert not best.samefile(last)
    assert best.read_text() == "new"
    assert sorted(path.name for path in last.parent.iterdir()) == ["best", "last"]


def test_what_a_kill_left_half_done_harms_no_file(last: Path) -> None:
    """It was another name of a file that is in use: nothing may be written into it."""
    best = last.with_name("best")
    os.link(best, last.with_name(".best.partial"))
    link_or_copy(last, last.with_name("best"))
    os.link(last, last.with_name(".best.partial"))
    link_or_copy(last, best)
    assert (best.read_text(), last.read_text()) == ("new", "new")
    assert sorted(path.name for path in last.parent.iterdir()) == ["best", "last"]
