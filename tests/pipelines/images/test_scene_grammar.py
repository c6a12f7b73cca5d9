"""The grammar of scenes read backwards: every caption that it composes, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from dualtoken.pipelines.images.scene_captions import COLOURS, QUADRANTS, SHAPES, compose
from dualtoken.pipelines.images.scene_grammar import DescribedObject, parse_caption

objects = st.builds(
    DescribedObject,
    shape=st.sampled_from(SHAPES),
    colour=st.sampled_from(COLOURS),
    size=st.sampled_from(("small", "large")),
    quadrant=st.sampled_from(QUADRANTS),
)


@given(first=objects, second=objects, wording=st.integers(0, 2**64 - 1))
def test_every_composed_caption_is_read_back(
    first: DescribedObject, second: DescribedObject, wording: int
) -> None:
    read = parse_caption(compose((first, second), wording))
    assert read is not None
    assert sorted(read) == sorted((first, second))


def test_other_text_is_no_caption() -> None:
    whole = "a small red ring at the top left and a large blue cross at the top right"
    assert parse_caption(whole) is not None
    assert parse_caption(f"{whole} and") is None
    assert parse_caption(whole.replace("red", "pink")) is None
    assert parse_caption(whole.replace("at the top right", "")) is None
    assert parse_caption("") is None
