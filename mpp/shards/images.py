"""One image: header check, decode, convert, encode again, or a reason to refuse it.

What is stored is always RGB without alpha, upright, in one format for the whole set. JPEGs that are so already
pass byte for byte. Plain JPEGs take a fast road, everything else goes through Pillow; both give the same verdict.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from mpp.errors import ConfigError
from mpp.shards.colors import Unsupported, to_rgb
from mpp.shards.jpeg import (
    MAX_SCANS,
    JpegHeader,
    Size,
    count_scans,
    read_header,
    strip_metadata,
    without_end,
)
from mpp.shards.memory import (
    COPIES,
    SLACK,
    WEBP,
    jpeg_memory_needed,
    limit_memory,
    memory_allowed,
    memory_errors,
    memory_needed,
    webp_canvas,
)
from mpp.shards.shrinking import load_torch, shrink, silent
from mpp.sources.files import has_signature

# A closed list: some of Pillow's other decoders run programs (EPS), or cannot tell their format from noise (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROGRAMS = ("EPS",)  # Pillow hands these to another program
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # the pages of a TIFF and the views of an MPO are no animation
COMPLAINTS = logging.getLogger("PIL.TiffImagePlugin")  # it alone logs errors beside raising them
JPEG_SIDE = 65_500  # pixels; libjpeg writes no longer ones


@dataclass(frozen=True)
class ImagePolicy:
    """What is taken and how it is stored. Sides in pixels, ``background`` as red, green, blue of 0 to 255.

    ``check`` is what a JPEG must pass to be stored as it is: ``decode`` reads all of its data, ``header`` its
    segments only. ``formats`` are names of Pillow's, allowed beside ``FORMATS``. Raises ``ConfigError`` for a
    background or formats that cannot be.
    """

    format: str = "jpg"
    resize: int | None = None
    quality: int = 95
    check: Literal["decode", "header"] = "decode"
    max_pixels: int = 50_000_000
    min_side: int = 1
    max_aspect: float = 1000.0
    background: tuple[int, int, int] = (255, 255, 255)
    animated: Literal["first", "refuse"] = "first"
    formats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= value <= 255 for value in self.background):
            raise ConfigError(
                f"background: {list(self.background)}, allowed: 0 to 255 each", fix="background=[R, G, B]"
            )
        if self.formats:
            Image.init()
        unknown = [name for name in self.formats if name not in Image.OPEN or name in PROGRAMS]
        if unknown:
            known = ", ".join(sorted(set(Image.OPEN) - {*FORMATS, *PROGRAMS}))
            raise ConfigError(f"formats: {unknown[0]!r} cannot be allowed", fix=f"choose among {known}")

    @property
    def max_bytes(self) -> int:
        """Return the size of the largest file that is looked at, bytes."""
        return memory_allowed(self.max_pixels) // COPIES


@dataclass(frozen=True)
class Accepted:
    """An image to store. Sizes are (width, height); ``notes`` names each conversion, for the counts.

    ``source_format`` and ``source_mode`` are Pillow's names of what the source was: JPEG, RGB.
    """

    image: bytes
    size: Size
    original_size: Size
    notes: tuple[str, ...]
    source_format: str
    source_mode: str


@dataclass(frozen=True)
class Refused:
    """Why an image is not stored: a reason code and what was seen."""

    reason: str
    detail: str


class _Refusal(Exception):
    """Carries a reason and a detail from the checks to :func:`accept`."""


def accept(raw: bytes, policy: ImagePolicy) -> Accepted | Refused:
    """Turn the bytes of one source image into the bytes to store, or say why not; never raises for bad bytes."""
    refused = refused_by_bytes(len(raw), policy)
    if refused is not None:
        return refused
    try:
        header = read_header(raw)
        if header is not None and not header.whole:
            raise _Refusal("truncated", "the last scans are missing")
        quick = fast_road(raw, header, policy)
        if quick is not None:
            return quick
        with _quiet(policy.max_pixels):
            return pillow_road(raw, header, policy)
    except _Refusal as refusal:
        return Refused(*refusal.args)
    except Unsupported as error:
        return Refused("unsupported", str(error))
    except MemoryError:
        return Refused("too_large", "not enough memory to decode")
    except Image.DecompressionBombError as error:
        return Refused("too_large", str(error))
    except Exception as error:  # decoders raise whatever their parsing trips over: see the policy table
        detail = f"{type(error).__name__}: {error}"
        return Refused("truncated" if "truncated" in detail.lower() else "corrupt", detail[:200])


def refused_by_bytes(size: int, policy: ImagePolicy) -> Refused | None:
    """Refuse a file of ``size`` bytes that need not be read for it; None for others and where -1 says "unknown"."""
    if size == 0:
        return Refused("empty", "0 bytes")
    if size > policy.max_bytes:
        return Refused("too_large", f"{size} bytes, at most {policy.max_bytes}")
    return None


def prepare_worker(policy: ImagePolicy) -> None:
    """Make a process ready to do nothing but accept images: load what it needs, then bound its memory."""
    if policy.resize is not None and policy.format == "jpg":
        load_torch()
    limit_memory(memory_allowed(policy.max_pixels) + SLACK)


def fast_road(raw: bytes, header: JpegHeader | None, policy: ImagePolicy) -> Accepted | None:
    """Store a plain upright JPEG as it is, or resized by torch; None for what only Pillow can judge."""
    if header is None or not header.plain or header.orientation != 1 or policy.format != "jpg":
        return None
    _check_size(header.size, policy)
    _check_memory(jpeg_memory_needed(len(raw), header), policy)
    mode = "RGB" if header.components == 3 else "L"
    size = _stored_size(header.size, policy)
    if size != header.size:
        stored = shrink(raw, size, policy.quality)
        notes = ("resized", "encoded_jpg") if mode == "RGB" else ("mode_L", "resized", "encoded_jpg")
        return None if stored is None else Accepted(stored, size, header.size, notes, "JPEG", mode)
    if mode == "L":
        return None
    if policy.check == "decode":
        with _quiet(policy.max_pixels):
            _read_all(raw, header, policy)
    return _passed(raw, header)


def _read_all(raw: bytes, header: JpegHeader, policy: ImagePolicy) -> None:
    """Decode a JPEG at an eighth of its size, in gray: all data are read and checked, but few pixels computed."""
    opened = _open(without_end(raw, header), policy)
    opened.draft("L", (1, 1))
    opened.load()


def pillow_road(raw: bytes, header: JpegHeader | None, policy: ImagePolicy) -> Accepted:
    """Check, decode and convert any image; raises whatever Pillow does."""
    canvas = webp_canvas(raw)
    declared = canvas if header is None else header.size
    if min(declared):
        _check_size(declared, policy)
    with memory_errors(WEBP * canvas[0] * canvas[1]):
        opened = _open(raw, policy)
    format, original, notes = str(opened.format), opened.size, _frames(opened, policy)
    _check_size(original, policy)
    need = memory_needed(len(raw), opened)
    _check_memory(need, policy)
    if format in ("JPEG", "MPO"):
        if count_scans(raw) > MAX_SCANS:
            raise _Refusal("too_large", f"more than {MAX_SCANS} scans")
        if header is not None:
            opened = _open(without_end(raw, header), policy)
    elif format == "PNG":
        opened.verify()  # checks every CRC, which decoding does not
        opened = _open(raw, policy)
    with memory_errors(need), silent() if format == "TIFF" else nullcontext():  # libtiff prints what it trips over
        opened.load()
    mode, orientation = opened.mode, _orientation(opened)
    image, conversions = to_rgb(opened, policy.background)
    del opened  # decoders keep buffers
    notes += conversions
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        notes.append("upright")
    size = _stored_size(image.size, policy)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
        notes.append("resized")
    if policy.format == "jpg" and format == "JPEG" and header is not None and header.huffman and not notes:
        return _passed(raw, header)
    notes.append(f"encoded_{policy.format}")
    return Accepted(_encode(image, policy), image.size, original, tuple(notes), format, mode)


def _passed(raw: bytes, header: JpegHeader) -> Accepted:
    """Return a JPEG as it is, but for its metadata."""
    notes = ("stripped",) if header.metadata else ()
    return Accepted(strip_metadata(raw, header), header.size, header.size, notes, "JPEG", "RGB")


@contextmanager
def _quiet(max_pixels: int) -> Iterator[None]:
    """Silence Pillow's warnings and errors and let its own bomb check follow ``max_pixels``; both are put back."""
    before = Image.MAX_IMAGE_PIXELS, COMPLAINTS.disabled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS, COMPLAINTS.disabled = max_pixels, True
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, COMPLAINTS.disabled = before


