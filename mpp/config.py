"""YAML files and ``key=value`` overrides become validated, frozen dataclasses.

A stage declares its settings as a class decorated with :func:`config`; every field has a default (or is
required) and a ``description`` with its unit. :func:`parse` reads the command line of a stage:

    --config FILE     YAML, repeatable, later files win
    key.sub=value     override; the value is YAML; wins over files
    --print-config    print the resolved settings as YAML and stop
    --help            print every key with type, default and description and stop

A field whose type is a union of classes with a ``kind`` is a choice: giving another ``kind`` replaces the
whole choice, giving other keys changes the chosen one.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
import pydantic_core
import yaml

from mpp.errors import ConfigError
from mpp.plain_yaml import Tree, load_plain, read_yaml
from mpp.redaction import HIDDEN, names_secret, redact

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)  # mypy sees no default in Field(3): no specifiers
def config(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen keyword-only dataclass whose fields pydantic validates; unknown keys are errors."""
    settings = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    return typing.cast(type[T], pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=settings)(cls))


def parse(cls: type[T], argv: Sequence[str], *, prog: str, about: str, positional: Sequence[str] = ()) -> T:
    """Resolve a command line into ``cls``.

    ``positional`` names the keys that bare words fill, in order. Raises ``ConfigError`` with every mistake at
    once, and ``SystemExit(0)`` after ``--help`` or ``--print-config``.
    """
    words, files, overrides, flags = list(argv), [], [], set()
    free = list(positional)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            print(describe(cls, prog=prog, about=about, positional=positional))
            raise SystemExit(0)
        if word == "--print-config":
            flags.add(word)
        elif word == "--config" or word.startswith("--config="):
            files.append(word.partition("=")[2] or (words.pop(0) if words else ""))
        elif word.startswith("-") and word != "-":
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            fix = f"{name}=VALUE" if name in _fields(cls) else f"{prog} --help"
            raise ConfigError(f"{prog}: unknown option {word}", fix=fix)
        elif "=" in word and "/" not in word.partition("=")[0]:
            overrides.append(word)
        elif free:
            overrides.append(f"{free.pop(0)}={yaml.safe_dump(word, width=10**6).splitlines()[0]}")
        else:
            message = f"{prog}: unexpected argument {word!r}; settings are written key=value"
            raise ConfigError(message, fix=f"{prog} --help")
    tree: Tree = {}
    for file in files:
        tree = merge(tree, read_yaml(Path(file)))
    for override in overrides:
        tree = merge(tree, _parse_override(override))
    resolved = resolve(cls, tree, where=prog, fix=f"{prog} --help")
    if "--print-config" in flags:
        print(yaml.safe_dump(redact(dump(resolved)), sort_keys=False), end="")
        raise SystemExit(0)
    return resolved


def resolve(cls: type[T], tree: Mapping[str, Any], *, where: str = "config", fix: str = "") -> T:
    """Validate a tree of plain values into ``cls``.

    Raises ``ConfigError`` listing every mistake on its own line, after ``where`` they are and before the ``fix``.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(_with_default_kinds(cls, dict(tree)))
    except pydantic.ValidationError as error:
        lines = list(dict.fromkeys(_explain(cls, detail) for detail in _meant(error.errors())))
    listed = "\n".join(f"  {line}" for line in lines)
    raise ConfigError(f"{where}: {len(lines)} setting(s) cannot be used\n{listed}", fix=fix)


def dump(resolved: Any) -> Tree:
    """Return a config as a tree of plain YAML values, every default written out."""
    tree: Tree = pydantic.TypeAdapter(type(resolved)).dump_python(resolved, mode="json")
    return tree


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Tree:
    """Lay ``over`` on ``base``, mapping by mapping; a mapping of another ``kind`` replaces instead."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            another = "kind" in old and "kind" in value and old["kind"] != value["kind"]
            value = value if another else merge(old, value)
        result[key] = value
    return result


