"""The largest images fit into 600 MB, what would not is refused from its header, and processes stay in bounds."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpp.shards import memory
from mpp.shards.images import Accepted, ImagePolicy, Refused, accept
from mpp.shards.jpeg import read_header
from mpp.shards.memory import jpeg_memory_needed, memory_allowed, memory_needed, webp_canvas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit and the measure are Linux's")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


def in_a_process(code: str, *arguments: str) -> Any:
    """Run code that sets ``result``; return that and the most memory the process had, bytes."""
    start = "import json, sys, time\nfrom pathlib import Path\nfrom mpp.shards.images import *\n"
    peak = "next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", f"{start}{code}\nprint(json.dumps([result, 1024 * int({peak})]))", *arguments]
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def plain_png(kind: int, depth: int, samples: int) -> bytes:
    """A PNG of 50 million equal pixels, made without having them in memory."""
    packer, side = zlib.compressobj(1), 7071
    row = b"\0" + b"\x80" * (side * samples * depth // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


@pytest.mark.parametrize(("kind", "depth", "samples"), [(6, 8, 4), (4, 8, 2), (0, 16, 1)])
def test_the_largest_images_are_converted_within_600_mb(tmp_path: Path, kind: int, depth: int, samples: int) -> None:
    (tmp_path / "large.png").write_bytes(plain_png(kind, depth, samples))
    code = "result = type(accept(Path(sys.argv[1]).read_bytes(), ImagePolicy())).__name__"
    result, most = in_a_process(code, str(tmp_path / "large.png"))
    assert result == "Accepted"
    assert most < 600e6


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {"progressive": True}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGBA", {}),
        ("AVIF", "RGB", {"speed": 10, "subsampling": "4:4:4"}),
        ("JPEG2000", "RGB", {}),
        ("TIFF", "RGBA", {"compression": "tiff_lzw", "tiffinfo": {278: 1600}}),
    ],
)
def test_no_image_takes_more_than_is_foreseen(tmp_path: Path, format: str, mode: str, options: dict[str, Any]) -> None:
    image = Image.radial_gradient("L").resize((1600, 1600)).convert(mode)
    raw = encoded(image, format, **options)
    (tmp_path / "image").write_bytes(raw)
    small = tmp_path / "small"
    small.write_bytes(encoded(image.resize((1, 1)), format, **options))
    code = "result = [type(accept(Path(name).read_bytes(), ImagePolicy())).__name__ for name in sys.argv[1:]]"
    _, base = in_a_process(code, str(small), str(small))
    result, most = in_a_process(code, str(small), str(tmp_path / "image"))
    assert result == ["Accepted", "Accepted"]
    assert most - base < memory_needed(len(raw), Image.open(io.BytesIO(raw))) * 1.1 + 10e6


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_both_ways_to_foresee_the_memory_of_a_jpeg_agree(mode: str, progressive: bool) -> None:
    raw = encoded(Image.new(mode, (30, 20)), "JPEG", progressive=progressive)
    header = read_header(raw)
    assert header is not None
    assert jpeg_memory_needed(len(raw), header) == memory_needed(len(raw), Image.open(io.BytesIO(raw)))


def test_the_memory_allowed_follows_the_largest_image() -> None:
    assert memory_allowed(1) == memory_allowed(50_000_000) == 550_000_000
    assert memory_allowed(200_000_000) == 4 * memory_allowed(50_000_000)


def test_what_decoders_need_too_much_memory_for_is_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LEAST_ALLOWED", 0)
    image, policy = Image.new("RGB", (300, 200)), ImagePolicy(max_pixels=300 * 200)
    greedy = [encoded(image, format) for format in ("WEBP", "AVIF", "JPEG2000")]
    for raw in (*greedy, encoded(image.convert("CMYK"), "JPEG", progressive=True)):
        outcome = accept(raw, policy)
        assert isinstance(outcome, Refused) and outcome.reason == "too_large"
    modest = [encoded(image, format) for format in ("PNG", "BMP")]
    for raw in (*modest, encoded(image.convert("RGBA"), "PNG"), encoded(image, "JPEG", progressive=True)):
        assert isinstance(accept(raw, policy), Accepted)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0"}])
def test_the_canvas_of_a_webp_is_read_from_its_header(options: dict[str, Any]) -> None:
    for size in ((1, 1), (300, 200), (7, 16383)):
        raw = encoded(Image.new("RGB", size), "WEBP", **options)
        assert webp_canvas(raw) == size
        assert webp_canvas(raw[:29]) == (0, 0)
    giant = raw[:12] + b"VP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + raw[30:]
    assert webp_canvas(giant) == (16384, 16384)
    outcome = accept(giant, ImagePolicy())
    assert isinstance(outcome, Refused) and outcome.reason == "too_large"


def test_a_decoder_that_wants_more_memory_than_allowed_is_stopped(tmp_path: Path) -> None:
    large = Image.new("RGB", (3000, 3000), "gray")
    for format in ("PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"):
        (tmp_path / format).write_bytes(encoded(large, format))
    (tmp_path / "JPEG").write_bytes(encoded(large, "JPEG", progressive=True))
    (tmp_path / "small").write_bytes(encoded(large.resize((300, 300)), "PNG"))
    code = """
