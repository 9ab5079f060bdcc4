"""Finds metadata in picture files, so that they can be removed if a decoder fails on them."""

import re

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_SOS, _EOI, _ADOBE, _COMMENT = 0xDA, 0xD9, 0xEE, 0xFE
_APPS = range(0xE0, 0xF0)
_ADOBE_LENGTH = 14
# In a scan, FF00 is a data byte, FFD0 to FFD7 restart the decoder, and further FFs are padding.
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def without_metadata(data: bytes) -> bytes:
    """A JPEG or PNG file without EXIF, profiles, texts and comments; other files unchanged."""
    if data.startswith(_JPEG):
        return _jpeg_without_metadata(data)
    return _png_without_metadata(data) if data.startswith(_PNG) else data


def jpeg_is_whole(data: bytes) -> bool:
    """Whether the end marker (FFD9) follows the scans. End markers of thumbnails, inside segments, do not count."""
    place = len(_JPEG)
    while segment := _segment(data, place):
        marker, _, end = segment
        if marker == _EOI:
            return True
        place = end
        if marker == _SOS:
            following = _AFTER_SCAN.search(data, end)
            if not following:
                return False
            place = following.start()
    return False


def png_depth(data: bytes) -> int:
    """Bits per sample of a PNG file; 8 for other files."""
    return data[24] if data.startswith(_PNG) else 8


def _segment(data: bytes, place: int) -> tuple[int, int, int] | None:
    """The JPEG segment at or after `place`: its marker, start and end; None if there is none."""
    start = data.find(b"\xff", place)
    if start < 0:
        return None
    while data[start + 1 : start + 2] == b"\xff":
        start += 1
    if start + 2 > len(data):
        return None
    marker = data[start + 1]
    if marker in (0x01, _EOI, *range(0xD0, 0xD9)):  # segments without a length
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


def _png_without_metadata(data: bytes) -> bytes:
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4])
        if data[place + 4 : place + 8] in _PIXEL_CHUNKS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)
