"""Pretrain a ViT: ``accelerate launch mpp/pretrain.py --config configs/pretrain/FILE shards=... out=...``"""

from collections.abc import Sequence

from mpp.config import parse
from mpp.errors import exit_code_of

ABOUT = """Pretrain a Vision Transformer on shards by masked patch prediction (or by supervised classification).
One process: mpp pretrain; many: accelerate launch mpp/pretrain.py. The same command continues a run cut off."""


def run(argv: Sequence[str]) -> None:
    """Parse the settings and pretrain."""
    from mpp.training.devices import leave_together
    from mpp.training.pretraining import pretrain
    from mpp.training.recipe import PretrainConfig

    settings = parse(PretrainConfig, argv, prog="mpp pretrain", about=ABOUT)
    if settings.probe.every is None:
        pretrain(settings)
    else:
        from mpp.evaluation.live import open_live_probe

        pretrain(settings, open_live_probe)
    leave_together()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return exit_code_of(run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
