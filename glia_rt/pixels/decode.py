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
- What is cut off within its pixels is refused. One kind is not found out: a JPEG of RGB or grey whose rest was filled
  with zeros and closed by an end marker may pass for a whole one.

EPS files are refused, because Pillow passes them to Ghostscript, and reading a picture must not run a program. IPTC
files are refused too, because they may hold an EPS.

Pillow does not tell some kinds apart. Their pixels are used as Pillow gives them. A TIFF of 12 bits comes out dark. A
TIFF of 16 bits or of floats whose zero is white comes out as a negative. The transparent colour of a PNG with 2 or 4
bits of grey, or 16 bits of RGB, stays as it is.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import IO, Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
import PIL
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from glia_rt.budget import NoRoomError, Reserve
from glia_rt.contract import MAX_SIDE
from glia_rt.errors import BadImageError, MachineError, UsageError
from glia_rt.faults import is_machine_fault
from glia_rt.pixels.names import ImageSource, display_name, register_heif
from glia_rt.pixels.sound import require_sound_pixels, with_end, without_metadata
from glia_rt.versions import installed_versions

#: 2 * PIL.Image.MAX_IMAGE_PIXELS. Pillow itself refuses a picture over this, and only warns from half of it.
DEFAULT_MAX_PIXELS: Final = 178_956_970

#: Largest encoded picture that is taken out of an archive, or given to simplejpeg. `DEFAULT_MAX_PIXELS` of RGB fit.
MAX_ENCODED_BYTES: Final = 1 << 29

_RUN_PROGRAMS = ("EPS", "IPTC")
_BYTES = (bytes, bytearray, memoryview)

# ImageOps.exif_transpose is not used: it rewrites the whole EXIF block, and fails if some other tag is malformed.
_TURNS: Final[Mapping[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]]] = {
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: partial(np.swapaxes, axis1=0, axis2=1),
    6: partial(np.rot90, k=3),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}

#: Bytes a pixel that decoders of some formats hold beside Pillow's picture.
_DECODERS: Final = {"AVIF": 5, "HEIF": 8, "JPEG2000": 16, "WEBP": 12}
#: glibc gives blocks of memory back to the system at once if they are larger than 32 MB.
_BLOCK_BYTES: Final = 1 << 26
#: With less room than so many bytes, nothing is said against a picture of a format whose decoder calls a lack of memory
#: damage, some of them even before the header tells the size.
_ROOM: Final = 1 << 28
#: How files of such formats begin: WebP, AVIF and HEIC, JPEG 2000 in its two forms.
_MISLEADING: Final = re.compile(rb"RIFF....WEBP|....ftyp|....jP  |\xff\x4f\xff\x51", re.DOTALL)
#: Pixels that Pillow converts at a time, so that what it makes on the way stays small.
_STRIP_PIXELS: Final = 1 << 20


def read_image(
    source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS, reserve: Reserve = lambda size: None
) -> npt.NDArray[np.uint8]:
    """Return the RGB pixels of a picture, by the rules of this module.

    Several threads may call this at once. They must not share a PIL image, which is not safe between threads.

    Args:
        source: A path, the bytes of an encoded file, an open file, a PIL image, or an array. A file is read from its
            beginning, or from where it stands if it cannot go back. A PIL image is read at its current frame. An array
            is returned as it is.
        max_pixels: Greatest width times height. It is checked on the header, before anything is decoded, and so is
            `MAX_SIDE`. It does not apply to arrays, which are decoded already. Pillow has a limit of its own for the
            whole process: see `configure_pillow`.
        reserve: Called with the bytes that decoding takes at most, once the header is read and before anything is
            decoded; it may wait. Not called for an array.

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
    taken = beside = 0
    head = b""

    def reserve_and_note(size: int) -> None:
        nonlocal taken
        taken = 0
        reserve(size + beside)
        taken = size + beside

    try:
        if isinstance(source, np.ndarray):
            return _checked_array(source)
        if isinstance(source, Image.Image):
            return _decode(source, max_pixels, None, reserve_and_note)
        # Pillow registers its formats on first use. A thread that looks one up meanwhile may not find it.
        Image.preinit()
        Image.init()
        register_heif()
        with _open_binary(source) as file:
            if not (head := file.read(12)):
                raise ValueError("empty file")
            try:
                return _decode_file(file, max_pixels, reserve_and_note)
            except Exception as error:
                if is_machine_fault(error) or (sound := _without_metadata(file, reserve)) is None:
                    raise
                beside = len(sound)
                try:
                    return _decode_file(io.BytesIO(sound), max_pixels, reserve_and_note)
                except Exception as still:  # noqa: BLE001 - as below
                    raise still if is_machine_fault(still) else error from None
    except Exception as error:  # a decoder that is fed hostile bytes may raise nearly anything
        if is_machine_fault(error):
            raise MachineError(_reason(error), display_name(source)) from error
        # Some decoders call a lack of memory a damaged picture.
        if not _has_room(max(taken, _ROOM) if _MISLEADING.match(head) else taken):
            raise MachineError("out of memory", display_name(source)) from error
        raise BadImageError(_reason(error), display_name(source)) from error


def _has_room(size: int) -> bool:
    """Return whether there is room for so many bytes."""
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


def decoder() -> str:
    """Return the packages that decode pictures, with their versions, for the records."""
    return f"simplejpeg {installed_versions('simplejpeg')['simplejpeg']}, Pillow {PIL.__version__}"


def configure_pillow(max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Set Pillow's own pixel limit and the size of its blocks of memory, and silence its warnings.

    Pillow warns of pictures over half of that limit, and of oddities in a file. It keeps a picture in blocks of 16 MB,
    which the C library keeps for each thread when they are free. All this is global to the process. A program calls
    this once, before it starts threads. A library never calls it.

    Without this call `read_image` cannot read pictures over Pillow's limit, whatever its own `max_pixels`. For a
    picture within a picture (ICO, ICNS), Pillow's limit is the only one that is checked before decoding.
    """
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow stops over twice this
    Image.core.set_block_size(_BLOCK_BYTES)  # type: ignore[attr-defined]
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
        with suppress(AttributeError, OSError):  # a pipe, or what has no more than `read`
            source.seek(0)
        return io.BytesIO(source.read())
    # The file is checked before it is opened: opening a FIFO waits for a writer, and opening a device may do anything.
    mode = os.stat(source).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError("is a directory")
    if not stat.S_ISREG(mode):
        raise ValueError("not a regular file")
    return open(source, "rb")


