"""How much memory an image takes until it is stored, and a bound on what a process may take.

The figures are of Pillow's decoders, measured at 16 to 50 million pixels and rounded up. They say from the header
alone, and so on every machine alike, what is too large; the bound of the process is for what they do not foresee.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from mpp.shards.jpeg import JpegHeader

BYTES_PER_PIXEL = 11  # allowed for each pixel of the largest image that is taken: 550 MB at 50 million
LEAST_ALLOWED = 550_000_000
COPIES = 3  # of a file's bytes at once: as read, without metadata, in its tar
STORED = 4  # bytes a pixel in Pillow, RGB too
WEBP = 17  # bytes a pixel, 8 of them from the moment the file is opened
SLACK = 2**27  # bytes of a process beside the image it works on


def memory_allowed(max_pixels: int) -> int:
    """Return the bytes that an image may take, its file included."""
    return max(LEAST_ALLOWED, BYTES_PER_PIXEL * max_pixels)


def memory_needed(file_bytes: int, opened: Image.Image) -> float:
    """Return the bytes that an opened image takes when it is decoded and converted to RGB, its file included."""
    return file_bytes + opened.size[0] * opened.size[1] * _bytes_per_pixel(opened)


def jpeg_memory_needed(file_bytes: int, header: JpegHeader) -> int:
    """Return what :func:`memory_needed` does, from a header read without Pillow."""
    return file_bytes + header.size[0] * header.size[1] * _jpeg_bytes_per_pixel(header.components, header.progressive)


def _jpeg_bytes_per_pixel(components: int, progressive: bool) -> int:
    if progressive:
        return STORED + 2 * components  # all coefficients are kept until the end
    return STORED if components == 3 else 2 * STORED


def _bytes_per_pixel(opened: Image.Image) -> float:
    bands = len(opened.getbands())
    converted = STORED if opened.mode == "RGB" else 2 * STORED
    if opened.format in ("JPEG", "MPO"):
        return _jpeg_bytes_per_pixel(bands, "progressive" in opened.info)
    if opened.format == "TIFF":  # it may be a single strip
        strip: float = sum(opened.tag_v2.get(258, (1,))) / 8  # type: ignore[attr-defined]  # BitsPerSample
        return max(STORED + strip, converted)
    return {"WEBP": WEBP, "AVIF": 17, "JPEG2000": 7 * bands}.get(str(opened.format), converted)


def webp_canvas(raw: bytes) -> tuple[int, int]:
    """Return the (width, height) that a WebP file declares, (0, 0) for anything else.

    Pillow takes the memory of a WebP when it opens the file, before anybody can ask it for the size.
    """
    if raw[:4] != b"RIFF" or raw[8:12] != b"WEBP" or len(raw) < 30:
        return 0, 0
    if raw[12:16] == b"VP8X":
        return 1 + int.from_bytes(raw[24:27], "little"), 1 + int.from_bytes(raw[27:30], "little")
    if raw[12:16] == b"VP8L":
        bits = int.from_bytes(raw[21:25], "little")
        return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
    return int.from_bytes(raw[26:28], "little") % 2**14, int.from_bytes(raw[28:30], "little") % 2**14


@contextmanager
def memory_errors(need: float) -> Iterator[None]:
    """Raise ``MemoryError`` also where a decoder that fails for want of ``need`` bytes calls it by another name."""
    try:
        yield
    except Exception:
        bytearray(int(need))
        raise


def limit_memory(spare: int) -> None:
    """Let this process take at most ``spare`` bytes more than it has; what wants more gets ``MemoryError``.

    Linux only; has no effect elsewhere. Loads Pillow's decoders first.
    """
    if sys.platform != "linux":
        return
    import resource

    Image.init()
    pages = int(Path("/proc/self/statm").read_text().split()[5])  # private and writable, what RLIMIT_DATA counts
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))
