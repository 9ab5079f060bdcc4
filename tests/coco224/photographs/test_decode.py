"""Every odd file becomes the upright RGB picture that a viewer shows, or a reason."""

import io
import math
import os
import struct
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from coco224.metadata import MOST_PARTS
from coco224.photographs import decode
from coco224.photographs.crops import boxes, cut, shortest_decoded
from coco224.photographs.decode import SUFFIXES, BadPhotograph, read_photograph
from coco224.walk import walk


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
    assert walk(tmp_path, SUFFIXES).files == [(f"a.{suffix}", (tmp_path / f"a.{suffix}").stat().st_size)]
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


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG"},
        {"format": "PNG"},
        {"format": "WEBP"},
        {"format": "WEBP", "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"},
        {"format": "WEBP", "save_all": True},
        {"format": "WEBP", "lossless": True, "method": 0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_a_download_cut_off_in_a_preallocated_file(
    tmp_path: Path, chelsea: Image.Image, options: dict[str, object]
) -> None:
    if "save_all" in options:
        options = {**options, "append_images": [chelsea.transpose(Image.Transpose.ROTATE_180)]}
    data = encoded(chelsea, **options)
    for share in (0.3, 0.45) if "save_all" in options else (0.3, 0.5, 0.9, 0.95):
        (tmp_path / "a.jpg").write_bytes(data[: int(len(data) * share)].ljust(len(data), b"\0"))
        with pytest.raises(BadPhotograph, match=r"truncated: the last \d+ bytes are zeros"):
            read_photograph(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "options",
    [{"quality": 80}, {"quality": 100, "method": 2}, {"lossless": True, "method": 0}],
    ids=lambda options: "-".join(map(str, options)),
)
def test_a_flat_end_of_a_webp_may_be_coded_as_zeros(
    tmp_path: Path, chelsea: Image.Image, options: dict[str, object]
) -> None:
    framed = Image.new("RGB", (1500, 1500), "white")
    framed.paste(chelsea)
    data = encoded(framed, format="WEBP", **options)
    assert data.endswith(bytes(100))
    for more in (b"", bytes(1000)):
        (tmp_path / "a.webp").write_bytes(data + more)
        assert psnr(read(tmp_path / "a.webp"), framed) > 35


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_zeros_after_a_whole_picture_harm_nothing(tmp_path: Path, chelsea: Image.Image, form: str) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(chelsea, format=form) + bytes(100))
    assert read(tmp_path / "a.jpg").size == chelsea.size


def test_zeros_at_the_end_of_a_webps_exif_harm_nothing(tmp_path: Path, chelsea: Image.Image) -> None:
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(3000)
    (tmp_path / "a.webp").write_bytes(encoded(chelsea, format="WEBP", exif=exif))
    assert read(tmp_path / "a.webp").size == chelsea.size


