"""Decoding of any picture that Pillow reads -> uint8 (H, W, 3) RGB.

Each kind of picture has one rule:

- Orientation (EXIF, or XMP where EXIF has none) is applied.
- Alpha is composited over white: round((a v + (255 - a) 255) / 255). This holds for alpha channels, palettes with
  transparency, and the one transparent colour of a PNG.
- CMYK, YCbCr, Lab, HSV, palettes, 1-bit and greyscale are converted as Pillow converts them.
- 16-bit greyscale becomes round(v / 257). So do wider integers, which must lie in 0..65535. Pillow gives 16-bit RGB,
  RGBA and greyscale with alpha as v >> 8, which is at most one level from that rule.
- Floats must lie in [0, 1] and become round(255 v), ties to even.
- ICC profiles are ignored: the values are used as they are.
- The first frame of an animation, or of a file of several pages, is read.
- Metadata of a PNG or a JPEG that Pillow stumbles over is passed over. A JPEG of grey or RGB may lack its end marker.
  What is cut off within its pixels is refused.

EPS files are refused, because Pillow passes them to Ghostscript, and reading a picture must not run a program. IPTC
files are refused too, because they may hold an EPS.

Pillow does not tell some kinds apart. Their pixels are used as Pillow gives them. A TIFF of 12 bits comes out dark. A
TIFF of 16 bits or of floats whose zero is white comes out as a negative. The transparent colour of a PNG with 2 or 4
bits of grey, or 16 bits of RGB, stays as it is.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from contextlib import suppress
from typing import IO, Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from glia_rt.contract import MAX_SIDE
from glia_rt.errors import BadImageError, MachineError, UsageError
from glia_rt.faults import is_machine_fault
from glia_rt.pixels.names import ImageSource, display_name, register_heif
from glia_rt.pixels.sound import with_end, without_metadata
from glia_rt.versions import installed_versions

#: 2 * PIL.Image.MAX_IMAGE_PIXELS. Pillow itself refuses a picture over this, and only warns from half of it.
DEFAULT_MAX_PIXELS: Final = 178_956_970

#: Largest encoded picture that is taken out of an archive, or given to simplejpeg. `DEFAULT_MAX_PIXELS` of RGB fit.
MAX_ENCODED_BYTES: Final = 1 << 29

_RUN_PROGRAMS = ("EPS", "IPTC")
_BYTES = (bytes, bytearray, memoryview)

# ImageOps.exif_transpose is not used: it rewrites the whole EXIF block, and fails if some other tag is malformed.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Return the RGB pixels of a picture, by the rules of this module.

    Several threads may call this at once. They must not share a PIL image, which is not safe between threads.

    Args:
        source: A path, the bytes of an encoded file, an open file, a PIL image, or an array. A file is read from its
            beginning, or from where it stands if it cannot go back. A PIL image is read at its current frame. An array
            is returned as it is.
        max_pixels: Greatest width times height. It is checked on the header, before anything is decoded, and so is
            `MAX_SIDE`. It does not apply to arrays, which are decoded already. Pillow has a limit of its own for the
            whole process: see `configure_pillow`.

    Returns:
        uint8 (H, W, 3), RGB, C-contiguous. Do not write to it: it may be read-only, or the caller's own array.

    Raises:
        BadImageError: The picture is missing, unreadable, not a regular file, not a picture, damaged, truncated, over
            `max_pixels`, without pixels, over `MAX_SIDE` on a side, or of values outside the rules. The message reads
            "NAME: reason".
        MachineError: The machine failed, for example because it has no memory left for the pixels.
        UsageError: `source` is none of these kinds.
    """
    if isinstance(source, io.TextIOBase):
        raise UsageError("a picture is in a file that was opened as text: open it with mode 'rb'")
    if not isinstance(source, (str, os.PathLike, *_BYTES, Image.Image, np.ndarray)) and not hasattr(source, "read"):
        raise UsageError(
            f"a picture is a path, bytes, an open file, a PIL image or an array, not {type(source).__name__}"
        )
    try:
        if isinstance(source, np.ndarray):
            return _checked_array(source)
        if isinstance(source, Image.Image):
            return _decode(source, max_pixels, None)
        # Pillow registers its formats on first use. A thread that looks one up meanwhile may not find it.
        Image.preinit()
        Image.init()
        register_heif()
        with _open_binary(source) as file:
            if not file.read(1):
                raise ValueError("empty file")
            try:
                return _decode_file(file, max_pixels)
            except Exception as error:
                if is_machine_fault(error) or (sound := _without_metadata(file)) is None:
                    raise
                try:
                    return _decode_file(io.BytesIO(sound), max_pixels)
                except Exception as still:  # noqa: BLE001 - as below
                    raise still if is_machine_fault(still) else error from None
    except Exception as error:  # a decoder that is fed hostile bytes may raise nearly anything
        if is_machine_fault(error):
            raise MachineError(_reason(error), display_name(source)) from error
        raise BadImageError(_reason(error), display_name(source)) from error


