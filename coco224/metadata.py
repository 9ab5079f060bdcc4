"""Finds the parts of picture files: metadata that a decoder may fail on, and pixels that are missing."""

import re
import zlib
from collections.abc import Iterator
from itertools import islice

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TRNS_BYTES = {0: 2, 2: 6}  # of a transparent grey and of a transparent colour, by colour type
_PALETTE_ENTRIES = 256
_SOS, _EOI, _ADOBE, _COMMENT = 0xDA, 0xD9, 0xEE, 0xFE
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_APPS = range(0xE0, 0xF0)
_ADOBE_LENGTH = 14
# FF00 is a data byte of a scan, FF01 and FFD0 to FFD7 carry nothing, and further FFs are padding.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
MOST_PARTS = 2**17
"""Of a picture of 1 GB, whose encoder writes 8 kB at a time."""
_LEAST_PART = 4  # bytes of a segment
_WEBP_PARTS = (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_METADATA = 0b101100  # flags of VP8X: a profile, EXIF, XMP
_WEBP_FRAMES = (b"VP8 ", b"VP8L")
_MOST_CHUNKS = 100  # before the first frame of a WebP


def without_metadata(data: bytes) -> bytes:
    """A JPEG, PNG or WebP file without EXIF, profiles, texts and comments; other files unchanged."""
    if data.startswith(_JPEG):
        return _jpeg_without_metadata(data)
    if data[8:12] == b"WEBP":
        return _webp_without_metadata(data)
    return _png_without_metadata(data) if data.startswith(_PNG) else data


def too_many_parts(data: bytes) -> bool:
    """Whether a JPEG or PNG file has more segments or chunks than Pillow can read in about a second."""
    parts: Iterator[object] = iter(())
    if len(data) < _LEAST_PART * MOST_PARTS:
        return False
    if data.startswith(_JPEG):
        parts = _segments(data)
    elif data.startswith(_PNG):
        parts = _chunks(data)
    return next(islice(parts, MOST_PARTS, None), None) is not None


def jpeg_is_whole(data: bytes) -> bool:
    """Whether the end marker (FFD9) follows the scans. End markers of thumbnails, inside segments, do not count."""
    return any(marker == _EOI for marker, _, _ in _segments(data))


def jpeg_scans(data: bytes) -> int:
    """How many scans a decoder reads of a JPEG file; those of thumbnails, inside segments, do not count."""
    scans, components = 0, None
    for marker, start, _ in _segments(data):
        if marker in _SEQUENTIAL:
            components = data[start + 9 : start + 10]
        elif marker == _SOS:
            if data[start + 4 : start + 5] == components:
                return 1  # this scan has the whole picture: the decoder stops
            scans += 1
    return scans


def png_is_whole(data: bytes) -> bool:
    """Whether the checksums of a PNG's pixels are right."""
    return all(_checksum_is_right(data, start, end) for kind, start, end in _chunks(data) if kind == b"IDAT")


def webp_without_end(data: bytes, count: int) -> bytes | None:
    """A WebP file that ends `count` bytes before the end of its first frame; None unless only zeros are lost."""
    place, sizes = 12, [4]
    for _ in range(_MOST_CHUNKS):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if kind in _WEBP_FRAMES:
            end = (place + 8 + size - count) // 2 * 2
            if end <= place + 8 or data.count(0, end) < len(data) - end:
                return None
            head = bytearray(data[: place + 8])
            for at in (*sizes, place + 4):
                head[at : at + 4] = (end - at - 4).to_bytes(4, "little")
            return b"".join((head, memoryview(data)[place + 8 : end]))
        if kind == b"ANMF":  # it holds the frame
            sizes.append(place + 4)
            place += 24
        else:
            place += 8 + size + size % 2
    return None


def png_depth(data: bytes) -> int:
    """Bits per sample of a PNG file; 8 for other files."""
    return data[24] if data.startswith(_PNG) else 8


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG, without the data of its scans, until its end marker: marker, start and end of each."""
    place = len(_JPEG)
    while segment := _segment(data, place):
        yield segment
        if segment[0] == _EOI:
            return
        place = segment[2]


def _segment(data: bytes, place: int) -> tuple[int, int, int] | None:
    """The JPEG segment at or after `place`: its marker, start and end; None if there is none."""
    found = _MARKER.search(data, place)
    if not found:
        return None
    start, marker = found.start(), data[found.start() + 1]
    if marker in (0xD8, _EOI):  # segments without a length
        return marker, start, start + 2
    length = int.from_bytes(data[start + 2 : start + 4])
    return None if length < 2 else (marker, start, start + 2 + length)


def _jpeg_without_metadata(data: bytes) -> bytes:
    kept, place = [_JPEG], len(_JPEG)
    while segment := _segment(data, place):
        marker, start, end = segment
        if marker == _SOS:
            break
        broken_adobe = marker == _ADOBE and end - start - 2 < _ADOBE_LENGTH
        if marker != _COMMENT and (marker not in _APPS or (marker == _ADOBE and not broken_adobe)):
            kept.append(data[start:end])
        place = end
    return b"".join(kept) + data[place:]


def _webp_without_metadata(data: bytes) -> bytes:
    kept, place = [b"WEBP"], 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        end = place + 8 + size + size % 2
        if kind == b"VP8X":
            flags = bytes(each & ~_WEBP_METADATA for each in data[place + 8 : place + 9])
            kept.append(b"".join((data[place : place + 8], flags, data[place + 9 : end])))
        elif kind in _WEBP_PARTS:
            kept.append(data[place:end])
        elif end > len(data):  # a wrong length: what has the pixels may follow
            found = [data.find(each, place + 8) for each in _WEBP_PARTS]
            end = min((at for at in found if at >= 0), default=len(data))
        place = end
    body = b"".join(kept)
    return b"".join((b"RIFF", len(body).to_bytes(4, "little"), body))


def _png_without_metadata(data: bytes) -> bytes:
    kept = [_PNG]
    for kind, start, end in _chunks(data):
        if kind in _PIXEL_CHUNKS and (kind != b"tRNS" or _transparency_is_right(data, start, end)):
            kept.append(data[start:end])
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The chunks of a PNG: kind, start and end of each."""
    place = len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        yield data[place + 4 : place + 8], place, end
        place = end


def _checksum_is_right(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])


def _transparency_is_right(data: bytes, start: int, end: int) -> bool:
    """Whether a tRNS chunk has the length that its PNG's colour type asks for, and its checksum is right."""
    least = _TRNS_BYTES.get(data[25], 0)
    return least <= end - start - 12 <= _PALETTE_ENTRIES and _checksum_is_right(data, start, end)
