"""One image: header check, decode, convert, encode again, or a reason to refuse it.

What is stored is always RGB without alpha, upright, in one format for the whole set. JPEGs that are so already
pass byte for byte, after a full decode.
"""

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# A closed list: some of Pillow's other decoders run programs (EPS), or cannot tell their format from noise (TGA).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
# File name extensions of images, also of kinds that are then refused.
IMAGE_NAMES = {
    "apng", "avif", "blp", "bmp", "cur", "dcx", "dds", "dib", "emf", "eps", "exr", "fit", "fits", "flc", "fli",
    "ftc", "ftu", "gbr", "gif", "heic", "heif", "icb", "icns", "ico", "im", "j2c", "j2k", "jfif", "jp2", "jpc",
    "jpe", "jpeg", "jpf", "jpg", "jpx", "mpo", "msp", "pbm", "pcd", "pcx", "pfm", "pgm", "png", "pnm", "ppm", "ps",
    "psd", "pxr", "qoi", "ras", "rgb", "rgba", "sgi", "svg", "tga", "tif", "tiff", "vda", "vst", "wal", "webp",
    "wmf", "xbm", "xpm",
}  # fmt: skip
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
)
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Size = tuple[int, int]


@dataclass(frozen=True)
class ImagePolicy:
    """What is taken and how it is stored. Sides in pixels; ``format`` is ``jpg`` or ``png``."""

    format: str = "jpg"
    resize: int | None = None
    quality: int = 95
    max_pixels: int = 50_000_000
    min_side: int = 1
    max_aspect: float = 1000.0


@dataclass(frozen=True)
class Accepted:
    """An image to store. Sizes are (width, height); ``notes`` names each conversion, for the counts."""

    image: bytes
    size: Size
    original_size: Size
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Refused:
    """Why an image is not stored: a reason code and what was seen."""

    reason: str
    detail: str


class _Refusal(Exception):
    """Carries a reason and a detail from the checks to :func:`accept`."""


def accept(raw: bytes, policy: ImagePolicy) -> Accepted | Refused:
    """Turn the bytes of one source image into the bytes to store, or say why not; never raises for bad bytes."""
    if not raw:
        return Refused("empty", "0 bytes")
    try:
        with _quiet(policy.max_pixels):
            return _accept(raw, policy)
    except _Refusal as refusal:
        return Refused(*refusal.args)
    except MemoryError:
        return Refused("too_large", "not enough memory to decode")
    except Image.DecompressionBombError as error:
        return Refused("too_large", str(error))
    except Exception as error:  # decoders raise whatever their parsing trips over: see the policy table
        detail = f"{type(error).__name__}: {error}"
        return Refused("truncated" if "truncated" in detail.lower() else "corrupt", detail[:200])


def _accept(raw: bytes, policy: ImagePolicy) -> Accepted:
    opened = _open(raw)
    _check_size(opened.size, policy)
    if opened.format == "PNG":
        opened.verify()  # checks every CRC, which decoding does not
        opened = _open(raw)
    original = opened.size
    notes = ["first_frame"] if opened.format == "MPO" or getattr(opened, "is_animated", False) else []
    opened.load()
    orientation = _orientation(opened)
    image, conversions = _to_rgb(opened)
    notes += conversions
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
        notes.append("upright")
    if policy.resize is not None and min(image.size) > policy.resize:
        image = image.resize(_shorter_side(image.size, policy.resize), Image.Resampling.LANCZOS)
        notes.append("resized")
    if policy.format == "jpg" and opened.format == "JPEG" and not notes:
        stored = strip_metadata(raw)
        return Accepted(stored, image.size, original, () if len(stored) == len(raw) else ("stripped",))
    notes.append(f"encoded_{policy.format}")
    return Accepted(_encode(image, policy), image.size, original, tuple(notes))