raws = {file.name: file.read_bytes() for file in Path(sys.argv[1]).iterdir()}
limit_memory(20_000_000)
result = {name: getattr(accept(raw, ImagePolicy(format="png")), "reason", "taken") for name, raw in raws.items()}
"""
    outcomes, _ = in_a_process("from mpp.shards.memory import limit_memory" + code, str(tmp_path))
    assert outcomes.pop("small") == "taken"
    assert len(outcomes) == 7 and set(outcomes.values()) == {"too_large"}


@pytest.mark.parametrize("resize", [None, 50])
def test_a_prepared_worker_takes_images_and_refuses_giants(tmp_path: Path, resize: int | None) -> None:
    raws = [encoded(Image.new("RGB", (300, 200)), format) for format in ("JPEG", "WEBP")]
    for number, raw in enumerate(raws):
        (tmp_path / str(number)).write_bytes(raw)
    code = f"""
policy = ImagePolicy(resize={resize})
prepare_worker(policy)
result = [type(accept(Path(name).read_bytes(), policy)).__name__ for name in sys.argv[1:]]
try:
    bytearray(800_000_000)
except MemoryError:
    result.append("bounded")
"""
    result, _ = in_a_process(code, str(tmp_path / "0"), str(tmp_path / "1"))
    assert result == ["Accepted", "Accepted", "bounded"]


def test_the_largest_files_are_taken_by_a_prepared_worker_as_by_any_process(tmp_path: Path) -> None:
    small = encoded(Image.new("RGB", (300, 200)), "JPEG", exif=b"Exif\0\0")
    comments = (ImagePolicy().max_bytes - len(small)) // 65_537  # stripping leaves them in place
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    for number, more in enumerate((0, 1)):
        (tmp_path / str(number)).write_bytes(small[:2] + comment * (comments + more) + small[2:])
    code = """
outcomes = []
for prepare in (lambda policy: None, prepare_worker):
    prepare(ImagePolicy())
    for name in sys.argv[1:]:
        raw = Path(name).read_bytes()
        outcome = accept(raw, ImagePolicy())
        outcomes.append(outcome.reason if isinstance(outcome, Refused) else len(b"".join((outcome.image, bytes(512)))))
result = outcomes
"""
    size = (tmp_path / "0").stat().st_size - 10 + 512
    outcomes, _ = in_a_process(code, str(tmp_path / "0"), str(tmp_path / "1"))
    assert outcomes == 2 * [size, "too_large"]


def test_no_odd_file_takes_long_or_much_memory(data: Path) -> None:
    code = """
result = []
for file in Path(sys.argv[1]).rglob("*"):
    if file.is_file():
        raw, start = file.read_bytes(), time.perf_counter()
        accept(raw, ImagePolicy())
        result.append(time.perf_counter() - start)
"""
    seconds, most = in_a_process(code, str(data / "odd-images"))
    assert len(seconds) > 300 and max(seconds) < 2
    assert most < 600e6
