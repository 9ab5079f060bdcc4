"""The folder of `export.web`: only an earlier page is replaced, and a kill leaves no page whose files do not fit."""

import os
from pathlib import Path

import pytest

from codec.errors import InputError
from export.web import building
from export.web.building import PAGE, RUNTIME, write_page


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like onnxruntime-web's; the compiler of WebAssembly, which may be missing here, is left out."""
    folder = tmp_path / "runtime"
    (folder / "dist").mkdir(parents=True)
    for name in RUNTIME:
        (folder / "dist" / name).write_text(name)
    monkeypatch.setattr(building, "compile_wasm", lambda target: target.write_bytes(b"wasm"))
    return folder


def test_only_an_earlier_page_is_replaced(runtime: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("mine")
    os.mkfifo(folder / "codecs.json")
    with pytest.raises(InputError, match="holds something else than such a page: name a new folder"):
        write_page(folder, [], runtime)
    (folder / "codecs.json").unlink()
    for mine in ('["h264"]', '{"h264": 1}', '[{"name": "h264"}]', "h264"):
        (folder / "codecs.json").write_text(mine)
        with pytest.raises(InputError, match="holds something else than such a page: name a new folder"):
            write_page(folder, [], runtime)
        assert (folder / "index.html").read_text() == "mine"
    (folder / "codecs.json").write_text('[{"name": "a", "tables": "0.tables"}]')
    write_page(folder, [], runtime)
    with pytest.raises(InputError, match=r"1\.encoder\.onnx lies in .*page, whose files are replaced"):
        write_page(folder, [("a", folder / "1.encoder.onnx", tmp_path / "dec.onnx")], runtime)
    assert {path.name for path in folder.iterdir()} == {*PAGE, *RUNTIME, "coder.wasm", "codecs.json"}


def test_a_page_that_a_kill_cut_off_offers_no_codec_and_is_completed(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "codecs.json").write_text('[{"name": "a", "tables": "0.tables"}]')
    (folder / "0.tables").write_text("old")
    whole = building.write_whole

    def killed(path: Path, content: str | bytes) -> None:
        if path.name == PAGE[1]:
            raise KeyboardInterrupt
        whole(path, content)

    monkeypatch.setattr(building, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write_page(folder, [], runtime)
    assert (folder / "codecs.json").read_text() == "[]\n"
    monkeypatch.setattr(building, "write_whole", whole)
    write_page(folder, [], runtime)
    (folder / "notes").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):  # an empty list may be anyone's
        write_page(folder, [], runtime)