@contextmanager
def _quiet(max_pixels: int) -> Iterator[None]:
    """Silence Pillow's warnings and let its own bomb check follow ``max_pixels``; both are put back."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _open(raw: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        if has_signature(raw):
            raise _Refusal("corrupt", f"header cannot be read, starts with {raw[:16]!r}") from None
        raise _Refusal("not_image", f"starts with {raw[:16]!r}") from None


def has_signature(head: bytes) -> bool:
    """Say whether bytes start as a file of one of ``FORMATS`` does; 16 bytes are enough."""
    boxed = (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or head[4:12] in (b"ftypavif", b"ftypavis")
    return boxed or head.startswith(SIGNATURES)


def _check_size(size: Size, policy: ImagePolicy) -> None:
    """Refuse by the size in the header, before any pixel is decoded."""
    width, height = size
    if width * height > policy.max_pixels:
        raise _Refusal("too_large", f"{width}x{height}, at most {policy.max_pixels} pixels")
    if min(size) < policy.min_side:
        raise _Refusal("too_small", f"{width}x{height}, shorter side at least {policy.min_side}")
    if max(size) > policy.max_aspect * min(size):
        raise _Refusal("aspect", f"{width}x{height}, at most {policy.max_aspect:g} to 1")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or EXIF cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF raises as many kinds as broken images do; the pixels are good
        return 1


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return an RGB image and the name of the conversion, if one was needed."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, []
    if mode.startswith("I"):
        return _scaled_gray(image), [f"mode_{mode}"]
    if mode in ("F", "LAB"):
        raise _Refusal("unsupported", f"mode {mode} has no agreed way to RGB")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB"), [f"alpha_{mode}"]
    return image.convert("RGB"), [f"mode_{mode}"]


def _scaled_gray(image: Image.Image) -> Image.Image:
    """Scale deep gray to 8 bits by the declared depth; Pillow's own conversion clips it to white."""
    bits = 16
    if image.format == "TIFF":
        declared: Any = image.tag_v2.get(258, (16,))  # type: ignore[attr-defined]  # BitsPerSample
        bits = int(declared[0])
        if image.tag_v2.get(339, (1,))[0] == 2:  # type: ignore[attr-defined]  # SampleFormat: signed
            bits -= 1
    pixels = np.asarray(image).astype(np.float32)
    scaled = np.clip(pixels * (255.0 / (2.0**bits - 1.0)) + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def _shorter_side(size: Size, side: int) -> Size:
    width, height = size
    scale = side / min(size)
    return max(side, round(width * scale)), max(side, round(height * scale))


def _encode(image: Image.Image, policy: ImagePolicy) -> bytes:
    clean = Image.frombytes("RGB", image.size, image.tobytes())  # leaves every kind of metadata behind
    target = io.BytesIO()
    if policy.format == "jpg":
        clean.save(target, "JPEG", quality=policy.quality)
    else:
        clean.save(target, "PNG")
    return target.getvalue()


def strip_metadata(jpeg: bytes) -> bytes:
    """Return a JPEG without its APPn segments (EXIF, ICC, XMP), pixels untouched.

    APP0 (JFIF) and APP14 (Adobe, which declares the colour transform) stay. Raises ``ValueError`` where the
    segments before the image data are malformed.
    """
    kept, position = [jpeg[:2]], 2
    while jpeg[position + 1 : position + 2] != b"\xda":  # start of scan: entropy-coded data follow
        if position + 4 > len(jpeg) or jpeg[position] != 0xFF:
            raise ValueError(f"malformed JPEG segment at byte {position}")
        if jpeg[position + 1] == 0xFF:  # fill byte
            position += 1
            continue
        end = position + 2 + int(struct.unpack_from(">H", jpeg, position + 2)[0])
        if jpeg[position + 1] not in range(0xE1, 0xF0) or jpeg[position + 1] == 0xEE:
            kept.append(jpeg[position:end])
        position = end
    return b"".join([*kept, jpeg[position:]])
