"""YAML that holds plain values and nothing else: no tags, no aliases, no key twice, bounded in size and depth."""

from pathlib import Path
from typing import Any

import yaml

from mpp.errors import ConfigError

_MOST_BYTES = 2**20  # of a YAML file; configs have a few thousand
_DEEPEST = 32  # mappings and lists in one another

Tree = dict[str, Any]


def read_yaml(file: Path) -> Tree:
    """Read one YAML mapping; raise ``ConfigError`` for anything else (tags, aliases, lists, no such file)."""
    try:
        with file.open("rb") as source:
            data = source.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror or error}", fix="name a YAML file that can be read") from None
    if len(data) > _MOST_BYTES:
        raise ConfigError(f"{file} has more than {_MOST_BYTES:,} bytes", fix="name a YAML file of settings")
    try:
        tree = load_plain(data.decode())
    except ValueError as error:
        raise ConfigError(f"{file} is not plain YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} holds a {type(tree).__name__}, expected a mapping of settings")
    return tree


def load_plain(text: str) -> Any:
    """Return what plain YAML holds; raise ``ValueError`` saying what and where, but quoting nothing of the text."""
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags that build objects, aliases (which can grow without bound), depths and keys given twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError(f"more than {_DEEPEST} mappings and lists in one another")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        double = next((key for key in keys if keys.count(key) > 1), None)
        if double is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {double} is given twice", node.start_mark)
        return mapping
