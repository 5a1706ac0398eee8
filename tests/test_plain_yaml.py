"""Files of settings are plain YAML; whatever else they hold is refused, with the place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpp.errors import ConfigError
from mpp.plain_yaml import read_yaml


def _message(run: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        run()
    assert raised.value.exit_code == 2
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("out: !!python/object/apply:os.system [exit]", "could not determine a constructor for the tag"),
        ("a: &a [x, x]\nb: [*a, *a]", "aliases (*name) are not allowed"),
        ("- 1\n- 2", "holds a list, expected a mapping of settings"),
        ("out: [", "is not plain YAML"),
        ("out: \x00", "is not plain YAML"),
        ("out: a\nsteps: 3\nout: b", "the key out is given twice"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(text: str, told: str, write: Callable[[str], str]) -> None:
    file = write(text)
    message = _message(lambda: read_yaml(Path(file)))
    assert file in message and told in message and len(message.splitlines()) == 1


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    assert "is not plain YAML" in _message(lambda: read_yaml(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: [*a, *a]\n", "aliases (*name) are not allowed"),
        ("&x a: 1\n? [" + "[" * 100 + "]" * 100 + "]\n: 1\n", "in one another"),
        ("[" * 500 + "]" * 500, "in one another"),
        ("{a: " * 40 + "1" + "}" * 40, "in one another"),
        ("a: " + "1" * 5000, "is not plain YAML"),
        ("a: 2024-13-45", "is not plain YAML"),
        ("#" * 2**20 + "\na: 1", "more than 1,048,576 bytes"),
        ("a: !!python/object/apply:os.system ['touch marker']", "python/object/apply:os.system"),
    ],
)
def test_yaml_that_grows_or_runs_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert message in _message(lambda: read_yaml(file))
    assert not (tmp_path / "marker").exists() and not Path("marker").exists()