def _open(raw: bytes, policy: ImagePolicy) -> Image.Image:
    try:
        return Image.open(io.BytesIO(raw), formats=(*FORMATS, *policy.formats))
    except UnidentifiedImageError:
        if has_signature(raw):
            raise _Refusal("corrupt", f"header cannot be read, starts with {raw[:16]!r}") from None
        raise _Refusal("not_image", f"starts with {raw[:16]!r}") from None


def _frames(opened: Image.Image, policy: ImagePolicy) -> list[str]:
    """Note that only the first of several pictures is taken; refuse animations where the policy says so."""
    several = opened.format == "MPO" or bool(getattr(opened, "is_animated", False))
    if several and opened.format in ANIMATED and policy.animated == "refuse":
        raise _Refusal("animated", f"{opened.format} of several frames, allowed: one")
    return ["first_frame"] if several else []


def _check_size(size: Size, policy: ImagePolicy) -> None:
    """Refuse by the size in the header, before any pixel is decoded."""
    width, height = size
    if width * height > policy.max_pixels:
        raise _Refusal("too_large", f"{width}x{height}, at most {policy.max_pixels} pixels")
    if min(size) < policy.min_side:
        raise _Refusal("too_small", f"{width}x{height}, shorter side at least {policy.min_side}")
    if max(size) > policy.max_aspect * min(size):
        raise _Refusal("aspect", f"{width}x{height}, at most {policy.max_aspect:g} to 1")
    if policy.format == "jpg" and max(_stored_size(size, policy)) > JPEG_SIDE:
        raise _Refusal("too_large", f"{width}x{height}, longer side of a JPEG at most {JPEG_SIDE}")


def _check_memory(need: float, policy: ImagePolicy) -> None:
    """Refuse what takes too much memory to decode and convert, before it does."""
    most = memory_allowed(policy.max_pixels)
    if need > most:
        raise _Refusal("too_large", f"takes {need / 1e6:.0f} MB of memory, at most {most / 1e6:.0f}")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or EXIF cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF raises as many kinds as broken images do; the pixels are good
        return 1


def _stored_size(size: Size, policy: ImagePolicy) -> Size:
    """Return the (width, height) that an image gets; only the shorter side of larger ones is made ``resize``."""
    if policy.resize is None or min(size) <= policy.resize:
        return size
    width, height = size
    scale = policy.resize / min(size)
    return max(policy.resize, round(width * scale)), max(policy.resize, round(height * scale))


def _encode(image: Image.Image, policy: ImagePolicy) -> bytes:
    image.info = {}  # Pillow would write comments, profiles and EXIF from here
    target = io.BytesIO()
    if policy.format == "jpg":
        image.save(target, "JPEG", quality=policy.quality)
    else:
        image.save(target, "PNG")
    return target.getvalue()
