"""report.json: a comparison for programs. Keys are those of ``mpp/evaluation/verdict.py``, and:

schema             mpp-comparison/1; another number where a key changes its meaning
mpp                the version that wrote it
verdict            ``headline`` on one arm, ``beside`` on each of the others, ``caveat`` where there are warnings
rows               each with ``told``: whether its difference is told apart from none, that is p_holm < 0.05 and an
                   interval without zero
equality           sentences on what all arms share
pretraining_ends   by arm: the last logged step, loss and accuracy (percent), and trivial ``baselines``
pictures           captions by the name of the file beside it
missing            what could not be drawn
command            what makes the comparison again

Accuracies and differences are in percent, costs in images, FLOPs and seconds. Null is what is not known or no number.
"""

import json

from mpp import __version__
from mpp.redaction import redact
from mpp.report.contents import Contents
from mpp.report.notation import is_told
from mpp.report.plain import plain

SCHEMA = "mpp-comparison/1"


def as_json(contents: Contents) -> str:
    """Return the text of report.json, without secrets."""
    comparison = contents.comparison
    tree = {
        "schema": SCHEMA,
        "mpp": __version__,
        "verdict": plain(contents.verdict),
        **plain(comparison),
        "rows": [plain(row) | {"told": is_told(row)} for row in comparison.rows],
        "equality": contents.equality,
        "pretraining_ends": [plain(ending._asdict()) for ending in contents.endings],
        "pictures": dict(contents.pictures),
        "missing": contents.missing,
        "command": contents.command,
    }
    return json.dumps(redact(tree), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
