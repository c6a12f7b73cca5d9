"""Opt-outs in X-Robots-Tag headers."""

import pytest

from dualtoken.infra.opt_outs import opts_out
from tests.helpers.scripted_server import get, reason, reply, serving


@pytest.mark.parametrize(
    "header",
    [
        "noai",
        "NoImageAI",
        "noml",
        "none",
        "noindex",
        "noimageindex",
        "max-image-preview:large, noai",
        "noai, max-snippet:-1",
        "max-snippet: -1, max-video-preview: 5, noai",
        "googlebot: noindex, dualtoken: noai",
        "dualtoken: max-image-preview:large, noai",
        "DualToken/1.0: NOAI",
        "googlebot: nofollow, *: noai",
        "unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
        "unavailable_after: Saturday, 25-Jun-10 15:00:00 PST, noai",
        "noai, unavailable_after: 2010-06-25T15:00:00Z",
        "something-new: 3, noai",
        "nofollow; noai",
        "noarchive noai",
        ",,noai,",
    ],
)
def test_an_opt_out_is_seen_beside_whatever_stands_there(header: str) -> None:
    assert opts_out([header], "dualtoken")
    assert opts_out(["all", header, "nofollow"], "dualtoken")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "all",
        "index, follow",
        "noarchive, nosnippet",
        "max-image-preview:none",
        "otherbot: noai",
        "otherbot: noindex, noai",
        "otherbot: max-snippet:5, noai",
        "otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
        "dualtoken: all, otherbot: none",
        "unavailable_after: 25 Jun 2010 15:00:00 PST",
    ],
)
def test_what_asks_another_agent_or_nothing_is_no_opt_out(header: str) -> None:
    assert not opts_out([header], "dualtoken")


def test_an_agent_of_one_header_is_not_that_of_the_next() -> None:
    assert opts_out(["otherbot: nofollow", "noai"], "dualtoken")


def test_a_servers_opt_out_is_the_rows_reason() -> None:
    with serving(reply(b"picture", X_Robots_Tag="googlebot: noindex, dualtoken: noai")) as server:
        assert reason(get(server.base)) == "opted_out"
