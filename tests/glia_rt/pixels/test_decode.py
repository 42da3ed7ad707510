from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from glia_rt.errors import BadImageError, MachineError, UsageError
from glia_rt.pixels import decode
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS, configure_pillow, read_image
from glia_rt.pixels.names import display_name

Pixels = npt.NDArray[np.uint8]

RAMP = np.arange(256, dtype=np.uint8)
EVERY_16_BIT = np.arange(65536, dtype=np.uint16).reshape(256, 256)
EVERY_16_BIT_ROUNDED = np.floor(EVERY_16_BIT / 257 + 0.5).astype(np.uint8)

# What a viewer makes of stored pixels, by orientation (TIFF 6.0, Orientation).
TURN: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def photo(height: int = 12, width: int = 20) -> Pixels:
    """Pixels with no symmetry: smooth in red and green, noise in blue."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 256, (height, width))
    return np.stack([x * 255 // width, y * 255 // height, noise], axis=2).astype(np.uint8)


def encode(picture: npt.NDArray[Any] | Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, format, **options)
    return file.getvalue()


def tiff(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes, trns: bytes | None = None) -> bytes:
    """A PNG chunk by chunk, for what Pillow reads and does not write; `rows` include their filter bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    transparency = b"" if trns is None else chunk(b"tRNS", trns)
    return b"\x89PNG\r\n\x1a\n" + header + transparency + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def ico(picture: bytes) -> bytes:
    """An icon of 16 x 16 pixels, as its header says; what is in it is a file of its own."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def over_white(values: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> Pixels:
    # No ties: 255 is odd.
    mixed = alpha.astype(int) * values + (255 - alpha.astype(int)) * 255
    return np.asarray((mixed + 127) // 255, np.uint8)


def grey(values: npt.ArrayLike) -> Pixels:
    return np.stack([np.asarray(values, np.uint8)] * 3, axis=2)


def orientation_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


# JPEG, which another package decodes


JPEGS: dict[str, dict[str, Any]] = {
    "baseline 4:2:0": {"subsampling": 2},
    "baseline 4:2:2": {"subsampling": 1},
    "baseline 4:4:4": {"subsampling": 0},
    "progressive 4:2:0": {"subsampling": 2, "progressive": True},
    "progressive 4:4:4": {"subsampling": 0, "progressive": True},
    "restart markers": {"subsampling": 2, "restart_marker_blocks": 3},
    "optimised": {"subsampling": 2, "optimize": True},
    "coarse": {"subsampling": 2, "quality": 3},
    "fine": {"subsampling": 2, "quality": 100},
    "stored as RGB": {"keep_rgb": True},
}


def as_pillow_decodes(file: bytes) -> Pixels:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (17, 31), (250, 333)])
def test_pixels_of_a_jpeg_are_pillow_s(options: dict[str, Any], height: int, width: int) -> None:
    file = encode(photo(height, width), "JPEG", **{"quality": 85} | options)
    np.testing.assert_array_equal(read_image(file), as_pillow_decodes(file))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_of_a_jpeg_of_other_colours_are_pillow_s(mode: str, progressive: bool) -> None:
    file = encode(Image.fromarray(photo(33, 47)).convert(mode), "JPEG", quality=70, progressive=progressive)
    np.testing.assert_array_equal(read_image(file), as_pillow_decodes(file))


def test_it_is_the_other_package_that_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    marked = np.full((12, 20, 3), 77, np.uint8)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *args, **options: marked)
    np.testing.assert_array_equal(read_image(encode(photo(), "JPEG")), marked)
    assert read_image(encode(Image.new("CMYK", (4, 4)), "JPEG")).shape == (4, 4, 3)


@pytest.mark.parametrize(
    "edit",
    [
        lambda file: file + b"trailing",
        lambda file: file[:-2] + b"stray" + file[-2:],
        lambda file: file[:2] + b"\xff\xfe\x00\x07hello" + file[2:],
    ],
    ids=["after the end", "before the end", "comment"],
)
def test_what_only_pillow_takes_is_left_to_pillow(edit: Callable[[bytes], bytes]) -> None:
    file = edit(encode(photo(40, 60), "JPEG", quality=85))
    np.testing.assert_array_equal(read_image(file), as_pillow_decodes(file))


# Kinds of source


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = photo()
    path = tmp_path / "a.png"
    path.write_bytes(encode(pixels, "PNG"))
    with Image.open(path) as image:
        for source in (path, str(path), path.read_bytes(), image, pixels):
            result = read_image(source)
            assert result.dtype == np.uint8
            assert result.flags.c_contiguous
            np.testing.assert_array_equal(result, pixels)


def test_an_array_comes_back_as_it_is() -> None:
    pixels = photo()
    assert read_image(pixels) is pixels
    flipped = read_image(pixels[:, ::-1])
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, pixels[:, ::-1])


@pytest.mark.parametrize(
    "array",
    [photo().astype(np.float32), photo().astype(np.int8), photo()[..., 0], photo()[..., :2], photo()[np.newaxis]],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_other_arrays_are_refused(array: npt.NDArray[Any]) -> None:
    with pytest.raises(BadImageError, match=r"<ndarray>: an array must be uint8 \(H, W, 3\), not "):
        read_image(array)


def test_no_pixels() -> None:
    with pytest.raises(BadImageError, match="<ndarray>: no pixels"):
        read_image(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(BadImageError, match="<Image>: no pixels: 0 x 5"):
        read_image(Image.new("RGB", (0, 5)))


def test_other_things_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="not int"):
        read_image(0)  # type: ignore[arg-type]


def test_a_pil_image_is_left_as_it_was() -> None:
    with Image.open(io.BytesIO(encode(photo(), "PNG", exif=orientation_exif(6)))) as image:
        first = read_image(image)
        assert image.size == (20, 12)
        np.testing.assert_array_equal(image, photo())
        np.testing.assert_array_equal(read_image(image), first)


# Orientation


@pytest.mark.parametrize("orientation", TURN)
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
    ids=str,
)
def test_exif_orientation(format: str, options: dict[str, Any], orientation: int) -> None:
    stored = read_image(encode(photo(), format, **options))
    turned = read_image(encode(photo(), format, exif=orientation_exif(orientation), **options))
    np.testing.assert_array_equal(turned, TURN[orientation](stored))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_a_block_that_is_no_exif_does_not_spoil_a_picture(format: str) -> None:
    plain = encode(photo(), format)
    spoiled = encode(photo(), format, exif=b"Exif\0\0GARBAGE! and more of it")
    assert spoiled != plain
    np.testing.assert_array_equal(read_image(spoiled), read_image(plain))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "I;16B", "I", "F"])
def test_exif_orientation_in_every_kind_of_pixel(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    if mode == "P":
        image.putpalette(bytes(range(9)))
    image.putpixel((2, 0), (1,) * len(image.getbands()) if len(image.getbands()) > 1 else 1)
    stored = read_image(image)
    image.info["exif"] = orientation_exif(6).tobytes()
    np.testing.assert_array_equal(read_image(image.copy()), np.rot90(stored, -1))


def test_orientation_beside_a_malformed_tag() -> None:
    exif = orientation_exif(6)
    exif[ExifTags.Base.Artist] = "somebody"
    written = exif.tobytes()
    as_float = struct.pack(">HHI", ExifTags.Base.Artist, 11, 1)
    malformed = written.replace(struct.pack(">HHI", ExifTags.Base.Artist, 2, 9), as_float)
    assert malformed != written
    np.testing.assert_array_equal(read_image(encode(photo(), "PNG", exif=malformed)), np.rot90(photo(), -1))


def test_orientation_in_xmp() -> None:
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>')
    np.testing.assert_array_equal(read_image(encode(photo(), "PNG", pnginfo=xmp)), np.rot90(photo(), 1))


# Alpha


def test_alpha_over_white_for_every_value_and_alpha() -> None:
    values, alpha = np.meshgrid(RAMP, RAMP)
    expected = over_white(values, alpha)
    la = Image.merge("LA", [Image.fromarray(values), Image.fromarray(alpha)])
    np.testing.assert_array_equal(read_image(encode(la, "PNG")), grey(expected))

    rgba = np.stack([values, values[:, ::-1], values * 0, alpha], axis=2)
    expected = over_white(rgba[..., :3], rgba[..., 3:])
    np.testing.assert_array_equal(read_image(encode(rgba, "PNG")), expected)
    np.testing.assert_array_equal(read_image(encode(rgba, "TIFF")), expected)


def test_premultiplied_alpha() -> None:
    # 50 of 255 under an alpha of 100 stands for 127.
    np.testing.assert_array_equal(read_image(Image.new("La", (1, 1), (50, 100))), [[[205, 205, 205]]])
    file = tiff(np.array([[[50, 60, 70, 100]]], np.uint8), photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_array_equal(read_image(file), over_white(np.array([[[127, 153, 178]]]), np.array([[[100]]])))


def palette_image(mode: str = "P") -> Image.Image:
    image = Image.new(mode, (3, 1))
    image.putpalette(bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    image.putdata([0, 1, 2] if mode == "P" else [(0, 255), (1, 0), (2, 51)])
    return image


def test_palette() -> None:
    np.testing.assert_array_equal(
        read_image(encode(palette_image(), "PNG")), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    )


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_one_transparent_colour(format: str) -> None:
    np.testing.assert_array_equal(
        read_image(encode(palette_image(), format, transparency=1)), [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    )


def test_palette_with_an_alpha_per_colour() -> None:
    colours = np.array([[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    expected = over_white(colours, np.array([[[255], [0], [51]]]))
    file = encode(palette_image(), "PNG", transparency=bytes([255, 0, 51]))
    np.testing.assert_array_equal(read_image(file), expected)
    np.testing.assert_array_equal(read_image(palette_image("PA")), expected)


def test_the_transparent_colour_of_a_png() -> None:
    eight = np.array([[0, 100, 255]], np.uint8)
    np.testing.assert_array_equal(read_image(encode(eight, "PNG", transparency=100)), grey([[0, 255, 255]]))

    bits = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    np.testing.assert_array_equal(read_image(encode(bits, "PNG", transparency=0)), grey([[255, 255, 255]]))

    colour = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    np.testing.assert_array_equal(
        read_image(encode(colour, "PNG", transparency=(1, 2, 3))), [[[255, 255, 255], [4, 5, 6]]]
    )

    # 1000 and 1001 are the same grey of 4 once rounded: only the first is transparent.
    sixteen = png((3, 1), 16, 0, b"\0" + struct.pack(">3H", 1000, 1001, 0), trns=struct.pack(">H", 1000))
    np.testing.assert_array_equal(read_image(sixteen), grey([[255, 4, 0]]))


# Colour


def test_greyscale_and_one_bit() -> None:
    np.testing.assert_array_equal(read_image(encode(RAMP.reshape(16, 16), "PNG")), grey(RAMP.reshape(16, 16)))
    bits = Image.fromarray(np.eye(9, dtype=np.uint8) * 255).convert("1")
    np.testing.assert_array_equal(read_image(encode(bits, "PNG")), grey(np.eye(9) * 255))


def test_cmyk() -> None:
    ink = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    light = 255 - ink[..., 3:].astype(int)
    expected = light - (light * ink[..., :3] + 127) // 255
    image = Image.frombytes("CMYK", (8, 8), ink.tobytes())
    np.testing.assert_array_equal(read_image(encode(image, "TIFF")), expected)


def test_cmyk_jpeg() -> None:
    # Adobe stores inks inverted, and Pillow writes them so: read as they stand, this would come out dark.
    flat = Image.new("CMYK", (16, 16), (50, 60, 70, 100))
    np.testing.assert_array_equal(read_image(encode(flat, "JPEG", quality=100)), np.full((16, 16, 3), (125, 119, 112)))


def test_ycbcr() -> None:
    result = read_image(Image.new("YCbCr", (1, 1), (100, 100, 150)))
    np.testing.assert_allclose(result, [[[130.8, 93.9, 50.4]]], atol=1)  # JFIF 1.02
    np.testing.assert_array_equal(read_image(Image.new("YCbCr", (1, 1), (77, 128, 128))), [[[77, 77, 77]]])


def test_hsv() -> None:
    np.testing.assert_array_equal(read_image(Image.new("HSV", (1, 1), (85, 255, 200))), [[[0, 200, 0]]])


def test_lab() -> None:
    file = tiff(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8), photometric="cielab")
    np.testing.assert_allclose(read_image(file), [[[255, 255, 255], [0, 0, 0]]], atol=1)


def test_icc_profiles_are_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    file = encode(photo(), "PNG", icc_profile=profile)
    with Image.open(io.BytesIO(file)) as image:
        assert image.info["icc_profile"] == profile
    np.testing.assert_array_equal(read_image(file), photo())


# 16 bits and floats


@pytest.mark.parametrize(
    "file",
    [
        encode(EVERY_16_BIT, "PNG"),
        tiff(EVERY_16_BIT),
        tiff(EVERY_16_BIT, byteorder=">"),
        tiff(EVERY_16_BIT, byteorder=">", compression="zlib"),
        tiff(EVERY_16_BIT.astype(np.uint32)),
        b"P5 256 256 65535\n" + EVERY_16_BIT.astype(">u2").tobytes(),
    ],
    ids=["png", "tiff", "tiff big-endian", "tiff big-endian deflate", "tiff 32-bit", "pgm"],
)
def test_16_bit_greyscale_is_rounded(file: bytes) -> None:
    np.testing.assert_array_equal(read_image(file), grey(EVERY_16_BIT_ROUNDED))


@pytest.mark.parametrize(("value", "dtype"), [(-1, np.int16), (-1, np.int32), (65536, np.int32), (65536, np.uint32)])
def test_integers_past_16_bits_are_refused(value: int, dtype: npt.DTypeLike) -> None:
    with pytest.raises(BadImageError, match=rf"<bytes>: integers must lie in 0..65535, not .*{value}"):
        read_image(tiff(np.array([[5, value]], dtype)))


def test_16_bit_colour_is_cut_by_pillow() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), np.uint16)
    read = read_image(tiff(values, photometric="rgb"))
    np.testing.assert_array_equal(read, values >> 8)
    assert np.abs(read - np.round(values / 257)).max() == 1  # as the module says

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    np.testing.assert_array_equal(read_image(png((64, 64), 16, 2, rows)), values >> 8)

    grey_alpha = png((1, 1), 16, 4, b"\0" + struct.pack(">2H", 50_000, 32_768))
    np.testing.assert_array_equal(read_image(grey_alpha), grey(over_white(np.array([[195]]), np.array([[128]]))))


def test_floats() -> None:
    values = np.array([[0, 0.1, 0.25, 0.5, 0.9999, 1]], np.float32)
    expected = grey([[0, 26, 64, 128, 255, 255]])
    np.testing.assert_array_equal(read_image(tiff(values)), expected)
    np.testing.assert_array_equal(read_image(encode(Image.fromarray(values), "TIFF")), expected)


@pytest.mark.parametrize("value", [-1e-6, 1.0001, 255, np.inf, np.nan])
def test_floats_outside_the_unit_interval_are_refused(value: float) -> None:
    with pytest.raises(BadImageError, match=r"<bytes>: floats must lie in \[0, 1\]"):
        read_image(tiff(np.array([[0.5, value]], np.float32)))


# Frames


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("GIF", {}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
    ],
    ids=str,
)
def test_first_frame(format: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (7, 5), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    file = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(file)) as image:
        assert getattr(image, "n_frames", 1) == 3
        np.testing.assert_array_equal(read_image(file), np.full((5, 7, 3), (255, 0, 0)))
        image.seek(1)
        np.testing.assert_array_equal(read_image(image), np.full((5, 7, 3), (0, 255, 0)))


def test_first_picture_of_an_mpo() -> None:
    file = encode(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (20, 12))])
    with Image.open(io.BytesIO(file)) as image:
        assert image.format == "MPO"
    np.testing.assert_array_equal(read_image(file), read_image(encode(photo(), "JPEG")))


def test_the_mode_is_that_of_the_picture_within() -> None:
    within = encode(EVERY_16_BIT, "PNG")
    icns = struct.pack(">4sI4sI", b"icns", 16 + len(within), b"ic08", 8 + len(within)) + within
    with Image.open(io.BytesIO(icns)) as image:
        assert image.mode == "RGBA"  # before loading
    np.testing.assert_array_equal(read_image(icns), grey(EVERY_16_BIT_ROUNDED))


# Limits


def test_the_default_limit_is_where_pillow_stops() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert DEFAULT_MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_the_limit_holds_before_decoding() -> None:
    header_only = encode(photo(), "PNG")[:60]
    with pytest.raises(BadImageError, match=r"<bytes>: 20 x 12 is over the limit of 239 pixels \(max_pixels\)"):
        read_image(header_only, max_pixels=239)
    assert read_image(encode(photo(), "PNG"), max_pixels=240).shape == (12, 20, 3)


def test_a_bomb_is_refused_unread() -> None:
    with pytest.raises(BadImageError, match="2500000000 pixels"):
        read_image(png((50_000, 50_000), 8, 2, b"no pixels at all"))


def test_configure_pillow_moves_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encode(photo(3, 3), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # and back again after the test
    with pytest.raises(BadImageError, match=r"9 pixels.* configure_pillow"):
        read_image(file, max_pixels=1000)
    configure_pillow(9)
    assert read_image(file, max_pixels=1000).shape == (3, 3, 3)  # warnings are errors here: there was none
    with pytest.raises(BadImageError, match="over the limit of 8"):
        read_image(file, max_pixels=8)


# Files


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Path(path).write_bytes(encode(photo(), "PNG"))
    np.testing.assert_array_equal(read_image(path), photo())
    assert display_name(path) == f"{tmp_path}/caf\\udce9.png"
    Path(path).write_bytes(b"not a picture")
    with pytest.raises(BadImageError, match=r"/caf\\udce9.png: not a picture Pillow can read"):
        read_image(Path(path))


def test_display_names() -> None:
    assert display_name("dir/Überall.jpg") == "dir/Überall.jpg"
    assert display_name(Path("a/b.jpg")) == "a/b.jpg"
    assert display_name(b"\xff\xd8") == "<bytes>"
    assert display_name(np.zeros((1, 1, 3), np.uint8)) == "<ndarray>"
    assert display_name(Image.new("RGB", (1, 1))) == "<Image>"


def test_a_link_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(photo(), "PNG"))
    (tmp_path / "link.png").symlink_to("a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "link.png"), photo())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("a,b,c\n1,2,3\n" * 100)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to("nowhere")
    for name, reason in {
        "empty.png": "empty file",
        "text.png": "not a picture Pillow can read",
        "folder.png": "is a directory",
        "dangling.png": "No such file or directory",
        "missing.png": "No such file or directory",
        "text.png/a.png": "Not a directory",
        "nul\0.png": "embedded null byte",
    }.items():
        with pytest.raises(BadImageError) as caught:
            read_image(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {reason}"
    with pytest.raises(BadImageError, match="<bytes>: empty file"):
        read_image(b"")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fifo.png"
    os.mkfifo(path)
    messages = []

    def read() -> None:
        with pytest.raises(BadImageError) as caught:
            read_image(path)
        messages.append(str(caught.value))

    thread = threading.Thread(target=read, daemon=True)  # left behind, were it to wait for ever
    thread.start()
    thread.join(10)
    assert messages == [f"{path}: not a regular file"]


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(photo(), "PNG"))
    path.chmod(0)
    root = os.geteuid() == 0  # who may read everything, and stands back for the moment
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(BadImageError, match=r"secret.png: Permission denied"):
            read_image(path)
    finally:
        if root:
            os.seteuid(0)


def test_nothing_that_runs_a_program_is_read() -> None:
    eps = encode(photo(), "EPS")
    with pytest.raises(BadImageError, match="<bytes>: EPS is not read"):
        read_image(eps)

    # The same EPS inside an IPTC container, where it claims to be a JPEG.
    fields = {(3, 60): b"\x01\x00", (3, 20): b"\x14", (3, 30): b"\x0c", (3, 120): b"\x05", (8, 10): eps}
    iptc = b"".join(b"\x1c" + bytes(tag) + struct.pack(">H", len(data)) + data for tag, data in fields.items())
    with Image.open(io.BytesIO(iptc)) as image:
        assert image.format == "IPTC"
    with pytest.raises(BadImageError, match="<bytes>: IPTC is not read"):
        read_image(iptc)


# Damage

FILES = {
    "jpeg": encode(photo(), "JPEG"),
    "progressive jpeg": encode(photo(), "JPEG", progressive=True, exif=orientation_exif(6)),
    "png": encode(photo(), "PNG", exif=orientation_exif(3)),
    "gif": encode(photo(), "GIF"),
    "webp": encode(photo(), "WEBP"),
    "tiff": encode(photo(), "TIFF"),
    "tiff lzw": encode(photo(), "TIFF", compression="tiff_lzw"),
    "16-bit png": encode(photo()[..., 0].astype(np.uint16) * 257, "PNG"),
    "jpeg 2000": encode(photo(), "JPEG2000"),
    "bmp": encode(photo(), "BMP"),
}

# Pillow warns of damaged metadata beside whole pixels; a decoder may warn before it fails.
pillow_may_warn = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pillow_may_warn
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_and_never_padded(name: str) -> None:
    whole = read_image(FILES[name])
    refused = 0
    for length in range(0, len(FILES[name]), 7):
        try:
            pixels = read_image(FILES[name][:length])
        except BadImageError:
            refused += 1
        else:  # what was lost held no pixels
            np.testing.assert_array_equal(pixels, whole)
    assert refused >= 0.8 * len(FILES[name]) / 7


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "png", "gif", "tiff", "bmp"])
def test_the_message_says_truncated(name: str) -> None:
    end = FILES[name].index(b"IDAT") + 20 if name == "png" else len(FILES[name]) * 9 // 10
    with pytest.raises(BadImageError, match=r"<bytes>: .*truncated"):
        read_image(FILES[name][:end])


@pillow_may_warn
@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes_give_pixels_or_the_error(name: str) -> None:
    random = np.random.default_rng(len(name))
    read, reasons = 0, []
    for _ in range(300):
        damaged = np.frombuffer(FILES[name], np.uint8).copy()
        places = random.integers(0, len(damaged), random.integers(1, 9))
        damaged[places] = random.integers(0, 256, len(places))
        if random.random() < 0.3:
            damaged = damaged[: random.integers(0, len(damaged))]
        try:
            pixels = read_image(damaged.tobytes(), max_pixels=1_000_000)
        except BadImageError as error:
            reasons.append(str(error).removeprefix("<bytes>: "))
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.size
            read += 1
    assert read
    assert reasons
    assert all(reasons)


def test_an_error_without_words_is_named_by_its_type() -> None:
    image = Image.new("RGB", (1, 1))
    image.info["transparency"] = object()
    with pytest.raises(BadImageError, match="<Image>: TypeError"):
        read_image(image)


# Threads and handles


def test_threads_read_at_once(tmp_path: Path) -> None:
    paths = []
    for name, file in FILES.items():
        paths.append(tmp_path / f"{name}.bin")
        paths[-1].write_bytes(file)
    expected = [read_image(path) for path in paths]
    with ThreadPoolExecutor(8) as pool:
        for pixels, wanted in zip(pool.map(read_image, paths * 40), expected * 40, strict=True):
            np.testing.assert_array_equal(pixels, wanted)


def test_no_file_is_left_open(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(os.listdir("/dev/fd"))

    (tmp_path / "good.tiff").write_bytes(FILES["tiff lzw"])
    (tmp_path / "bad.tiff").write_bytes(FILES["tiff lzw"][:-30])
    (tmp_path / "text.png").write_text("not a picture")
    read_image(tmp_path / "good.tiff")
    kept = []
    before = open_files()
    for _ in range(5):
        kept.append(read_image(tmp_path / "good.tiff"))
        for name in ("bad.tiff", "text.png"):
            with pytest.raises(BadImageError):
                read_image(tmp_path / name)
    assert open_files() == before


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_limits_hold_for_a_picture_within_a_picture() -> None:
    assert read_image(ico(png((3, 2), 8, 2, bytes(2 * 10)))).shape == (2, 3, 3)
    with pytest.raises(BadImageError, match="a side of 70000 pixels, over the limit of 65535"):
        read_image(ico(png((1, 70_000), 1, 0, bytes(2 * 70_000))))
    with pytest.raises(BadImageError, match="30 x 20 is over the limit of 500 pixels"):
        read_image(ico(png((30, 20), 8, 2, bytes(20 * 91))), max_pixels=500)


def test_what_is_reserved_holds_the_file_and_the_turned_pixels() -> None:
    taken: list[int] = []
    jpeg = io.BytesIO()
    Image.new("RGB", (40, 20)).save(jpeg, "JPEG")
    read_image(jpeg.getvalue() + bytes(1_000_000), reserve=taken.append)
    assert taken == [len(jpeg.getvalue()) + 1_000_000 + 40 * 20 * 3]
    taken.clear()
    tiff = io.BytesIO()
    Image.new("RGB", (40, 20)).save(tiff, "TIFF", tiffinfo={ExifTags.Base.Orientation: 6})
    assert read_image(tiff.getvalue(), reserve=taken.append).shape == (40, 20, 3)
    assert taken == [40 * 20 * (4 + 2 * 3)]


@pytest.mark.parametrize("junk", [b"no picture", b"", b"RIFF....WAVE"])
def test_junk_is_junk_however_little_memory_there_is(junk: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_ROOM", 1 << 62)
    with pytest.raises(BadImageError):
        read_image(junk)
    with pytest.raises(BadImageError, match="No such file"):
        read_image("nowhere.jpg")
    with pytest.raises(MachineError, match="out of memory"):
        read_image(b"RIFF....WEBP")
