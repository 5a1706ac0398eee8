"""What a report holds, whatever it is written as: the comparison, what follows from it, and the pictures beside it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

import yaml

from mpp.errors import MppError
from mpp.evaluation.verdict import Comparison
from mpp.redaction import redact
from mpp.report.cost_plot import cost_accuracy
from mpp.report.equality import how_equal
from mpp.report.plain import plain
from mpp.report.plots import label_curve, training_curves
from mpp.report.reconstructions import draw_reconstructions
from mpp.report.trainings import Ending, endings, panels, read_trainings
from mpp.report.wording import Verdict, name_metric, verdict

LABEL_CURVE, COST_ACCURACY, TRAINING_CURVES = "label_curve.svg", "cost_accuracy.svg", "training_curves.svg"
RECONSTRUCTIONS = "reconstructions.png"
_SHOWN = 8  # images among the reconstructions


@dataclass(frozen=True)
class Contents:
    """A comparison, ready to be written: ``pictures`` are captions by file name, ``missing`` says what is not drawn."""

    comparison: Comparison
    verdict: Verdict
    equality: tuple[str, ...]
    endings: tuple[Ending, ...]
    pictures: Mapping[str, str]
    missing: tuple[str, ...]
    settings: str  # YAML
    command: str


def draw_contents(comparison: Comparison) -> Contents:
    """Draw the pictures into the comparison's folder and return all that a report holds."""
    comparison = _without_secrets(comparison)
    folder, metric = comparison.folder, name_metric(comparison.metric)
    pictures = {LABEL_CURVE: f"{metric} by labelled images per class, with 95 % intervals over seeds"}
    label_curve(comparison.rows, metric, folder / LABEL_CURVE)
    missing = []
    unknown = sorted({row.arm for row in comparison.rows if row.pretraining is None})
    if len(unknown) < len(comparison.arms):
        pictures[COST_ACCURACY] = (
            f"{metric} by the operations of pretraining and one fine-tuning; arms of one cost stand side by side"
        )
        cost_accuracy(comparison.rows, metric, folder / COST_ACCURACY)
    if unknown:
        missing.append(f"not among the costs: {', '.join(unknown)}, of whose pretraining the cost is not known")
    trainings, unread = read_trainings(comparison)
    missing += unread
    if trainings:
        pictures[TRAINING_CURVES] = "pretraining, one curve a run; dashed: what is reached without learning"
        training_curves(panels(trainings), [arm.name for arm in comparison.arms], folder / TRAINING_CURVES)
    _draw_reconstructions(comparison, pictures, missing)
    for name in {COST_ACCURACY, TRAINING_CURVES, RECONSTRUCTIONS}.difference(pictures):
        (folder / name).unlink(missing_ok=True)  # of an earlier report
    return Contents(
        comparison=comparison,
        verdict=verdict(comparison),
        equality=how_equal(comparison),
        endings=tuple(endings(trainings)),
        pictures=pictures,
        missing=tuple(missing),
        settings=yaml.safe_dump(plain(comparison.settings), sort_keys=False, allow_unicode=True),
        command=f"mpp compare --config {shlex.quote(str(folder / 'config.yaml'))} out=ANOTHER_FOLDER",
    )


def _without_secrets(comparison: Comparison) -> Comparison:
    """Return the comparison as it may be shown: names of folders may be addresses with a password."""
    return replace(
        comparison,
        arms=tuple(replace(arm, words=redact(arm.words)) for arm in comparison.arms),
        data=tuple(replace(facts, path=redact(facts.path)) for facts in comparison.data),
        warnings=tuple(redact(comparison.warnings)),
        notes=tuple(redact(comparison.notes)),
        settings=redact(comparison.settings),
        environment=redact(comparison.environment),
    )


def _draw_reconstructions(comparison: Comparison, pictures: dict[str, str], missing: list[str]) -> None:
    """Draw what the first masked run predicts; its checkpoint or images may be gone by now."""
    arm = next((arm for arm in comparison.arms if arm.kind == "masked" and arm.runs), None)
    if arm is None:
        return
    try:
        draw_reconstructions(str(arm.runs[0]), str(comparison.folder / RECONSTRUCTIONS), _SHOWN)
    except (MppError, OSError) as error:
        missing.append(f"no reconstructions of {arm.name}: {' '.join(str(error).partition(' fix:')[0].split())}")
    else:
        pictures[RECONSTRUCTIONS] = f"what {arm.name} predicts of images that it was pretrained on"
