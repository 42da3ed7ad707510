"""What of a PNG or a JPEG says its pixels, without what a decoder may stumble over beside them.

A picture whose pixels are sound is read, whatever is wrong with its metadata. Pillow refuses some: text of a PNG that
unpacks to over a megabyte, a wrong checksum or length of a chunk without pixels, a short JFIF segment of a JPEG. And it
refuses a JPEG that lacks its end marker only.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

_PNG: Final = b"\x89PNG\r\n\x1a\n"
#: Chunks that a decoder may pass over by the rules of PNG, but that say what the pixels are: the transparent colour,
#: the frames of an animation, and the orientation.
_KEPT_CHUNKS: Final = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf"})
_HEAD: Final = 8
#: Bytes of a chunk that are read at a time.
_PART: Final = 1 << 20
_XMP: Final = b"XML:com.adobe.xmp\0\0"
#: Where such chunks may begin, behind a chunk whose length is wrong. So many places of a file are tried.
_LANDMARKS: Final = 64
_LANDMARK: Final = re.compile(rb"PLTE|tRNS|acTL|fcTL|fdAT|eXIf|iTXt|IDAT|IEND")

_JPEG: Final = b"\xff\xd8"
_END: Final = b"\xff\xd9"
_SCAN: Final = 0xDA
#: Start of a frame: baseline, extended and progressive.
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})
#: APP0 to APP15, and comments. APP1 has the orientation, and APP14 how the colours are coded.
_METADATA: Final = frozenset({*range(0xE0, 0xF0), 0xFE}) - {0xE1, 0xEE}
#: The marker behind the data of a scan, in which 0xFF 0x00 is a byte, and 0xD0 to 0xD7 restart the decoder.
_MARKER: Final = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_COEFFICIENTS: Final = 64


def without_metadata(encoded: bytes) -> bytes | None:
    """Return a PNG or JPEG without its metadata, but with its orientation.

    Returns:
        The picture; None if it is of another format, or is cut off, or has no metadata.
    """
    if encoded.startswith(_PNG):
        kept = b"".join([_PNG, *_pixel_chunks(encoded)])
    elif encoded.startswith(_JPEG):
        parts = [_JPEG]
        for marker, start, end in _segments(encoded):
            if marker == _SCAN:
                parts.append(encoded[start:])
                break
            if marker not in _METADATA:
                parts.append(encoded[start:end])
        else:
            return None
        kept = b"".join(parts)
    else:
        return None
    return kept if len(kept) < len(encoded) else None


def require_sound_pixels(png: BinaryIO) -> None:
    """Hold the pixels of a PNG against their checksums, which Pillow does not do.

    A file that was cut off and filled up with zeros still decodes, to pixels that are made up.

    Args:
        png: A PNG that can be decoded.

    Raises:
        ValueError: The checksum of a chunk of pixels is wrong.
    """
    at = len(_PNG)
    while True:
        png.seek(at)
        head = png.read(_HEAD)
        if len(head) < _HEAD or head[4:] == b"IEND":
            return
        [length] = struct.unpack_from(">I", head)
        if head[4:] == b"IDAT":
            found, left = zlib.crc32(b"IDAT"), length
            while part := png.read(min(left, _PART)):
                found, left = zlib.crc32(part, found), left - len(part)
            if png.read(4) != struct.pack(">I", found):
                raise ValueError("the checksum of its pixels is wrong")
        at += 12 + length


def with_end(jpeg: bytes) -> bytes | None:
    """Return a JPEG that may lack its end marker only, with that marker.

    Returns:
        The picture; None if the marker is there, or a scan is missing. The last scan may still be cut off: decoding
        finds that out.
    """
    #: By component, the lowest bit of each coefficient that is still missing.
    missing: dict[int, list[int]] = {}
    for marker, start, end in _segments(jpeg):
        if marker in _FRAMES:
            components = jpeg[start + 10 : end : 3]
            missing = {component: [1] * _COEFFICIENTS for component in components}
        elif marker == _SCAN:
            count = int.from_bytes(jpeg[start + 4 : start + 5])
            components = jpeg[start + 5 : start + 5 + 2 * count : 2]
            spectrum = jpeg[start + 5 + 2 * count : start + 8 + 2 * count]
            if len(spectrum) < 3:
                return None
            first, last, bits = spectrum
            for component in components:
                if component in missing and first <= last < _COEFFICIENTS:
                    missing[component][first : last + 1] = [bits & 15] * (last + 1 - first)
        elif marker == _END[1]:
            return None
    is_whole = missing and not any(any(bits) for bits in missing.values())
    return jpeg + _END if is_whole else None


def _pixel_chunks(png: bytes) -> Iterator[bytes]:
    """Yield the chunks of a PNG that say what the pixels are. Wrong ones stay, for the decoder to refuse them."""
    at = len(_PNG)
    tries = _LANDMARKS
    while at + 12 <= len(png):
        chunk, name = _chunk(png, at), png[at + 4 : at + 8]
        if not name.isalpha():  # nothing that follows is a chunk
            yield png[at:]
            return
        is_pixels = not name[0] & 0x20 or name == b"tRNS"
        is_sound = _is_sound(chunk)
        if is_pixels and len(chunk) == _HEAD:
            yield png[at:]
            return
        if is_pixels or (is_sound and (name in _KEPT_CHUNKS or chunk[8:].startswith(_XMP))):
            yield chunk
        if is_pixels or is_sound:
            at += len(chunk)
            continue
        # Its length may be what is wrong: behind it, the next sound chunk that may be kept is looked for.
        starts = (one.start() - 4 for one in _LANDMARK.finditer(png, at + 8))
        at = len(png)
        for start in itertools.islice(starts, tries):
            tries -= 1
            if _is_sound(_chunk(png, start)):
                at = start
                break


def _chunk(png: bytes, at: int) -> bytes:
    """Return a chunk; its head alone, if the file ends before it does."""
    [length] = struct.unpack_from(">I", png, at)
    end = at + 12 + length
    return png[at : end if end <= len(png) else at + _HEAD]


def _is_sound(chunk: bytes) -> bool:
    [length] = struct.unpack_from(">I", chunk)
    return len(chunk) == 12 + length and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))


def _segments(jpeg: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment of a JPEG, as far as it is one; a scan's with its data."""
    at = len(_JPEG)
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF:
        marker = jpeg[at + 1]
        if marker == 0xFF:  # fills up
            at += 1
            continue
        if marker == _END[1]:
            break
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if marker == _SCAN:
            found = _MARKER.search(jpeg, end)
            end = found.start() if found else len(jpeg)
        yield marker, at, end
        at = end
    if jpeg[at : at + 2] == _END:
        yield _END[1], at, at + 2
