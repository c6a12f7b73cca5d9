"""What the oracle reads in pictures of scenes, against what was drawn in them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from dualtoken.pipelines.evaluation.report_data import ReadingAccuracy, SceneReadings
from dualtoken.pipelines.evaluation.scene_oracle import ReadObject, read_scenes
from dualtoken.pipelines.images.scene_captions import QUADRANTS, Described, canonical_phrase

CHANCE = {"place": 1 / 2, "shape": 1 / 6, "colour": 1 / 8, "size": 1 / 2}
"""Accuracy of guessing by attribute, for an object whose place is known; two of the four places have one."""


class PictureReading(NamedTuple):
    """What the oracle reads in one picture."""

    text: str
    """The objects read, in the words of a caption."""
    is_right: bool
    """Whether every attribute of every object is read as it was drawn."""


class AttributeCounter:
    """Counts, over scenes, the objects whose attributes are found as they were drawn, at their place."""

    def __init__(self) -> None:
        self.num_objects = 0
        self._num_right = dict.fromkeys(CHANCE, 0)

    def accuracy(self, attribute: str) -> float:
        """Return the share of objects whose attribute is found as drawn, in the place where they are."""
        return self._num_right[attribute] / self.num_objects

    def add(self, found: Sequence[Described], drawn: Sequence[Mapping[str, Any]]) -> bool:
        """Count a scene's objects, and tell whether all are found as they were drawn."""
        found_by_place = {read.quadrant: read for read in found}
        is_right = True
        for placed in drawn:
            self.num_objects += 1
            right = _right_attributes(found_by_place.get(placed["quadrant"]), placed)
            for attribute in right:
                self._num_right[attribute] += 1
            is_right = is_right and len(right) == len(CHANCE)
        return is_right


class ReadingCounter:
    """Counts, over pictures of scenes, the objects whose attributes are read as they were drawn."""

    def __init__(self) -> None:
        self.num_pictures = 0
        self._attributes = AttributeCounter()

    def add(
        self, pictures: UInt8[Tensor, "B 3 64 64"], descriptions: Sequence[Mapping[str, Any]]
    ) -> list[PictureReading]:
        """Count pictures, and return what is read in each; `descriptions` are those of the generator."""
        readings: list[PictureReading] = []
        for found, description in zip(read_scenes(pictures), descriptions, strict=True):
            is_right = self._attributes.add(found, description["objects"])
            readings.append(PictureReading(reading_caption(found), is_right))
        self.num_pictures += len(readings)
        return readings

    def accuracy(self, attribute: str) -> float:
        """Return the share of objects whose attribute is read as drawn, in the place where they are."""
        return self._attributes.accuracy(attribute)


def compared_readings(originals: ReadingCounter, reconstructions: ReadingCounter) -> SceneReadings | None:
    """Return the accuracy of readings from reconstructions beside their ceiling; None without pictures."""
    if not originals.num_pictures:
        return None
    attributes: list[ReadingAccuracy] = []
    for name, chance in CHANCE.items():
        accuracy = ReadingAccuracy(
            name=name,
            original=originals.accuracy(name),
            reconstruction=reconstructions.accuracy(name),
            chance=chance,
        )
        attributes.append(accuracy)
    return SceneReadings(num_images=originals.num_pictures, attributes=tuple(attributes))


def oracle_answer(found: Sequence[ReadObject], kind: str, question: str) -> str | None:
    """Return what a reading answers to a scene's question; None for kinds that it cannot tell.

    An object that was not found answers with nothing, which is never right.
    """
    words = question.rstrip("?")
    if kind in ("shape", "colour", "size"):
        for read in found:
            if words.endswith(f"at the {read.quadrant}"):
                return str(getattr(read, kind))
        return ""
    if kind == "place":
        for read in found:
            if words == f"where is the {read.size} {read.colour} {read.shape}":
                return read.quadrant
        return ""
    return None


def attribute_shares(found: Sequence[Described], told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return by attribute the share of a scene's objects that are found as told at their place.

    `whole` is 1 where all of them are, in everything.
    """
    counter = AttributeCounter()
    is_whole = counter.add(found, told)
    shares = {attribute: counter.accuracy(attribute) for attribute in CHANCE}
    shares["whole"] = float(is_whole)
    return shares


def anywhere_shares(found: Sequence[Described], told: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the shares of a scene's objects that are found wherever they are; each object counts for one.

    `object` asks for the shape alone, `binding` for shape, colour and size of one and the same object.
    """
    return {
        "object": _found_share(found, told, ("shape",)),
        "binding": _found_share(found, told, ("shape", "colour", "size")),
    }


def _found_share(
    found: Sequence[Described], told: Sequence[Mapping[str, Any]], attributes: Sequence[str]
) -> float:
    there = Counter(tuple(getattr(one, name) for name in attributes) for one in found)
    wanted = Counter(tuple(placed[name] for name in attributes) for placed in told)
    return (there & wanted).total() / wanted.total()


def _right_attributes(read: Described | None, placed: Mapping[str, Any]) -> list[str]:
    """Return the attributes of an object that are read as they were drawn; none where its place is missed."""
    if read is None:
        return []
    right = ["place"]
    for attribute in ("shape", "colour", "size"):
        if getattr(read, attribute) == placed[attribute]:
            right.append(attribute)
    return right


def reading_caption(found: Sequence[ReadObject]) -> str:
    """Return what was read as a caption, objects in the order of their places."""
    in_order = sorted(found, key=lambda read: QUADRANTS.index(read.quadrant))
    return canonical_phrase(in_order)
