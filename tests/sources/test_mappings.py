"""Mapping files of every kind label the same images, or their mistake is named."""

from pathlib import Path

import pytest

from mpp.errors import DataError
from mpp.sources.labels import labeller
from mpp.sources.mappings import read_mapping


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "a/1.jpg,cat\n2.jpg,dog\n"),
        ("m.csv", "id,label,path\n7,cat,a/1.jpg\n8,dog,2.jpg\n"),
        ("m.csv", "Image,Label\na/1.jpg,cat\n2.jpg,dog\n"),
        ("m.csv", "a/1.jpg;cat\n;\n2.jpg;dog\n"),
        ("m.tsv", "path\tclass\na/1.jpg\tcat\n2.jpg\tdog\n"),
        ("m.jsonl", '{"path": "a/1.jpg", "label": "cat"}\n{"path": "2.jpg", "label": "dog"}\n'),
        ("m.json", '{"a/1.jpg": "cat", "2.jpg": "dog"}'),
        ("m.yaml", "a/1.jpg: cat\n2.jpg: dog\n"),
    ],
)
def test_a_mapping_names_images_by_path_or_by_file_name(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    label_of = labeller(str(tmp_path / name))
    assert [label_of(path, "folder") for path in ("a/1.jpg", "deep/er/2.jpg")] == ["cat", "dog"]
    with pytest.raises(DataError, match=r"no label for b/1\.jpg"):
        label_of("b/1.jpg", "folder")


def test_a_mapping_to_digits_alone_gives_numbers(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("1.jpg,10\n2.jpg,9\n")
    assert read_mapping(tmp_path / "m.csv") == {"1.jpg": 10, "2.jpg": 9}
    (tmp_path / "m.json").write_text('{"1.jpg": 3, "2.jpg": "unknown"}')
    assert read_mapping(tmp_path / "m.json") == {"1.jpg": "3", "2.jpg": "unknown"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "1.jpg,cat\n1.jpg,dog\n", r"m\.csv:2: 1\.jpg has two labels, cat and dog"),
        ("m.json", '{"1.jpg": "cat", "1.jpg": "dog"}', r"1\.jpg has two labels, cat and dog"),
        ("m.yaml", "1.jpg: cat\n1.jpg: dog\n", r"m\.yaml:2: 1\.jpg has two labels"),
        ("m.csv", "path,label\n1.jpg,\n", r"m\.csv:2: '1\.jpg' has no label"),
        ("m.json", '{"1.jpg": [1]}', r"'1\.jpg' has no label"),
        ("m.json", '{"1.jpg": true}', r"'1\.jpg' has no label"),
        ("m.yaml", "1.jpg: {a: b}\n", r"'1\.jpg' has no label"),
        ("m.json", "[1, 2]", "expected an object of labels by path"),
        ("m.json", "{", "no JSON"),
        ("m.yaml", "- a\n", "expected a mapping of labels by path"),
        ("m.yaml", "a: [\n", "no YAML"),
        ("m.yaml", "a: !!python/object/apply:os.system [ls]\n", "'a' has no label"),
        ("m.csv", "ImageId,PredictionString\na,b\n", "columns path and label, found ImageId, PredictionString"),
        ("m.csv", "id,name,kind\n1,2,3\n", "expected the columns path and label, found id, name, kind"),
    ],
)
def test_a_mapping_that_cannot_be_used_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_mapping(tmp_path / name)