def describe(cls: type, *, prog: str, about: str, positional: Sequence[str] = ()) -> str:
    """Return the help page: usage, then every key with its type, default and description."""
    words = " ".join(name.upper() for name in positional)
    lines = [
        f"usage: {prog} {words}{' ' if words else ''}[--config FILE ...] [--print-config] [-v] [key=value ...]",
        "",
    ]
    lines += [about.strip(), "", "settings (key: type = default):"]
    for key, kind, default, text in _settings(cls, ""):
        lines.append(f"  {key}: {kind} = {default}")
        if text:
            lines.append(f"      {text}")
    return "\n".join(lines)


def _parse_override(word: str) -> Tree:
    key, _, text = word.partition("=")
    try:
        value: Any = load_plain(text) if text else ""
    except ValueError as error:
        if names_secret(key):
            raise ConfigError(f"{key}={HIDDEN} is not plain YAML") from None
        raise ConfigError(f"{word}: the value is not plain YAML: {error}") from None
    for name in reversed(key.split(".")):
        value = {name: value}
    return typing.cast(Tree, value)


def _choices(annotation: Any) -> list[type]:
    """Return the config classes that ``annotation`` allows: one, several (a choice), or none (a plain value)."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _choices(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [cls for part in typing.get_args(annotation) for cls in _choices(part)]
    return [annotation] if isinstance(annotation, type) and dataclasses.is_dataclass(annotation) else []


def _kinds(choices: list[type]) -> dict[Any, type]:
    return {_default(_fields(cls).get("kind")): cls for cls in choices}


def _chosen(annotation: Any, kind: Any) -> type | None:
    choices = _choices(annotation)
    if len(choices) == 1:
        return choices[0]
    return next((cls for cls in choices if _default(_fields(cls).get("kind")) == kind), None)


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _default(field: dataclasses.Field[Any] | None) -> Any:
    """Return the default of a field, ``dataclasses.MISSING`` where it is required."""
    if field is None:
        return dataclasses.MISSING
    default = field.default
    if isinstance(default, pydantic.fields.FieldInfo):
        default = default.get_default(call_default_factory=True, validated_data={})
        if default is pydantic_core.PydanticUndefined:
            return dataclasses.MISSING
    return default


def _with_default_kinds(cls: type, tree: Tree) -> Tree:
    """Write the default ``kind`` into every choice that the tree changes without naming one."""
    result, hints = dict(tree), _hints(cls)
    for name, field in _fields(cls).items():
        value = result.get(name)
        if not isinstance(value, Mapping) or not _choices(hints[name]):
            continue
        default_kind = getattr(_default(field), "kind", None)
        if "kind" not in value and default_kind is not None and len(_choices(hints[name])) > 1:
            value = {"kind": default_kind, **value}
        chosen = _chosen(hints[name], value.get("kind"))
        result[name] = _with_default_kinds(chosen, dict(value)) if chosen else dict(value)
    return result


def _meant(details: list[Any]) -> list[Any]:
    """Leave out, where text or a list may be given, what is wrong with the one that was not."""
    unlike = {True: ("string_type",), False: ("tuple_type", "list_type")}
    both = {detail["loc"][0] for detail in details if detail["type"] == "string_type" and len(detail["loc"]) > 1}
    return [
        detail
        for detail in details
        if detail["loc"][:1] == ()
        or detail["loc"][0] not in both
        or detail["type"] not in unlike[isinstance(detail["input"], list | tuple | Mapping)]
    ]


def _items(annotation: Any) -> type | None:
    """Return the config class that a list may hold, None where there is none."""
    if typing.get_origin(annotation) is tuple:
        return next((cls for part in typing.get_args(annotation) for cls in _choices(part)), None)
    return next(filter(None, map(_items, typing.get_args(annotation))), None)


def _values(annotation: Any) -> list[type]:
    """Return the config classes that the values of a mapping may be, none where it is no mapping of such."""
    return _choices(typing.get_args(annotation)[1]) if typing.get_origin(annotation) is dict else []


def _explain(cls: type, detail: Any) -> str:
    """Turn one pydantic error into ``key: what is wrong``, with the nearest key for an unknown one."""
    names: list[str] = []
    owner: type | None = cls
    kinds: dict[Any, type] = {}
    items: type | None = None
    values: list[type] = []
    for part in detail["loc"]:
        fields = _fields(owner) if owner is not None else {}
        if owner is not None and part in fields:
            annotation = _hints(owner)[part]
            choices, items, values = _choices(annotation), _items(annotation), _values(annotation)
            owner, kinds = (choices[0], {}) if len(choices) == 1 else (None, _kinds(choices))
        elif values:  # the name of one of them
            owner, kinds, values = (values[0], {}, []) if len(values) == 1 else (None, _kinds(values), [])
        elif owner is None and isinstance(part, int):
            owner = items
        elif items is not None and part in (items.__name__, "str"):
            continue  # which form of an item it was taken for
        elif owner is None and not isinstance(part, int):
            owner = kinds.get(part)  # the tag of a choice, which is no part of the key
            continue
        names.append(str(part))
    key = ".".join(names)
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        known = list(_fields(owner)) if owner is not None else []
        below = [key for key, *_ in (_settings(owner, "") if owner is not None else []) if "." in key]
        near = [key for key in below if key.rpartition(".")[2] == names[-1]][:1]
        near = near or difflib.get_close_matches(names[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*names[:-1], near[0]])}?" if near else f"known: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{key}: required, give {key}=..."
    if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
        found = f"{detail['ctx']['tag']!r} is unknown" if "tag" in detail["ctx"] else "required"
        return f"{key}.kind: {found}; one of {', '.join(kinds)}"
    value = HIDDEN if any(map(names_secret, names)) else redact(detail.get("input"))
    if kinds and not isinstance(value, Mapping):
        return f"{key}: got {value!r}; write {key}.kind=..., one of {', '.join(kinds)}"
    if detail["type"] in ("tuple_type", "list_type"):
        return f"{key}: a list is written [A, B] (got {value!r})"
    shown = "" if isinstance(value, Mapping) or dataclasses.is_dataclass(value) else f" (got {value!r})"
    return f"{key or 'settings'}: {detail['msg']}{shown}"


def _settings(cls: type, prefix: str) -> list[tuple[str, str, str, str]]:
    """List ``(key, type, default, description)`` of every setting under ``cls``, depth first."""
    rows: list[tuple[str, str, str, str]] = []
    hints = _hints(cls)
    for name, field in _fields(cls).items():
        key, default, choices = prefix + name, _default(field), _choices(hints[name])
        text = getattr(field.default, "description", None) or ""
        if len(choices) == 1:
            rows += [(key, "none, or what follows", "null", text)] if default is None else []
            rows += _settings(choices[0], f"{key}.")
        elif choices:
            rows.append(
                (f"{key}.kind", f"one of {', '.join(_kinds(choices))}", _shown(getattr(default, "kind", default)), text)
            )
            for kind, choice in _kinds(choices).items():
                below = [row for row in _settings(choice, f"{key}.") if row[0] != f"{key}.kind"]
                rows += [(name, f"[{kind}] {type_}", value, words) for name, type_, value, words in below]
        else:
            rows.append((key, _type_name(hints[name]), _shown(default), text))
    return rows


def _shown(value: Any) -> str:
    """Return a default as one line of YAML."""
    if value is dataclasses.MISSING:
        return "(required)"
    plain = pydantic_core.to_jsonable_python(value)
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6).splitlines()[0]


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is tuple:
        return f"[{', '.join('...' if argument is Ellipsis else _type_name(argument) for argument in arguments)}]"
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