def decoder() -> str:
    """Return the packages that decode pictures, with their versions, for the records."""
    return f"simplejpeg {installed_versions('simplejpeg')['simplejpeg']}, Pillow {PIL.__version__}"


def configure_pillow(max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Set Pillow's own pixel limit, and silence its warnings.

    Pillow warns of pictures over half of that limit, and of oddities in a file. The limit and the warnings are global
    to the process. A program calls this once, before it starts threads. A library never calls it.

    Without this call `read_image` cannot read pictures over Pillow's limit, whatever its own `max_pixels`. For a
    picture within a picture (ICO, ICNS), Pillow's limit is the only one that is checked before decoding.
    """
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow stops over twice this
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _checked_array(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"an array must be uint8 (H, W, 3), not {pixels.dtype} {pixels.shape}")
    _require_size(pixels.shape[1], pixels.shape[0])
    return np.ascontiguousarray(pixels)


def _require_size(width: int, height: int, max_pixels: int | None = None) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"no pixels: {width} x {height}")
    if max_pixels is not None and width * height > max_pixels:
        raise ValueError(f"{width} x {height} is over the limit of {max_pixels} pixels (max_pixels)")
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"a side of {max(width, height)} pixels, over the limit of {MAX_SIDE}")


def _open_binary(source: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]) -> BinaryIO:
    if isinstance(source, _BYTES):
        return io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        if source.seekable():
            source.seek(0)
        return io.BytesIO(source.read())
    # The file is checked before it is opened: opening a FIFO waits for a writer, and opening a device may do anything.
    mode = os.stat(source).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError("is a directory")
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    return open(source, "rb")


def _without_metadata(file: BinaryIO) -> bytes | None:
    if file.seek(0, os.SEEK_END) > MAX_ENCODED_BYTES:
        return None
    file.seek(0)
    return without_metadata(file.read())


def _decode_file(file: BinaryIO, max_pixels: int) -> npt.NDArray[np.uint8]:
    with Image.open(file) as image:
        if image.format in _RUN_PROGRAMS:
            raise ValueError(f"{image.format} is not read: Pillow would run a program")
        return _decode(image, max_pixels, file)


def _decode(image: Image.Image, max_pixels: int, file: BinaryIO | None) -> npt.NDArray[np.uint8]:
    _require_size(*image.size, max_pixels)
    pixels = _decode_jpeg(image, file)
    if pixels is not None:
        turn = _turn(image)
        return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))
    # The mode, the size and the orientation are certain only after loading: an ICNS takes those of the picture within
    # it, and a TIFF turns itself.
    image.load()
    _require_size(*image.size, max_pixels)
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F":
        return _grey_to_rgb(_float_to_uint8(np.asarray(image)))
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(_int_to_uint8(np.asarray(image), image.info.get("transparency")))
    if image.mode == "La":
        image = image.convert("LA")  # Pillow converts this mode to no other
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return np.asarray(image)


def _decode_jpeg(image: Image.Image, file: BinaryIO | None) -> npt.NDArray[np.uint8] | None:
    """Return the pixels that Pillow would decode from a JPEG, in less time; None if Pillow must decode it.

    The orientation is not applied yet. simplejpeg and Pillow both contain libjpeg-turbo. This function asks it for what
    Pillow asks for: the slow, exact inverse transform and the smooth chroma upsampling.
    """
    if file is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    if file.seek(0, os.SEEK_END) > MAX_ENCODED_BYTES:  # Pillow reads no further than the picture
        return None
    file.seek(0)
    encoded = file.read()
    try:
        return _decode_whole_jpeg(encoded)
    except ValueError:  # the file is damaged, or merely unusual: Pillow finds out which
        with suppress(ValueError):
            if (ended := with_end(encoded)) is not None:
                return _decode_whole_jpeg(ended)
        return None


def _decode_whole_jpeg(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels of a JPEG; raises ValueError if any of them had to be made up."""
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
    return pixels


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - hostile bytes, as in `read_image`; a block that is not EXIF turns no picture
        return None


def _int_to_uint8(values: npt.NDArray[Any], transparent: int | None) -> npt.NDArray[np.uint8]:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integers must lie in 0..65535, not {values.min()}..{values.max()}")
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if transparent is not None:
        grey[values == transparent] = 255
    return grey


def _float_to_uint8(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    if not ((values >= 0) & (values <= 1)).all():  # false for NaN too
        raise ValueError(f"floats must lie in [0, 1], not [{values.min()}, {values.max()}]")
    return np.rint(np.multiply(values, 255, dtype=np.float64)).astype(np.uint8)


def _grey_to_rgb(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture Pillow can read"
    if isinstance(error, Image.DecompressionBombError):
        return f"{error} (max_pixels and configure_pillow raise the limit)"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Messages of these two types are written for people, by Pillow too. A KeyError says nothing without its type.
    return str(error) if isinstance(error, (ValueError, SyntaxError)) else repr(error)
