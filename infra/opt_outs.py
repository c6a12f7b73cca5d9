"""Opt-outs that a server states in its X-Robots-Tag headers.

The grammar is Google's: `[agent:] directive, directive, ...`. A directive may have a value after a colon of
its own (`max-snippet: -1`), and a list may turn to another agent in its middle. Directives before the first
agent are for everybody.
"""

import re
from collections.abc import Iterable

OPT_OUTS = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
"""Directives that ask not to be used; `none` is `noindex, nofollow`."""
_DIRECTIVES = OPT_OUTS | frozenset(
    {
        *("all", "index", "follow", "nofollow", "noarchive", "nocache", "nosnippet", "notranslate"),
        *("noodp", "noydir", "nositelinkssearchbox", "indexifembedded", "unavailable_after"),
        *("max-snippet", "max-image-preview", "max-video-preview"),
    }
)
"""Known directives. What stands with a colon before one of them is an agent."""
_COLON = re.compile(r"\s*([a-z0-9*_.+/-]+)\s*:\s*(.*)", re.DOTALL)
_EVERYBODY = "*"


def opts_out(headers: Iterable[str], agent: str) -> bool:
    """Tell whether any of the headers asks everybody, or this agent, not to use what it comes with."""
    return any(_header_opts_out(header.lower(), agent.lower()) for header in headers)


def _header_opts_out(header: str, agent: str) -> bool:
    addressed = _EVERYBODY
    for part in re.split("[,;]", header):
        directive = part
        found = _COLON.fullmatch(part)
        if found is not None and _is_agent(found[1], found[2]):
            addressed = found[1].partition("/")[0]
            directive = found[2]
        is_addressed = addressed in {_EVERYBODY, agent}
        if is_addressed and not OPT_OUTS.isdisjoint(directive.split()):
            return True
    return False


def _is_agent(name: str, rest: str) -> bool:
    """Tell an agent in front of a directive from a directive in front of its value, such as a date."""
    first_word = re.split(r"[\s:]", rest, maxsplit=1)[0]
    return name not in _DIRECTIVES and first_word in _DIRECTIVES
