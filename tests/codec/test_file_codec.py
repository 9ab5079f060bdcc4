"""`python -m codec.compress` and `python -m codec.decompress`: pictures of any kind to files and back."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import ROOT, run

from benchmarks.damage import damaged
from coco224.errors import DataError
from codec import compress, convert, decompress
from codec.checkpoint import Description, save_codec
from codec.cli import run as as_program
from codec.description.architecture import Architecture, BlockChoice, Quantization
from codec.errors import InputError
from codec.files import FileCodec
from codec.network.architectures import new_codec
from codec.network.codec import Codec
from codec.network.pixels import pad, to_uint8
from codec.network.tables import tables_of, with_tables
from codec.quantization.calibrate import calibrate
from codec.unfinished import alone


@pytest.fixture(scope="module")
def codec() -> Codec:
    """A random codec whose latents spread over some symbols."""
    torch.manual_seed(4)
    codec = new_codec(Architecture(8, 12, BlockChoice("relu"), BlockChoice("gate")))
    with torch.no_grad():
        codec.g_a[6].weight *= 50
    return with_tables(codec)


@pytest.fixture(scope="module")
def checkpoint(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "c.safetensors"
    save_codec(path, codec, Description())
    return path


@pytest.fixture(scope="module")
def folder(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd sizes and kinds, a subfolder, a text file."""
    folder = tmp_path_factory.mktemp("pictures")
    coffee = Image.open(photographs / "coffee.png")
    (folder / "more").mkdir()
    coffee.crop((200, 100, 361, 297)).save(folder / "odd.png")
    coffee.crop((250, 150, 251, 151)).save(folder / "more" / "1x1.png")
    coffee.crop((200, 100, 260, 180)).convert("L").save(folder / "more" / "grey.BMP")
    coffee.crop((200, 100, 260, 180)).convert("RGBA").save(folder / "alpha.webp", lossless=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    coffee.crop((200, 100, 280, 140)).save(folder / "turned.jpg", exif=turned)
    (folder / "notes.txt").write_text("no picture")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_picture_of_any_size_and_kind_comes_back_as_the_codec_shows_it(
    codec: Codec, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    use = ["--checkpoint", str(checkpoint)]
    assert compress.main([str(folder), str(tmp_path / "bin"), *use]) == 0
    assert decompress.main([str(tmp_path / "bin"), str(tmp_path / "png"), *use]) == 0
    names = ["alpha", "more/1x1", "more/grey", "odd", "turned"]
    assert sorted(files(tmp_path / "bin")) == [f"{name}.bin" for name in names]
    sizes = {}
    for name in names:
        back = Image.open(tmp_path / "png" / f"{name}.png")
        sizes[name] = back.size
        (source,) = folder.glob(f"{name}.*")
        if name in ("odd", "more/1x1"):
            x = torch.from_numpy(np.array(Image.open(source))).permute(2, 0, 1)[None]
            with torch.no_grad():
                x_hat = codec(pad(x.float() / 255))["x_hat"][0, :, : x.shape[2], : x.shape[3]]
            assert np.array_equal(np.array(back), to_uint8(x_hat).permute(1, 2, 0).numpy())
    assert sizes == {
        "alpha": (60, 80),
        "more/1x1": (1, 1),
        "more/grey": (60, 80),
        "odd": (161, 197),
        "turned": (40, 80),
    }


@pytest.mark.slow
def test_several_processes_write_the_same_files(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    use = ["--checkpoint", checkpoint, "--num_proc"]
    done = run("-m", "codec.compress", folder, tmp_path / "two", *use, 2)
    assert done.returncode == 0, done.stderr
    assert "5/5" in done.stderr
    assert compress.main([*map(str, (folder, tmp_path / "one", *use, 1))]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_an_interrupted_folder_goes_on_and_keeps_what_is_whole_and_unchanged(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(folder, source)
    words = [str(source), str(out), "--checkpoint", str(checkpoint)]
    whole, made = FileCodec.compress, []

    def stopped(self: FileCodec, x: torch.Tensor) -> list[bytes]:
        made.append(x.shape)
        if len(made) == 4:
            raise KeyboardInterrupt
        return whole(self, x)

    monkeypatch.setattr(FileCodec, "compress", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress.main(words)
    assert len(list(out.rglob("*.bin"))) == 3
    save_codec(tmp_path / "other.safetensors", with_tables(new_codec(Architecture(8, 12))), Description())
    with pytest.raises(InputError, match="--overwrite true"):  # another codec's files are not kept
        compress.main([*words[:3], str(tmp_path / "other.safetensors")])
    capsys.readouterr()
    assert compress.main(words) == 0
    assert len(made) == 4 + 2
    assert "kept 3 of 5 files from a run that was interrupted" in capsys.readouterr().err
    monkeypatch.undo()
    assert compress.main([words[0], str(tmp_path / "at once"), *words[2:]]) == 0
    assert files(out) == files(tmp_path / "at once")  # and no record is left
    with pytest.raises(InputError, match="--overwrite true"):
        compress.main(words)


def test_files_that_workers_finish_after_an_interruption_are_recorded_and_failed_ones_are_tried_again(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(folder, source)
    (source / "damaged.png").write_bytes(b"\x89PNG\r\n")
    words = [str(source), str(out), "--checkpoint", str(checkpoint), "--num_proc", "2"]

    class Interrupted(ThreadPoolExecutor):
        """Does all jobs in threads, then is interrupted as if by Ctrl-C before any result was read."""

        def __init__(self, processes: int, context: object, start: object, given: tuple[object, int]) -> None:
            super().__init__(1)
            monkeypatch.setattr(convert, "_worker", given[0], raising=False)

    def interrupted(futures: Iterable[Future[object]]) -> Iterator[Future[object]]:
        wait(futures)
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patched:
        patched.setattr(convert, "ProcessPoolExecutor", Interrupted)
        patched.setattr(convert, "as_completed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress.main(words)
    made = len(list(out.rglob("*.bin")))
    assert made == 5
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(InputError, match=r"damaged\.png: not a picture"):
            compress.main([*words[:-1], "1"])
        assert f"kept {made} of {made + 1} files" in capsys.readouterr().err
    (source / "damaged.png").unlink()
    with (out / ".codec.compress.unfinished").open("a") as file:
        file.write('["a line that a kill cut')
    assert compress.main([*words[:-1], "1"]) == 0
    assert not (out / ".codec.compress.unfinished").exists()


def test_a_folder_whose_command_was_killed_goes_on(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(40):
        shutil.copy(folder / "odd.png", source / f"{number:02}.png")
    words = ["-m", "codec.compress", str(source), str(out), "--checkpoint", str(checkpoint)]
    command = subprocess.Popen([sys.executable, *words, "--num_proc", "2"], stderr=subprocess.DEVNULL)
    while command.poll() is None and len(list(out.glob("*.bin"))) < 3:
        time.sleep(0.001)
    command.kill()
    command.wait()
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert int(re.search(r"kept (\d+) of 40 files", done.stderr)[1]) >= 3
    assert [path.name for path in sorted(out.iterdir())] == [f"{number:02}.bin" for number in range(40)]


def test_a_record_that_cannot_be_written_is_worth_a_warning_and_another_s_is_left(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    record, mine = tmp_path / ".codec.compress.unfinished", tmp_path / "mine"
    mine.write_text("dear")
    for make in (lambda: os.mkfifo(record), lambda: record.symlink_to(mine), record.mkdir):
        make()
        with pytest.warns(UserWarning, match="after an interruption this folder starts over"):
            assert compress.main([str(folder), str(tmp_path), "--checkpoint", str(checkpoint), "--overwrite"]) == 0
        assert record.is_symlink() or not record.is_file()
        record.rmdir() if record.is_dir() else record.unlink()
    assert mine.read_text() == "dear"
    assert sorted(files(tmp_path)) == ["alpha.bin", "mine", "more/1x1.bin", "more/grey.bin", "odd.bin", "turned.bin"]


def test_an_error_of_the_library_without_a_number_is_said(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compress.main([str(folder / "odd.png"), str(tmp_path / "a.bin"), "--checkpoint", str(checkpoint)]) == 0

    def full(*_: object) -> None:
        raise OSError("encoder error -2 when writing image file")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match=r"a\.bmp: encoder error -2 when writing image file"):
        decompress.main([str(tmp_path / "a.bin"), str(tmp_path / "a.bmp"), "--checkpoint", str(checkpoint)])


def test_two_at_once_do_not_share_a_target(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    words = [str(folder), str(tmp_path / "out"), "--checkpoint", str(checkpoint), "--overwrite"]
    said = r"out is in use by another codec\.compress: name another folder, or wait"
    with alone(tmp_path / "out", "codec.compress"), pytest.raises(DataError, match=said):
        compress.main(words)
    assert not (tmp_path / "out").exists()
    assert compress.main(words) == 0
    assert all(name.endswith(".bin") for name in files(tmp_path / "out"))


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in range(400):
        shutil.copy(folder / "odd.png", source / f"{name}.png")
    command = [sys.executable, "-m", "codec.compress", source, tmp_path / "out", "--checkpoint", checkpoint]
    parent = subprocess.Popen([*map(str, command), "--num_proc", "2"], stderr=subprocess.DEVNULL, cwd=ROOT)
    waited = time.monotonic() + 120
    while not list(tmp_path.glob("out/*.bin")):
        assert time.monotonic() < waited
        time.sleep(0.05)
    workers = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    waited = time.monotonic() + 20
    while any(_lives(pid) for pid in workers):
        assert time.monotonic() < waited
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_is_written_where_something_cannot_work(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    use = ["--checkpoint", str(checkpoint)]
    odd, out = str(folder / "odd.png"), str(tmp_path / "out")
    (tmp_path / "there.bin").write_bytes(b"dear")
    (tmp_path / "empty").mkdir()
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("a.png", "a.jpg"):
        (twins / name).write_bytes((folder / "odd.png").read_bytes())
    os.mkfifo(tmp_path / "fifo")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "odd.bin").symlink_to(checkpoint)
    before = files(tmp_path)
    for program, words, said in (
        (compress, [odd, out], "--checkpoint is required"),
        (compress, [odd, out, "--checkpoint", str(folder / "notes.txt")], "not read"),
        (compress, [odd, str(tmp_path / "there.bin"), *use], "--overwrite true"),
        (compress, [str(tmp_path / "empty"), out, *use], "holds no file"),
        (compress, [str(tmp_path / "absent.png"), out, *use], "no such file"),
        (compress, [str(tmp_path / "fifo"), out, *use], "fifo: not a regular file"),
        (compress, [odd, str(folder), *use], "is a folder"),
        (compress, [str(folder), str(tmp_path / "there.bin"), *use], "is a file"),
        (compress, [str(twins), out, *use], "rename one"),
        (compress, [odd, out, *use, "--num_proc", "0"], "--num_proc 0"),
        (compress, [odd, odd, *use, "--overwrite"], "is the source itself"),
        (compress, [odd, str(tmp_path / "there.bin" / "a.bin"), *use], "there.bin/a.bin: it cannot be written there"),
        (compress, [str(folder), str(tmp_path / "there.bin" / "a"), *use], r"a cannot be written .it is a file."),
        (compress, [str(folder), "/proc/out", "--checkpoint", "none"], "TARGET /proc/out cannot be written"),
        (decompress, [odd, "/proc/out/x.png", "--checkpoint", "none"], "TARGET /proc/out/x.png: it cannot be written"),
        (compress, [odd, str(checkpoint), *use, "--overwrite"], "the command reads this file too"),
        (compress, [str(folder), str(linked), *use, "--overwrite"], "odd.bin is a file that the command reads"),
        (decompress, [str(tmp_path / "there.bin"), str(tmp_path / "x.jpg"), *use], "ends in .bmp or .png"),
    ):
        with pytest.raises((InputError, DataError), match=said):
            program.main(words)
    assert files(tmp_path) == before
    assert compress.main([odd, str(tmp_path / "there.bin"), *use, "--overwrite"]) == 0
    assert (tmp_path / "there.bin").read_bytes() != b"dear"


def test_a_picture_that_is_none_is_named_and_the_others_are_compressed(
    checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    whole = (folder / "odd.png").read_bytes()
    for name, data in (("a.png", whole[:-500]), ("b.png", whole), ("c.jpg", b"")):
        (pictures / name).write_bytes(data)
    with pytest.raises(InputError, match=r"2 of 3 files failed, the first: .*a\.png: not a picture"):
        compress.main([str(pictures), str(tmp_path / "bin"), "--checkpoint", str(checkpoint)])
    assert sorted(files(tmp_path / "bin")) == [".codec.compress.unfinished", "b.bin"]


def test_a_wrong_model_or_a_damaged_file_is_one_line_and_no_picture(
    codec: Codec, checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "odd.bin", tmp_path / "odd.png"
    assert compress.main([str(folder / "odd.png"), str(file), "--checkpoint", str(checkpoint)]) == 0
    torch.manual_seed(5)
    save_codec(tmp_path / "other.safetensors", with_tables(new_codec(Architecture(8, 12))), Description())
    capsys.readouterr()

    def refused(checkpoint: Path) -> str:
        with pytest.raises(SystemExit) as ended:
            as_program(lambda: decompress.main([str(file), str(out), "--checkpoint", str(checkpoint)]))
        assert ended.value.code == 2
        assert not out.exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "written with codec" in refused(tmp_path / "other.safetensors")
    whole = file.read_bytes()
    for data in damaged(
        [whole, FileCodec(codec).compress(torch.zeros(1, 3, 20, 30, dtype=torch.uint8))[0]], 12, seed=1
    ):
        file.write_bytes(data)
        assert str(file) in refused(checkpoint)


def test_a_codec_reads_the_files_of_its_quantized_self_but_not_of_a_retrained_decoder(
    codec: Codec, folder: Path
) -> None:
    x = torch.from_numpy(np.array(Image.open(folder / "odd.png"))).permute(2, 0, 1)[None]
    int8 = FileCodec(calibrate(codec, [pad(x.float() / 255)], Quantization("all")))
    picture = FileCodec(codec).decompress(int8.compress(x))[0].float()
    assert (picture - FileCodec(codec).decompress(FileCodec(codec).compress(x))[0].float()).abs().mean() < 10
    retrained = with_tables(codec)
    with torch.no_grad():
        retrained.g_s[0].bias += 1e-3
    assert tables_of(retrained).fingerprint != tables_of(codec).fingerprint


def test_a_codec_that_diverged_says_so(codec: Codec) -> None:
    broken = with_tables(codec)
    broken.g_a[6].bias[0] = torch.nan
    with pytest.raises(InputError, match="not finite"):
        FileCodec(broken).compress(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
