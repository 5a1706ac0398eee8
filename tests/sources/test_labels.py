"""Labels come from folders or mapping files, or what does not fit is named."""

from pathlib import Path

import pytest

from mpp.errors import ConfigError
from mpp.sources.labels import find_labels


def test_labels_are_a_known_word_or_a_mapping_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.csv").touch()
    assert find_labels("none", ("auto", "none"), "a folder") == "none"
    assert find_labels("m.csv", ("auto", "none"), "a folder") == str(tmp_path / "m.csv")
    with pytest.raises(ConfigError, match="labels=species: a folder has no columns"):
        find_labels("species", ("auto", "none"), "a folder")
    with pytest.raises(ConfigError, match=r"labels=other\.csv: no such file"):
        find_labels("other.csv", ("auto", "none"), "a folder")
