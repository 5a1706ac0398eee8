"""Templates escape what is put into them and notice what is missing."""

import jinja2
import pytest

from mpp.report.rendering import template


def test_a_template_without_its_values_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        template("look.html", count=str, bytes=str, percent=str).render()


def test_what_is_put_into_a_page_is_escaped_and_filters_are_the_callers() -> None:
    environment = template("base.css", loud=str.upper).environment
    assert environment.from_string("{{ name|loud }}").render(name="<b>") == "&lt;B&gt;"
