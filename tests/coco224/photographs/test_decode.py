"""Every odd file becomes the upright RGB picture that a viewer shows, or a reason."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from coco224.photographs.crops import boxes, cut, shortest_decoded
from coco224.photographs.decode import BadPhotograph, list_photographs, read_photograph


@pytest.fixture(scope="module")
def chelsea(photographs: Path) -> Image.Image:
    return Image.open(photographs / "chelsea.png").convert("RGB")


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def read(path: Path) -> Image.Image:
    image = read_photograph(path).image
    assert image.mode == "RGB"
    return image


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("L", "jpg"), ("1", "png"), ("LA", "png")])
def test_one_channel_is_repeated(tmp_path: Path, chelsea: Image.Image, mode: str, suffix: str) -> None:
    chelsea.convert(mode).save(tmp_path / f"a.{suffix}")
    pixels = np.asarray(read(tmp_path / f"a.{suffix}"))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert psnr(Image.fromarray(pixels), chelsea.convert("L").convert("RGB")) > (3 if mode == "1" else 35)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, chelsea: Image.Image) -> None:
    grey = np.asarray(chelsea.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode.startswith("I")
    assert (np.asarray(read(tmp_path / "a.png"))[..., 1] == grey).all()


def test_cmyk_keeps_its_colours(tmp_path: Path, chelsea: Image.Image) -> None:
    chelsea.convert("CMYK").save(tmp_path / "a.jpg", quality=97)
    assert psnr(read(tmp_path / "a.jpg"), chelsea) > 30


def test_palette_keeps_its_colours(tmp_path: Path, chelsea: Image.Image) -> None:
    chelsea.quantize(256).save(tmp_path / "a.png")
    assert psnr(read(tmp_path / "a.png"), chelsea) > 30


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_what_is_transparent_is_white(tmp_path: Path, chelsea: Image.Image, mode: str) -> None:
    picture = chelsea.convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, 100, 100))
    picture.putalpha(alpha)
    {"RGBA": picture, "P": picture.quantize(64), "LA": picture.convert("LA")}[mode].save(tmp_path / "a.png")
    pixels = np.asarray(read(tmp_path / "a.png"))
    assert (pixels[:100, :100] == 255).all()
    expected = chelsea.convert("L").convert("RGB") if mode == "LA" else chelsea
    opaque = (100, 100, *chelsea.size)
    assert psnr(Image.fromarray(pixels).crop(opaque), expected.crop(opaque)) > 25


def test_a_transparent_colour_of_an_rgb_png_is_white(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (10, 20, 30))
    picture.paste((200, 0, 0), (0, 0, 20, 30))
    picture.save(tmp_path / "a.png", transparency=(10, 20, 30))
    pixels = np.asarray(read(tmp_path / "a.png"))
    assert (pixels[:, 20:] == 255).all()
    assert (pixels[:, :20] == (200, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_stands_upright(tmp_path: Path, chelsea: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What a camera held that way stores: the inverse of what a viewer does.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = chelsea if orientation == 1 else chelsea.transpose(stored[orientation])
    image.save(tmp_path / "a.jpg", exif=exif, quality=97, subsampling=0)
    photograph = read_photograph(tmp_path / "a.jpg", shortest=64)
    assert (photograph.width, photograph.height) == chelsea.size
    small = cut(photograph, (0, 0, 300, 300), 64)
    assert psnr(small, chelsea.resize((64, 64), Image.Resampling.BICUBIC, (0, 0, 300, 300))) > 33


@pytest.mark.parametrize("suffix", ["bmp", "webp", "jpeg", "png"])
def test_every_suffix_of_the_contract(tmp_path: Path, chelsea: Image.Image, suffix: str) -> None:
    chelsea.save(tmp_path / f"a.{suffix}")
    assert list_photographs(tmp_path) == [(f"a.{suffix}", (tmp_path / f"a.{suffix}").stat().st_size)]
    assert psnr(read(tmp_path / f"a.{suffix}"), chelsea) > 28


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG"},
        {"format": "JPEG", "progressive": True},
        {"format": "PNG"},
        {"format": "WEBP", "lossless": True, "method": 0},
        {"format": "BMP"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.995])
def test_a_truncated_file_is_never_a_grey_picture(
    tmp_path: Path, chelsea: Image.Image, options: dict[str, object], share: float
) -> None:
    data = encoded(chelsea, **options)
    (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadPhotograph, match=r"\w"):
        read_photograph(tmp_path / "a.jpg", shortest=32)


def test_a_download_cut_off_in_a_preallocated_file(tmp_path: Path, chelsea: Image.Image) -> None:
    data = encoded(chelsea, format="JPEG")
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    with pytest.raises(BadPhotograph, match="truncated"):
        read_photograph(tmp_path / "a.jpg")


def test_zeros_after_a_whole_picture_harm_nothing(tmp_path: Path, chelsea: Image.Image) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(chelsea, format="JPEG") + bytes(100))
    assert read(tmp_path / "a.jpg").size == chelsea.size


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"I am a text.\n" * 40, "not a JPEG"), (b"GIF89a" + bytes(40), "not a JPEG")],
)
def test_what_is_no_picture_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadPhotograph, match=reason):
        read_photograph(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "a.png")
    with pytest.raises(BadPhotograph, match="bomb"):
        read_photograph(tmp_path / "a.png")


def test_hidden_files_are_no_photographs(tmp_path: Path, chelsea: Image.Image) -> None:
    (tmp_path / "._a.jpg").write_bytes(b"a note of macOS")
    (tmp_path / "read.me").write_text("text")
    (tmp_path / "b").mkdir()
    chelsea.save(tmp_path / "b" / "c.JPG", format="JPEG")
    assert [name for name, _ in list_photographs(tmp_path)] == ["b/c.JPG"]


def test_reduced_decoding_changes_no_crop_visibly(tmp_path: Path, photographs: Path) -> None:
    """DCT scaling is taken (fewer pixels are decoded), and the crop is over 40 dB from the whole picture's."""
    for name in ("retina.jpg", "hubble_deep_field.jpg", "rocket.jpg"):
        reduced = read_photograph(photographs / name, shortest_decoded("resize_center", 96))
        assert reduced.reduction > 1
        (box,) = boxes("resize_center", reduced.width, reduced.height, 96, seed=0, index=0, count=1)
        whole = Image.open(photographs / name).convert("RGB")
        assert whole.size == (reduced.width, reduced.height)
        assert psnr(cut(reduced, box, 96), ImageOps.fit(whole, (96, 96), Image.Resampling.BICUBIC)) > 40
