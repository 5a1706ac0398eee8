"""What tests of fine-tuning share: one small transfer, and its settings."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tree(tiny_shards: Path, tiny_vit: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A transfer from scratch of three steps, as in a configuration file."""
    return {
        "backbone": "scratch",
        "shards": str(tiny_shards),
        "out": str(tmp_path / "out"),
        "vit": tiny_vit,
        "view": {"crop": "pad"},
        "optimizer": {"kind": "adamw", "learning_rate": 0.01},
        "steps": 3,
        "global_batch": 12,
        "stream": {"workers": 0},
    }
