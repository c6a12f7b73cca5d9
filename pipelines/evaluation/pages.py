"""What all pages share: how templates are read, and their style sheets `page_*.css.jinja`."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def page_environment(*folders: Path) -> Environment:
    """Return an environment that reads templates of some folders, and those of this room.

    Captions, reasons with URLs and recipes come from elsewhere: nothing reaches a page unescaped but charts,
    which escape their own.
    """
    return Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
