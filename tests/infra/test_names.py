"""A name from outside leads to a place below its folder, or is refused."""

import pytest

from dualtoken.infra.names import UnsafeNameError, relative_name, single_name
from tests.helpers.names import UNSAFE_NAMES

SAFE_NAMES = (
    "00000.tar",
    "data/00000.arrow",
    ".hidden/.probe-1",
    "a..b/...",
    "Bilder/Äpfel & Birnen.jpg",
    "a\\b.jpg",
    "ends with a dot.",
    "tar.gz/:x",
)


@pytest.mark.parametrize("name", SAFE_NAMES)
def test_a_name_below_its_folder_is_given_back_as_it_is(name: str) -> None:
    assert relative_name(name) == name


@pytest.mark.parametrize("name", ["", *UNSAFE_NAMES])
def test_a_name_that_leads_elsewhere_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UnsafeNameError, match=r"is no name of a file below s3://b/a") as error:
        relative_name(name, "s3://b/a")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a/b", "a\\b", *UNSAFE_NAMES])
def test_a_name_of_several_parts_is_no_single_one(name: str) -> None:
    with pytest.raises(UnsafeNameError):
        single_name(name)
