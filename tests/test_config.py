"""YAML files and key=value words become validated settings; every mistake is told, at once and by name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field

from mpp.config import config, describe, dump, merge, parse, resolve
from mpp.errors import ConfigError
from mpp.plain_yaml import read_yaml


@config
class Sgd:
    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last step")
    nesterov: bool = False


@config
class Adam:
    kind: Literal["adam"] = "adam"
    betas: tuple[float, float] = Field((0.9, 0.999), description="decay of the two moments")


@config
class Model:
    width: int = Field(192, gt=0, description="channels of a token")
    name: str = "vit"


@config
class Stage:
    out: Path = Field(description="folder of the run")
    steps: int = Field(100, gt=0, description="optimizer steps")
    clip: float | None = Field(1.0, description="largest gradient norm; null: none")
    model: Model = Model()
    optimizer: Sgd | Adam = Field(Adam(), discriminator="kind", description="how weights change")
    second: Sgd | Adam | None = Field(None, discriminator="kind")
    seeds: tuple[int, ...] = (0, 1)


def _parse(*words: str, positional: tuple[str, ...] = ()) -> Stage:
    return parse(Stage, words, prog="mpp try", about="Try.", positional=positional)


def _message(run: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        run()
    assert raised.value.exit_code == 2
    return str(raised.value)


def test_defaults_fill_what_is_not_given() -> None:
    assert _parse("out=run") == Stage(out=Path("run"))


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        _parse("out=run").steps = 3  # type: ignore[misc]


def test_values_are_read_as_yaml() -> None:
    stage = _parse("out=run", "clip=null", "seeds=[3, 4, 5]", "model={width: 8}", "model.name=a b")
    assert (stage.clip, stage.seeds, stage.model) == (None, (3, 4, 5), Model(width=8, name="a b"))


def test_later_files_win_over_earlier_ones_and_words_over_files(write: Callable[[str], str]) -> None:
    first = write("{out: a, steps: 1, model: {width: 8, name: first}}")
    second = write("{steps: 2, model: {name: second}}")
    stage = _parse("steps=3", "--config", first, f"--config={second}")
    assert (stage.out, stage.steps, stage.model) == (Path("a"), 3, Model(width=8, name="second"))


def test_an_empty_file_changes_nothing(write: Callable[[str], str]) -> None:
    assert _parse("out=run", "--config", write("# nothing\n")) == Stage(out=Path("run"))


def test_bare_words_fill_the_positional_keys_in_order() -> None:
    stage = _parse("a/x=1: #b", "clip=2", "7", positional=("out", "steps"))
    assert (stage.out, stage.clip, stage.steps) == (Path("a/x=1: #b"), 2.0, 7)


@pytest.mark.parametrize(
    "words", [("optimizer.kind=sgd", "optimizer.momentum=0.5"), ("optimizer.momentum=0.5", "optimizer.kind=sgd")]
)
def test_kind_and_keys_may_come_in_any_order(words: tuple[str, ...]) -> None:
    assert _parse("out=run", *words).optimizer == Sgd(momentum=0.5)


def test_a_partial_override_keeps_the_default_kind() -> None:
    assert _parse("out=run", "optimizer.betas=[0.8, 0.9]").optimizer == Adam(betas=(0.8, 0.9))


def test_a_partial_override_keeps_the_kind_of_the_file(write: Callable[[str], str]) -> None:
    file = write("{out: a, optimizer: {kind: sgd, momentum: 0.5}}")
    assert _parse("--config", file, "optimizer.nesterov=true").optimizer == Sgd(momentum=0.5, nesterov=True)


def test_another_kind_replaces_the_whole_choice(write: Callable[[str], str]) -> None:
    file = write("{out: a, optimizer: {kind: sgd, momentum: 0.5}}")
    assert _parse("--config", file, "optimizer.kind=adam").optimizer == Adam()


def test_a_choice_that_may_be_absent_is_chosen_by_its_kind() -> None:
    assert _parse("out=run").second is None
    assert _parse("out=run", "second.kind=sgd").second == Sgd()


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("stps=3", "stps: unknown key; did you mean steps?"),
        ("model.widht=3", "model.widht: unknown key; did you mean model.width?"),
        ("width=3", "width: unknown key; did you mean model.width?"),
        ("zzzzzz=3", "zzzzzz: unknown key; known: out, steps, clip, model, optimizer, second, seeds"),
        ("optimizer.beta=[1, 1]", "optimizer.beta: unknown key; did you mean optimizer.betas?"),
        ("optimizer.momentum=0.5", "optimizer.momentum: unknown key; "),
        ("second={kind: sgd, momentun: 1}", "second.momentun: unknown key; did you mean second.momentum?"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest_one(word: str, line: str) -> None:
    assert f"  {line}" in _message(lambda: _parse("out=run", word))


@pytest.mark.parametrize(
    ("word", "key", "words"),
    [
        ("steps=many", "steps", "(got 'many')"),
        ("steps=0", "steps", "greater than 0 (got 0)"),
        ("clip=.inf", "clip", "finite"),
        ("clip=.nan", "clip", "finite"),
        ("seeds=[0, x]", "seeds.1", "(got 'x')"),
        ("seeds=3", "seeds", "a list is written [A, B] (got 3)"),
        ("model=3", "model", "(got 3)"),
        ("model.width=[1]", "model.width", "(got [1])"),
        ("optimizer.kind=lion", "optimizer.kind", "'lion' is unknown; one of sgd, adam"),
        ("optimizer.kind=[1]", "optimizer.kind", "is unknown; one of sgd, adam"),
        ("second.momentum=0.5", "second.kind", "required; one of sgd, adam"),
        ("second={kind: sgd, momentum: 4}", "second.momentum", "less than 1 (got 4)"),
        ("optimizer=fast", "optimizer", "fast"),
        ("steps.x=3", "steps", "valid integer"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(word: str, key: str, words: str) -> None:
    message = _message(lambda: _parse("out=run", word))
    lines = [line for line in message.splitlines() if line.startswith(f"  {key}: ")]
    assert len(lines) == 1 and words in lines[0], message


def test_a_required_setting_that_is_missing_is_told() -> None:
    assert "  out: required, give out=..." in _message(_parse)


def test_every_mistake_is_told_at_once() -> None:
    lines = _message(lambda: _parse("steps=0", "model.widht=3", "optimizer.betas=1", "zzz=1")).splitlines()
    assert lines[0] == "mpp try: 5 setting(s) cannot be used"
    assert lines[-1] == "  fix: mpp try --help"
    assert sorted(line.split(":")[0].strip() for line in lines[1:-1]) == [
        "model.widht",
        "optimizer.betas",
        "out",
        "steps",
        "zzz",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps", "3"), "unknown option --steps\n  fix: steps=VALUE"),
        (("--stps=3",), "unknown option --stps=3\n  fix: mpp try --help"),
        (("run",), "unexpected argument 'run'; settings are written key=value"),
        (("out={a: ]",), "out={a: ]: the value is not plain YAML"),
        (("out=!!python/name:os.system",), "not plain YAML"),
        (("out=[&a 1, *a]",), "aliases (*name) are not allowed"),
        (("--config",), "fix: name a YAML file"),
        (("--config", "missing.yaml"), "missing.yaml: No such file or directory\n  fix: name a YAML file"),
    ],
)
def test_a_word_that_is_no_setting_is_told(words: tuple[str, ...], told: str) -> None:
    assert told in _message(lambda: _parse(*words))


def test_print_config_stops_and_what_it_prints_gives_the_same_settings(
    capsys: pytest.CaptureFixture[str], write: Callable[[str], str]
) -> None:
    words = ("out=run", "clip=null", "second={kind: sgd, momentum: 0.1}", "model.width=8", "seeds=[5]")
    with pytest.raises(SystemExit) as ended:
        _parse(*words, "--print-config")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert _parse("--config", write(printed)) == _parse(*words)
    assert list(yaml.safe_load(printed)) == [field.name for field in dataclasses.fields(Stage)]


def test_print_config_tells_mistakes_instead_of_printing() -> None:
    assert "steps" in _message(lambda: _parse("out=run", "steps=0", "--print-config"))


def test_help_shows_every_key_with_type_default_and_description(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        _parse("--help", positional=("out",))
    page = capsys.readouterr().out
    assert ended.value.code == 0
    assert page.startswith("usage: mpp try OUT [--config FILE ...] [--print-config] [-v] [key=value ...]\n\nTry.\n")
    for line in (
        "  out: Path = (required)\n      folder of the run\n",
        "  steps: int = 100\n      optimizer steps\n",
        "  clip: float | none = 1.0\n",
        "  model.width: int = 192\n      channels of a token\n",
        "  model.name: str = vit\n",
        "  optimizer.kind: one of sgd, adam = adam\n      how weights change\n",
        "  optimizer.momentum: [sgd] float = 0.9\n",
        "  optimizer.betas: [adam] [float, float] = [0.9, 0.999]\n",
        "  second.kind: one of sgd, adam = null\n",
        "  seeds: [int, ...] = [0, 1]\n",
    ):
        assert line in page, line


def test_help_of_a_stage_without_positional_words_has_a_plain_usage_line() -> None:
    assert describe(Model, prog="mpp m", about="x").startswith("usage: mpp m [--config FILE")


def test_help_says_that_a_part_may_be_left_out_whole() -> None:
    @config
    class Run:
        data: Model | None = Field(None, description="what to read")

    page = describe(Run, prog="mpp r", about="x")
    assert "  data: none, or what follows = null\n      what to read\n  data.width: int = 192" in page


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_dump_and_resolve_are_inverse() -> None:
    stage = Stage(out=Path("run"), optimizer=Sgd(nesterov=True), clip=None)
    assert resolve(Stage, dump(stage)) == stage


def test_a_bare_word_for_a_choice_is_told_where_the_kind_goes() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: got 'adam'; write optimizer\.kind=\.\.\., one of sgd, adam"):
        _parse("optimizer=adam")


@config
class Share:
    source: str
    weight: float = Field(1.0, gt=0)


@config
class Mixed:
    sources: str | tuple[str | Share, ...]


def test_text_or_a_list_of_text_and_groups_may_be_given() -> None:
    assert resolve(Mixed, {"sources": "a"}).sources == "a"
    assert resolve(Mixed, {"sources": ["a", {"source": "b", "weight": 2}]}).sources == (
        "a",
        Share(source="b", weight=2.0),
    )


@pytest.mark.parametrize(
    ("sources", "line"),
    [
        (3, "sources: Input should be a valid string (got 3)"),
        ({"a": 1}, "sources: a list is written [A, B] (got {'a': 1})"),
        (["a", {"source": "b", "wieght": 2}], "sources.1.wieght: unknown key; did you mean sources.1.weight?"),
        (["a", {"source": "b", "weight": 0}], "sources.1.weight: Input should be greater than 0 (got 0)"),
        ([{"weight": 2}], "sources.0.source: required, give sources.0.source=..."),
    ],
)
def test_a_mistake_in_a_list_is_told_once_and_where_it_is(sources: Any, line: str) -> None:
    lines = _message(lambda: resolve(Mixed, {"sources": sources})).splitlines()
    assert lines[1:] == [f"  {line}"]


@config
class Tracker:
    """Settings of which one is a secret."""

    api_key: str = ""
    url: str = ""
    steps: int = 1


SESAME = "open-sesame-123"


@pytest.mark.parametrize(
    "words",
    [
        [f"api_key=[{SESAME}]"],
        [f"api_key={{{SESAME}: "],
        [f"api_key=!!python/name:{SESAME}"],
        [f"api.key.password={SESAME}"],
        ["steps=x", f"url={{a: 'https://me:{SESAME}@host/'}}"],
        [f"--api-key={SESAME}"],
        [f"https://me:{SESAME}@host/x"],
        [f"{{url: https://host/?token={SESAME}"],
    ],
)
def test_no_message_about_a_setting_shows_a_secret(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from mpp.errors import exit_code_of

    assert exit_code_of(lambda argv: print(parse(Tracker, argv, prog="x", about="")), [*words, "-v"]) == 2
    assert SESAME not in "".join(capsys.readouterr())


def test_neither_does_the_printed_config_or_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Tracker, [f"api_key={SESAME}", "steps=3", "--print-config"], prog="x", about="")
    printed = capsys.readouterr().out
    assert SESAME not in printed and "steps: 3" in printed
    (tmp_path / "x.yaml").write_text(f"api_key: [{SESAME}\nsteps: 3")
    assert SESAME not in _message(lambda: read_yaml(tmp_path / "x.yaml"))
