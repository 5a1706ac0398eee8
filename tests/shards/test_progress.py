"""Progress passes results on and says how many images are done, in lines, or in a bar on a terminal."""

import io

from rich.console import Console

from mpp.shards.progress import shown


def _show(terminal: bool) -> tuple[list[str], str]:
    target = io.StringIO()
    console = Console(file=target, force_terminal=terminal, width=120, highlight=False)
    results = list(shown(iter(["a", "bbb"]), len, total=4, title="hashing", console=console))
    return results, target.getvalue()


def test_lines_say_what_is_done_and_how_fast() -> None:
    results, text = _show(terminal=False)
    assert results == ["a", "bbb"]
    assert text.startswith("hashing: 4 of 4 images, ") and text.endswith(" images/s\n") and text.count("\n") == 1


def test_what_is_counted_may_be_something_else() -> None:
    target = io.StringIO()
    console = Console(file=target, width=120, highlight=False)
    list(shown(iter([4]), int, total=4, title="indexing", console=console, unit="MB"))
    assert target.getvalue().startswith("indexing: 4 of 4 MB, ") and target.getvalue().endswith(" MB/s\n")


def test_a_terminal_gets_a_bar() -> None:
    results, text = _show(terminal=True)
    assert results == ["a", "bbb"]
    assert "4 of 4" in text and "\x1b[" in text
