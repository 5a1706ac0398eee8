"""Pages from the templates beside this file: everything put into them is escaped, what is missing is an error."""

from collections.abc import Callable
from pathlib import Path

import jinja2


def template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """Return a template with these filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)
