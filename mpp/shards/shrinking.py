"""A plain JPEG made smaller by torch, in half the time that Pillow takes; what C code complains of meanwhile.

``images_NCHW``, ``_CHW``: uint8 pixels, N images of C channels, H rows and W columns.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpp.shards.jpeg import Size

RGB = 3  # of torchvision's ImageReadMode
# What libjpeg warns of, only of the first thing; threads of this process may write other things meanwhile.
COMPLAINTS = (b"Corrupt JPEG data", b"Invalid SOS", b"Inconsistent progression", b"unknown JFIF")


def shrink(raw: bytes, size: Size, quality: int) -> bytes | None:
    """Return a plain JPEG resized to ``size``, (width, height), with an antialiasing Lanczos filter.

    The metadata are gone. None where torch has no such filter, or its decoder does not take the file or complains.
    """
    torch = _torch()
    if torch is None:
        return None
    try:
        with silent() as heard:  # libjpeg tells the terminal about damaged data
            pixels_CHW = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), RGB, False)
            said = heard()
        if any(complaint in said for complaint in COMPLAINTS):
            return None
        # the same pixels with strides that torch knows as channels-last: saves two copies
        pixels_NCHW = pixels_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        small_NCHW = torch.nn.functional.interpolate(pixels_NCHW, size[::-1], mode="lanczos", antialias=True)
        encoded: bytes = torch.ops.image.encode_jpeg(small_NCHW[0], quality).numpy().tobytes()
    except (RuntimeError, MemoryError, OSError):
        return None
    return encoded


def load_torch() -> bool:
    """Load what :func:`shrink` needs, once a process; say whether it is there. Takes seconds and 250 to 500 MB."""
    return _torch() is not None


@functools.cache
def _torch() -> Any:
    """Import torch with torchvision's JPEG codec; None where either is missing or lacks what is needed.

    The codec is one library file of torchvision. Importing the whole package would take another 160 MB and a
    second, for its models.
    """
    first = "torch" not in sys.modules
    try:
        import torch

        found = importlib.util.find_spec("torchvision")
        folder = Path(found.origin).parent if found and found.origin else Path()
        for library in sorted(folder.glob("image*.so")):
            torch.ops.load_library(library)
        usable = hasattr(torch.ops.image, "decode_jpeg") and hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
    except (ImportError, OSError):
        return None
    if first:
        torch.set_num_threads(1)  # the processes of a pool have a core each
    return torch if usable else None


@contextmanager
def silent() -> Iterator[Callable[[], bytes]]:
    """Keep from standard error what the C code of decoders writes there; what this yields returns the first of it."""
    saved = _standard_error()
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)  # when the pipe is full, the rest is lost
        os.dup2(writer, 2)
        yield lambda: _read_now(reader)
    finally:
        os.dup2(saved, 2)
        for descriptor in (saved, reader, writer):
            os.close(descriptor)


def _standard_error() -> int:
    """Return a duplicate of standard error, opened to nowhere where it was closed."""
    try:
        return os.dup(2)
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        return os.dup(nowhere)


def _read_now(pipe: int) -> bytes:
    try:
        return os.read(pipe, 2**16)
    except BlockingIOError:
        return b""