def _without_metadata(file: BinaryIO, reserve: Reserve) -> bytes | None:
    size = file.seek(0, os.SEEK_END)
    if size > MAX_ENCODED_BYTES:
        return None
    reserve(2 * size)
    file.seek(0)
    return without_metadata(file.read())


def _decode_file(file: BinaryIO, max_pixels: int, reserve: Reserve) -> npt.NDArray[np.uint8]:
    with Image.open(file) as image:
        if image.format in _RUN_PROGRAMS:
            raise ValueError(f"{image.format} is not read: Pillow would run a program")
        return _decode(image, max_pixels, file, reserve)


def _decode(image: Image.Image, max_pixels: int, file: BinaryIO | None, reserve: Reserve) -> npt.NDArray[np.uint8]:
    _require_size(*image.size, max_pixels)
    # simplejpeg is given the whole file, and Pillow a part at a time.
    encoded = file.seek(0, os.SEEK_END) if file is not None and _is_jpeg(image) else 0
    reserve(image.width * image.height * _bytes_per_pixel(image) + min(encoded, MAX_ENCODED_BYTES))
    pixels = _decode_jpeg(image, file)
    if pixels is None:
        # The mode, the size and the orientation are certain only after loading: an ICNS takes those of the picture
        # within it, and a TIFF turns itself.
        image.load()
        if image.format == "PNG" and file is not None:
            require_sound_pixels(file)
        _require_size(*image.size, max_pixels)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        rows = max(1, _STRIP_PIXELS // image.width)
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom] = _to_rgb(image.crop((0, top, image.width, bottom)))
    turn = _TURNS.get(_orientation(image))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _bytes_per_pixel(image: Image.Image) -> int:
    """Return the bytes a pixel that decoding takes at most: the decoder's, Pillow's picture, and the result."""
    result = 3
    decoder = _DECODERS.get(image.format or "", 0)
    if _is_jpeg(image) and image.info.get("progressive"):
        decoder = 6  # coefficients of 16 bits
    if not _is_fast_jpeg(image):
        decoder += 1 if image.mode in ("1", "L", "P") else 4
    # Asking a PNG for an orientation that its header has not would decode it. A TIFF has it in its header.
    is_turned = ("exif" in image.info or image.format == "TIFF") and _orientation(image) in _TURNS
    return decoder + result * (2 if is_turned else 1)


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def _is_fast_jpeg(image: Image.Image) -> bool:
    """Return whether simplejpeg decodes this kind of picture as Pillow does."""
    return _is_jpeg(image) and image.mode in ("RGB", "L")


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
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

    It decodes a JPEG of CMYK to other pixels, but finds out whether that is cut off, of which Pillow says nothing.

    Raises:
        ValueError: The picture is cut off within its pixels.
    """
    if file is None or not _is_jpeg(image):
        return None
    if file.seek(0, os.SEEK_END) > MAX_ENCODED_BYTES:  # Pillow reads no further than the picture
        return None
    file.seek(0)
    encoded = file.read()
    try:
        if not _is_fast_jpeg(image):
            simplejpeg.decode_jpeg(encoded, "GRAY")
            return None
        return _decode_whole_jpeg(encoded)
    except ValueError as error:  # the file is damaged, or merely unusual: Pillow finds out which
        with suppress(ValueError):
            if _is_fast_jpeg(image) and (ended := with_end(encoded)) is not None:
                return _decode_whole_jpeg(ended)
        if "premature end" in str(error).lower():  # Pillow says nothing of it if other bytes follow
            raise ValueError(f"truncated ({error})") from error
        return None


def _decode_whole_jpeg(encoded: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels of a JPEG; raises ValueError if any of them had to be made up."""
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - hostile bytes, as in `read_image`; a block that is not EXIF turns no picture
        return 1


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
        return str(error) if isinstance(error, NoRoomError) else "out of memory"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Messages of these two types are written for people, by Pillow too. A KeyError says nothing without its type.
    return str(error) if isinstance(error, (ValueError, SyntaxError)) else repr(error)
