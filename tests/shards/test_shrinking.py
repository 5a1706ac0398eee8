"""Shrinking gives Pillow's picture, and what is damaged is left to Pillow without a word."""

import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpp.shards.shrinking import load_torch, shrink, silent

PICTURE = Image.radial_gradient("L").resize((90, 70))
COLORS = Image.merge("RGB", (PICTURE, PICTURE.rotate(90), PICTURE.rotate(180)))


def jpeg(image: Image.Image = COLORS, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, "JPEG", **options)
    return target.getvalue()


def pixels(raw: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(raw)))


JPEG = jpeg()
SCAN = JPEG.index(b"\xff\xda")


def plain_pillow(raw: bytes, size: tuple[int, int], quality: int) -> np.ndarray[Any, Any]:
    small = Image.open(io.BytesIO(raw)).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return pixels(jpeg(small, quality=quality)).astype(int)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(31, 40), (30, 30), (45, 35), (89, 69)]), st.sampled_from([75, 95]))
def test_shrinking_gives_pillows_picture(seed: int, size: tuple[int, int], quality: int) -> None:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8))
    raw = jpeg(Image.blend(COLORS, noise.resize(COLORS.size, Image.Resampling.BICUBIC), 0.5), quality=92)
    small = shrink(raw, size, quality)
    assert small is not None and Image.open(io.BytesIO(small)).size == size
    assert np.abs(pixels(small) - plain_pillow(raw, size, quality)).mean() < 1


def test_photographs_shrink_to_pillows_picture(data: Path) -> None:
    differences = []
    for file in sorted((data / "imagenette").rglob("*.JPEG"))[::100]:
        raw = file.read_bytes()
        small = shrink(raw, (160, 160), 90)
        assert small is not None
        differences.append(np.abs(pixels(small) - plain_pillow(raw, (160, 160), 90)).mean())
    assert len(differences) > 10 and max(differences) < 0.6 and float(np.mean(differences)) < 0.3


def test_the_number_of_threads_changes_nothing() -> None:
    import torch

    raw, before = jpeg(COLORS.resize((900, 700)), quality=92), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(shrink(raw, (450, 350), 90))
    finally:
        torch.set_num_threads(before)
    assert results[0] is not None and len(set(results)) == 1


def test_damaged_data_are_left_to_pillow_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert shrink(JPEG[:-30], (9, 7), 90) is None
    assert shrink(b"\xff\xd8\xff\xd9", (9, 7), 90) is None
    assert shrink(JPEG[: (SCAN + len(JPEG)) // 2] + b"\xff\xd9", (9, 7), 90) is None
    odd_scan = JPEG[: SCAN + 11] + b"\0\0" + JPEG[SCAN + 13 :]  # of this libjpeg warns, then of nothing else
    assert shrink(odd_scan, (9, 7), 90) is None
    assert capfd.readouterr() == ("", "")


def test_what_is_written_to_standard_error_is_heard_and_never_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with silent() as heard:
        assert heard() == b""
        os.write(2, b"damaged")
        assert heard() == b"damaged"
        with suppress(BlockingIOError):
            for _ in range(1000):
                os.write(2, bytes(2**12))
    os.write(2, b"normal again")
    assert capfd.readouterr().err == "normal again"


def test_without_a_standard_error_damage_is_still_noticed() -> None:
    code = (
        "import os, sys\n"
        "from mpp.shards.shrinking import shrink\n"
        "raw = sys.stdin.buffer.read()\n"
        "os.close(2)\n"
        "print(shrink(raw, (9, 7), 90) is not None, shrink(raw[:-100] + raw[-2:], (9, 7), 90) is not None)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, input=JPEG, stdout=subprocess.PIPE)
    assert done.stdout.split() == [b"True", b"False"]


def test_torch_comes_only_when_asked_for_and_without_torchvisions_models() -> None:
    code = (
        "import sys, mpp.shards.shrinking as shrinking, mpp.shards.images\n"
        "assert 'torch' not in sys.modules\n"
        "assert shrinking.load_torch() and 'torchvision' not in sys.modules\n"
        "import torch\n"
        "assert torch.get_num_threads() == 1\n"
        "import torchvision.io\n"  # registering the same operators again does no harm
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert load_torch()
