"""Pictures whose pixels are sound are read, whatever is wrong beside them; what is wrong in the pixels is refused."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glia_rt.errors import BadImageError
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.sound import with_end, without_metadata

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    return Image.fromarray(noise).resize((151, 107), Image.Resampling.BICUBIC)


def encoded(photo: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes, *, length: int | None = None, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + name + data + struct.pack(">I", crc)


HEADER = 8 + 25  # signature and IHDR
PIXELS_PER_METRE = struct.pack(">IIB", 2835, 2835, 1)
#: Chunks that Pillow refuses a PNG for.
FAULTS = {
    "zTXt of 1.2 MB": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 1_200_000)),
    "iTXt of 1.2 MB": chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(b"x" * 1_200_000)),
    "iCCP of 1.2 MB": chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x" * 1_200_000)),
    "64 MB of tEXt": chunk(b"tEXt", b"a\0" + b"x" * 900_000) * 76,
    "wrong CRC": chunk(b"pHYs", PIXELS_PER_METRE, crc=1),
    "wrong CRC in private": chunk(b"prVt", b"data", crc=1),
    "EXIF with a wrong CRC": chunk(b"eXIf", b"MM\0*" + bytes(20), crc=1),
    "too long": chunk(b"pHYs", PIXELS_PER_METRE, length=700),
    "far too long": chunk(b"tEXt", b"Comment\0hello", length=1 << 31),
    "too short": chunk(b"tEXt", b"Comment\0" + b"hello" * 50, length=10),
    "short pHYs": chunk(b"pHYs", b"12"),
    "short cHRM": chunk(b"cHRM", b"12345"),
}


@pytest.mark.parametrize("filled", [b"\0" * 9000, b"\xff\xd9", b"\0" * 100 + b"IEND\xaeB`\x82"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG of CMYK"])
def test_a_file_that_was_cut_off_and_filled_up_is_refused(photo: Image.Image, kind: str, filled: bytes) -> None:
    whole = encoded(photo, kind) if kind in ("PNG", "JPEG") else encoded(photo.convert("CMYK"), "JPEG")
    with pytest.raises(BadImageError, match=r"truncated|checksum|data stream"):
        read_image(whole[: len(whole) // 2] + filled)


@pytest.mark.parametrize("place", ["before the pixels", "behind them"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_png_with_faults_beside_its_pixels(photo: Image.Image, fault: str, place: str) -> None:
    png = encoded(photo, "PNG")
    at = HEADER if place == "before the pixels" else len(png) - 12
    found = read_image(png[:at] + FAULTS[fault] + png[at:])
    np.testing.assert_array_equal(found, np.asarray(photo))


@pytest.mark.timeout(60)  # an hour, where each wrong chunk has the rest of the file searched
@pytest.mark.parametrize(
    "rest",
    [bytes(3_000_000), (chunk(b"pHYs", b"", length=1 << 30) + b"IDAT" + bytes(200)) * 20_000],
    ids=["zeros", "chunks of wrong lengths"],
)
def test_a_png_of_which_little_is_one_takes_little_time_and_memory(photo: Image.Image, rest: bytes) -> None:
    png = encoded(photo, "PNG")[:HEADER] + rest
    tracemalloc.start()
    with pytest.raises(BadImageError):
        read_image(png)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(png)


@pytest.mark.parametrize("fault", ["zTXt of 1.2 MB", "too long"])
def test_orientation_and_transparency_stay(photo: Image.Image, fault: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    palette = photo.quantize(16)
    for sound in (encoded(photo, "PNG", exif=exif), encoded(palette, "PNG", transparency=3)):
        damaged = sound[:HEADER] + FAULTS[fault] + sound[HEADER:]
        np.testing.assert_array_equal(read_image(damaged), read_image(sound))
    xmp = (
        b'XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    png = encoded(photo, "PNG")
    turned = png[:HEADER] + chunk(b"iTXt", xmp) + FAULTS[fault] + png[HEADER:]
    assert read_image(turned).shape == (151, 107, 3)


def test_a_png_that_is_damaged_in_its_pixels_stays_refused(photo: Image.Image) -> None:
    png = bytearray(encoded(photo, "PNG"))
    fault = FAULTS["wrong CRC"]
    png[len(png) // 2] ^= 1
    for damaged in (png, png[: len(png) // 2]):
        with pytest.raises(BadImageError):
            read_image(bytes(damaged[:HEADER] + fault + damaged[HEADER:]))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "fault", [segment(0xE0, b"JFIF\0"), segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\x10\0\x48")]
)
def test_a_jpeg_with_faults_beside_its_pixels(photo: Image.Image, fault: bytes) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    for sound in (encoded(photo, "JPEG", exif=exif), encoded(photo.convert("CMYK"), "JPEG")):
        damaged = sound[:2] + fault + sound[2:]
        np.testing.assert_array_equal(read_image(damaged), read_image(sound))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"quality": 95, "subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_lacks_its_end_marker(photo: Image.Image, mode: str, options: dict[str, Any]) -> None:
    """A cut anywhere else is refused, also right behind a scan of a progressive one."""
    jpeg = encoded(photo.convert(mode), "JPEG", **options)
    for cut in (1, 2):
        np.testing.assert_array_equal(read_image(jpeg[:-cut]), read_image(jpeg))
    for cut in range(3, len(jpeg) - 2):
        with pytest.raises(BadImageError):
            read_image(jpeg[:-cut])


def test_files_made_to_take_long_do_not() -> None:
    """Each of some megabytes, and of minutes where the time goes with the square."""
    count = 300_000
    nothing = struct.pack(">I4sI", 0, b"tRNS", zlib.crc32(b"tRNS"))
    wrong = struct.pack(">I4sI", 0, b"pHYs", 1)
    hostile = (
        b"\xff\xd8\xff\xe0\0\2" + b"\xff\xdb\0\2" * count + b"\xff\xda\0\2",
        b"\xff\xd8\xff\xc2\0\x0b\x08\0\1\0\1\1\1\x11\0" + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * count,
        b"\x89PNG\r\n\x1a\n" + wrong + b"IDAT" * count,
        b"\x89PNG\r\n\x1a\n" + (wrong + nothing) * count,
    )
    for content in hostile:
        began = time.process_time()
        without_metadata(content)
        with_end(content)
        assert time.process_time() - began < 10


def test_other_formats_are_left_alone(photo: Image.Image) -> None:
    assert without_metadata(encoded(photo, "GIF")) is None
    assert without_metadata(encoded(photo, "PNG")) is None
    assert without_metadata(b"\x89PNG\r\n\x1a\n") is None
    assert without_metadata(b"\xff\xd8") is None
    assert without_metadata(b"\xff\xd8\xff\xda") is None