def scan_bomb(picture: Image.Image, scans: int) -> bytes:
    """A progressive JPEG whose last scan, with its Huffman table, is written many times."""
    data = encoded(picture, format="JPEG", progressive=True)
    table = data.rfind(b"\xff\xc4")
    return data[:-2] + data[table:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(
    tmp_path: Path, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").write_bytes(scan_bomb(chelsea, 100))
    assert read(tmp_path / "a.jpg").size == chelsea.size
    (tmp_path / "a.jpg").write_bytes(scan_bomb(chelsea, 101))
    reason = "101 scans of 451x300 pixels, more than any camera writes"
    for shortest in (None, 32):
        with pytest.raises(BadPhotograph, match=reason):
            read_photograph(tmp_path / "a.jpg", shortest)
    # The scans may be hidden behind what looks like a long segment, but is none to a decoder.
    data = (tmp_path / "a.jpg").read_bytes()
    place = data.rfind(b"\xff\xc4", 0, len(data) // 2)
    (tmp_path / "a.jpg").write_bytes(data[:place] + b"\xff\0\xff\xff" + data[place:])
    with pytest.raises(BadPhotograph, match=reason):
        read_photograph(tmp_path / "a.jpg")
    # The larger a picture, the fewer scans it may have.
    monkeypatch.setattr("coco224.photographs.decode._MOST_SCANNED_PIXELS", 20 * chelsea.width * chelsea.height)
    for scans in (20, 21):
        (tmp_path / "a.jpg").write_bytes(scan_bomb(chelsea, scans))
        if scans == 20:
            assert read(tmp_path / "a.jpg").size == chelsea.size
        else:
            with pytest.raises(BadPhotograph, match="21 scans"):
                read_photograph(tmp_path / "a.jpg")


def test_the_scans_of_thumbnails_and_videos_do_not_count(tmp_path: Path, chelsea: Image.Image) -> None:
    for progressive in (False, True):
        picture = encoded(chelsea, format="JPEG", progressive=progressive)
        thumbnails = jpeg_with(picture, 0xE1, b"\xff\xda" * 200)
        (tmp_path / "a.jpg").write_bytes(thumbnails + b"\xff\xda" * 200)
        assert read(tmp_path / "a.jpg").size == chelsea.size


def test_a_sequential_jpeg_of_several_scans_counts_as_a_progressive_one(
    tmp_path: Path, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One scan for each colour: all coefficients are in memory, and a scan may be repeated too."""
    data = encoded(chelsea, format="JPEG", quality=90, subsampling=0)
    start = data.find(b"\xff\xda")
    scan = data[start + 14 : -2]
    components = [struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, n, 0x11 * (n > 1), 0, 63, 0) for n in (1, 2, 3)]
    separate = data[:start] + b"".join(component + scan for component in components) + data[-2:]
    (tmp_path / "a.jpg").write_bytes(separate)
    assert read(tmp_path / "a.jpg").size == chelsea.size
    monkeypatch.setattr("coco224.photographs.decode._MOST_BYTES", 15 * chelsea.width * chelsea.height)
    with pytest.raises(BadPhotograph, match="need more than 1 GB of memory"):
        read_photograph(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes(data)
    assert read(tmp_path / "a.jpg").size == chelsea.size
    (tmp_path / "a.jpg").write_bytes(data[:start] + (components[0] + b"\0") * 101 + data[-2:])
    with pytest.raises(BadPhotograph, match="101 scans"):
        read_photograph(tmp_path / "a.jpg")


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
    assert [name for name, _ in walk(tmp_path, SUFFIXES).files] == ["b/c.JPG"]


def test_reduced_decoding_changes_no_crop_visibly(tmp_path: Path, photographs: Path) -> None:
    """DCT scaling is taken (fewer pixels are decoded), and the crop is over 40 dB from the whole picture's."""
    for name in ("retina.jpg", "hubble_deep_field.jpg", "rocket.jpg"):
        reduced = read_photograph(photographs / name, shortest_decoded("resize_center", 96))
        assert reduced.reduction > 1
        (box,) = boxes("resize_center", reduced.width, reduced.height, 96, seed=0, index=0, count=1)
        whole = Image.open(photographs / name).convert("RGB")
        assert whole.size == (reduced.width, reduced.height)
        assert psnr(cut(reduced, box, 96), ImageOps.fit(whole, (96, 96), Image.Resampling.BICUBIC)) > 40


def png_with(image: Image.Image, *chunks: tuple[bytes, bytes], broken: bool = False) -> bytes:
    """A PNG file with further chunks before its pixels, with a wrong checksum where `broken`."""
    data = encoded(image, format="PNG")
    extra = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ broken)
        for kind, content in chunks
    )
    return data[:33] + extra + data[33:]


def jpeg_with(data: bytes, marker: int, content: bytes) -> bytes:
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def test_the_metadata_of_a_png_does_not_keep_its_pixels(tmp_path: Path, chelsea: Image.Image) -> None:
    big = zlib.compress(bytes(3 * 2**20))
    files = {
        "profile": png_with(chelsea, (b"iCCP", b"icc\0\0" + big)),
        "text": png_with(chelsea, (b"zTXt", b"Comment\0\0" + big)),
        "texts": png_with(chelsea, *[(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20)))] * 70),
        "checksum": png_with(chelsea, (b"tEXt", b"Comment\0hello"), broken=True),
        "exif": png_with(chelsea, (b"eXIf", b"MM\0*\0\0\0\x08\xff\xff")),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert (np.asarray(read(tmp_path / name)) == np.asarray(chelsea)).all(), name


@pytest.mark.parametrize(
    ("mode", "transparency", "broken"),
    [("RGB", 1, False), ("RGB", 6, True), ("L", 1, False), ("L", 2, True), ("P", 257, False), ("P", 6, True)],
)
def test_a_malformed_transparency_of_a_png_does_not_keep_its_pixels(
    tmp_path: Path, chelsea: Image.Image, mode: str, transparency: int, broken: bool
) -> None:
    picture = chelsea.quantize(64) if mode == "P" else chelsea.convert(mode)
    chunk = png_with(picture, (b"tRNS", bytes(transparency)), broken=broken)[33 : 45 + transparency]
    plain = encoded(picture, format="PNG")
    place = plain.find(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(plain[:place] + chunk + plain[place:])
    assert (np.asarray(read(tmp_path / "a.png")) == np.asarray(picture.convert("RGB"))).all()


def test_a_transparency_stays_if_another_chunk_is_malformed(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (10, 20, 30))
    chunks = (b"tRNS", struct.pack(">HHH", 10, 20, 30)), (b"gAMA", b"\0")
    (tmp_path / "a.png").write_bytes(png_with(picture, *chunks))
    assert (np.asarray(read(tmp_path / "a.png")) == 255).all()


def test_a_png_without_its_palette_has_a_reason_in_words(tmp_path: Path, chelsea: Image.Image) -> None:
    data = encoded(chelsea.quantize(64), format="PNG")
    palette = data.find(b"PLTE") - 4
    (tmp_path / "a.png").write_bytes(data[:palette] + data[palette + 12 + 64 * 3 :])
    with pytest.raises(BadPhotograph, match="damaged: it has colour numbers but no palette"):
        read_photograph(tmp_path / "a.png")


def test_a_decoder_that_gives_no_reason_gets_one(
    tmp_path: Path, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: Image.Image, depth: int) -> Image.Image:
        raise AssertionError

    chelsea.save(tmp_path / "a.png")
    monkeypatch.setattr("coco224.photographs.decode._rgb", fails)
    with pytest.raises(BadPhotograph, match="damaged: its decoder stops with AssertionError"):
        read_photograph(tmp_path / "a.png")


def test_the_metadata_of_a_jpeg_does_not_keep_its_pixels(tmp_path: Path, chelsea: Image.Image) -> None:
    plain = encoded(chelsea, format="JPEG")
    # Orientation 6 and a resolution of 72/0.
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack(">HHII", 0x011A, 5, 1, 38)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + entries + bytes(4) + struct.pack(">II", 72, 0)
    expected = Image.open(io.BytesIO(plain)).convert("RGB")
    (tmp_path / "turned.jpg").write_bytes(jpeg_with(plain, 0xE1, exif))
    assert read(tmp_path / "turned.jpg").tobytes() == expected.transpose(Image.Transpose.ROTATE_270).tobytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        name, marker = [(b"Exif\0\0", 0xE1), (b"MPF\0", 0xE2), (b"ICC_PROFILE\0", 0xE2), (b"Photoshop 3.0\0", 0xED)][
            number % 4
        ]
        content = bytearray(exif[6:] if number % 4 < 2 else rng.bytes(60))
        for place in rng.integers(8 * (number % 4 < 2), len(content), 3):
            content[place] = rng.integers(256)
        (tmp_path / "a.jpg").write_bytes(jpeg_with(plain, marker, name + bytes(content)))
        found = np.asarray(read(tmp_path / "a.jpg"))
        assert sorted(found.shape) == sorted(np.asarray(expected).shape), number


def test_the_metadata_of_a_webp_does_not_keep_its_pixels(tmp_path: Path, chelsea: Image.Image) -> None:
    path, small = tmp_path / "p.webp", chelsea.crop((0, 0, 61, 47))
    small.save(path, lossless=True, exif=b"Exif\0\0" + bytes(90), icc_profile=b"p" * 300)
    whole = path.read_bytes()
    profile, after = whole.index(b"ICCP") + 4, whole.index(b"EXIF") + 4
    huge, none = (0x7FFFFFFF).to_bytes(4, "little"), bytes(4)
    for damaged in (
        whole[: after + 2],
        whole[:after] + huge + whole[after + 4 :],
        whole[:profile] + huge + whole[profile + 4 :],
        whole[:4] + none + whole[8:],
    ):
        path.write_bytes(damaged)
        assert read(path).tobytes() == small.tobytes()
    path.write_bytes(whole[: whole.index(b"VP8L") + 200])
    with pytest.raises(BadPhotograph):
        read_photograph(path)


def test_more_parts_than_a_picture_has_are_refused_before_it_is_opened(tmp_path: Path, chelsea: Image.Image) -> None:
    chelsea.save(tmp_path / "p.jpg")
    data = (tmp_path / "p.jpg").read_bytes()
    (tmp_path / "p.jpg").write_bytes(data[:2] + b"\xff\xe5\x00\x02" * MOST_PARTS + data[2:])
    with pytest.raises(BadPhotograph, match="more than 131,072 segments"):
        read_photograph(tmp_path / "p.jpg")


def test_a_motion_photo_is_whole_whatever_its_video_ends_in(tmp_path: Path, chelsea: Image.Image) -> None:
    picture = encoded(chelsea, format="JPEG")
    video = b"\0\0\0\x18ftypmp42" + bytes(12) + bytes(range(256)) * 4 + b"\0\0\0\x10free" + bytes(8)
    (tmp_path / "a.jpg").write_bytes(picture + video)
    assert read(tmp_path / "a.jpg").size == chelsea.size
    thumbnail = jpeg_with(picture, 0xE1, b"Exif\0\0" + encoded(chelsea.resize((40, 30)), format="JPEG"))
    (tmp_path / "a.jpg").write_bytes(thumbnail[: len(thumbnail) * 2 // 3] + bytes(2000))
    with pytest.raises(BadPhotograph, match="truncated"):
        read_photograph(tmp_path / "a.jpg")


def test_a_transparent_grey_is_white_at_every_depth(tmp_path: Path) -> None:
    def png(depth: int, colour: int, rows: list[bytes], transparent: bytes, width: int) -> bytes:
        head = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
        chunks = (
            (b"IHDR", head),
            (b"tRNS", transparent),
            (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            (b"IEND", b""),
        )
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
        )

    files = {
        16: png(16, 0, [struct.pack(">HH", 300, 301)], struct.pack(">H", 300), 2),
        8: png(8, 0, [bytes([30, 31])], struct.pack(">H", 30), 2),
        4: png(4, 0, [bytes([0x34])], struct.pack(">H", 3), 2),
        2: png(2, 0, [bytes([0b01_10_0000])], struct.pack(">H", 1), 2),
        1: png(1, 0, [bytes([0b01_000000])], struct.pack(">H", 0), 2),
        48: png(
            16, 2, [struct.pack(">6H", 0x1010, 0x2020, 0x3030, 0, 0, 0)], struct.pack(">HHH", 4112, 8224, 12336), 2
        ),
    }
    for depth, data in files.items():
        (tmp_path / "a.png").write_bytes(data)
        pixels = np.asarray(read(tmp_path / "a.png"))[0]
        assert (pixels[0] == 255).all(), depth
        assert pixels[1, 0] == {16: 1, 8: 31, 4: 68, 2: 170, 1: 255, 48: 0}[depth]


def test_a_large_picture_is_converted_in_strips(
    tmp_path: Path, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = chelsea.convert("RGBA")
    picture.putalpha(chelsea.convert("L"))
    grey = Image.fromarray(np.asarray(chelsea.convert("L")).astype(np.uint16) * 257)
    for number, image in enumerate((picture, picture.quantize(64), grey, chelsea.convert("CMYK"))):
        path = tmp_path / f"{number}.{'jpg' if image.mode == 'CMYK' else 'png'}"
        image.save(path)
        whole = read(path).tobytes()
        with monkeypatch.context() as patched:
            patched.setattr("coco224.photographs.decode._STRIP_PIXELS", 5000)
            assert read(path).tobytes() == whole


def test_a_picture_that_takes_over_a_gigabyte_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (13_000, 12_000)).save(tmp_path / "a.png")
    with pytest.raises(
        BadPhotograph, match=r"13000x12000 pixels need more than 1 GB of memory; at most 111 million fit"
    ):
        read_photograph(tmp_path / "a.png")


def test_the_bytes_of_the_file_count(tmp_path: Path, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    chelsea.save(path)
    most = 9 * chelsea.width * chelsea.height + path.stat().st_size
    for limit in (most, most - 1):
        monkeypatch.setattr("coco224.photographs.decode._MOST_BYTES", limit)
        if limit == most:
            assert read(path).size == chelsea.size
        else:
            with pytest.raises(BadPhotograph, match="need more than 1 GB of memory"):
                read_photograph(path)


def test_a_picture_is_in_memory_twice_at_most(
    tmp_path: Path, chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is turned, and before it is decoded again without its metadata, what was decoded is freed."""
    picture, exif = chelsea.convert("RGBA"), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    opened: list[weakref.ref[Image.Image]] = []
    alive: list[int] = []

    def held() -> int:
        return sum(each() is not None for each in opened)

    def open_picture(*given: Any, **more: Any) -> Image.Image:
        alive.append(held())
        image = opens(*given, **more)
        opened.append(weakref.ref(image))
        return image

    def transpose(image: Image.Image, method: Image.Transpose) -> Image.Image:
        alive.append(held())
        return turns(image, method)

    opens, turns = Image.open, Image.Image.transpose
    monkeypatch.setattr(Image, "open", open_picture)
    monkeypatch.setattr(Image.Image, "transpose", transpose)
    assert read(tmp_path / "a.png").size == (chelsea.height, chelsea.width)
    assert alive == [0, 0]

    def fails_once(image: Image.Image, depth: int) -> Image.Image:
        monkeypatch.setattr("coco224.photographs.decode._rgb", converts)
        raise ValueError("as on damaged metadata")

    converts = decode._rgb
    monkeypatch.setattr("coco224.photographs.decode._rgb", fails_once)
    alive.clear()
    assert read(tmp_path / "a.png").size == (chelsea.height, chelsea.width)
    assert alive == [0, 0, 0, 0]


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(BadPhotograph, match="not a regular file"):
        read_photograph(tmp_path / "a.jpg")
