"""Examine stage: asks the unified model about held-out images, and lets it describe and draw them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.mllm.saved import open_mllm
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.evaluation.asked_questions import chosen_questions, question_scores
from dualtoken.pipelines.evaluation.described_captions import keyword_scores, training_keywords
from dualtoken.pipelines.evaluation.described_scenes import describe, description_scores
from dualtoken.pipelines.evaluation.drawn_pictures import (
    DrawnPictures,
    embed_codes,
    embed_pictures,
    nearest_pictures,
)
from dualtoken.pipelines.evaluation.drawn_scenes import draw_all, drawing_scores, read_all
from dualtoken.pipelines.evaluation.examination import (
    EXAMINATION,
    Examination,
    NearestPictures,
    ShownAnswer,
    ShownCaption,
    ShownDrawing,
)
from dualtoken.pipelines.evaluation.original_pictures import original_pictures
from dualtoken.pipelines.evaluation.scene_readings import AttributeCounter, reading_caption
from dualtoken.pipelines.images.scene_generator import IMAGE_SIZE
from dualtoken.pipelines.inference.networks import prepare_process, stage_device
from dualtoken.pipelines.inference.unified import DrawSettings, answer, draw_settings
from dualtoken.pipelines.training.heldout_tokens import HeldoutTokens, read_heldout

RECONSTRUCTED_TOGETHER = 256
"""Images that are decoded together."""


class Worker:
    """Examines the model of a run."""

    def __init__(self, job: StageJob) -> None:
        self._job = job
        # As many threads wherever the stage runs: others give other last bits.
        prepare_process(threads=int(job.asks.cpus))
        self._facts: dict[str, float] = {}
        """Facts of the receipt, which are no part of the output."""
        self._device = stage_device(job)

    def run(self, unit: Unit, scratch: Path) -> UnitOutput:
        """Write `examination.json`, and the pictures that the report shows."""
        assert unit.rows == 0
        config = self._job.recipe.examine
        folder = self._job.input("mllm").local_folder(scratch / "inputs")
        self._opened = open_mllm(str(folder), self._device)
        heldout = read_heldout(self._job, config.num_images, scratch / "tokens")
        examination = self._examine(heldout, scratch)
        (scratch / EXAMINATION).write_text(examination.model_dump_json(indent=1), encoding="utf-8")
        pictures = sorted(path.name for path in scratch.glob("*.png"))
        return UnitOutput((EXAMINATION, *pictures), None, facts=self._facts)

    def _examine(self, heldout: HeldoutTokens, scratch: Path) -> Examination:
        config = self._job.recipe.examine
        opened = self._opened
        truths = self._reconstructions(heldout)
        are_scenes = heldout.are_scenes and truths.shape[-1] == IMAGE_SIZE
        readings = read_all(truths) if are_scenes else []
        found = Examination()
        questions = chosen_questions(heldout)
        if questions:
            scores = question_scores(opened, heldout, questions, readings)
            found = found.model_copy(update={"questions": scores})
        num_described = max(config.num_descriptions, config.num_shown)
        described_codes = {stream: codes[:num_described] for stream, codes in heldout.codes().items()}
        texts = describe(opened, described_codes)
        shown = shown_samples(len(texts), config.num_shown)
        if are_scenes:
            described, parsed = description_scores(texts, heldout)
            found = found.model_copy(update={"descriptions": described, "described_by_grammar": parsed})
        else:
            known = training_keywords(self._job, scratch / "tokens")
            overlaps = keyword_scores(texts, heldout.captions[: len(texts)], known)
            found = found.model_copy(update={"keywords": overlaps})
        captions = heldout.captions[: config.num_drawings]
        if "pixel" in opened.model.config.targets:
            drawn = draw_all(opened, captions, self._settings())
            self._facts["images_per_second"] = round(drawn.images_per_second, 1)
            plain = draw_all(opened, captions, self._settings()._replace(guidance_scale=1.0))
            if are_scenes:
                told = drawing_scores(
                    read_all(drawn.levels), read_all(plain.levels), readings[: len(captions)], heldout
                )
                found = found.model_copy(update={"drawings": told.scores, "whole_drawings": told.whole})
            else:
                nearest = self._nearest(drawn.levels, plain.levels, truths, heldout)
                found = found.model_copy(update={"nearest": nearest})
            captions_shown = self._shown_captions(
                heldout, shown, truths, texts, scratch, are_scenes=are_scenes
            )
            found = found.model_copy(update={"captions": tuple(captions_shown)})
        answers = tuple(self._shown_answers(heldout, shown, truths, scratch))
        return found.model_copy(update={"answers": answers})

    def _nearest(
        self,
        guided: UInt8[Tensor, "B 3 S S"],
        unguided: UInt8[Tensor, "B 3 S S"],
        truths: UInt8[Tensor, "N 3 S S"],
        heldout: HeldoutTokens,
    ) -> NearestPictures | None:
        """Compare drawings of the first captions with all true pictures; empty captions are left out."""
        vision = self._opened.processor.vision
        assert vision is not None
        own = [number for number, caption in enumerate(heldout.captions[: len(guided)]) if caption.strip()]
        if not own:
            return None
        drawn = DrawnPictures(
            guided=embed_pictures(vision, guided[own]),
            unguided=embed_pictures(vision, unguided[own]),
            reconstructed=embed_pictures(vision, truths[own]),
        )
        return nearest_pictures(drawn, embed_codes(vision, heldout.semantic), own)

    def _settings(self) -> DrawSettings:
        config = self._job.recipe.examine
        drawing = config.drawing(self._opened.model.config.drawing_config)
        return draw_settings(drawing, config.seed, config.batch_size)

    def _reconstructions(self, heldout: HeldoutTokens) -> UInt8[Tensor, "B 3 S S"]:
        """Return the held-out images as their codes tell them: the best that drawings can be."""
        decoded: list[Tensor] = []
        for codes in heldout.pixel.split(RECONSTRUCTED_TOGETHER):
            decoded.append(self._opened.processor.decode_levels(codes))
        return torch.cat(decoded)

    def _shown_captions(
        self,
        heldout: HeldoutTokens,
        shown: Sequence[int],
        truths: Tensor,
        texts: Sequence[str],
        scratch: Path,
        *,
        are_scenes: bool,
    ) -> Iterator[ShownCaption]:
        config = self._job.recipe.examine
        repeated = [heldout.captions[sample] for sample in shown for _ in range(config.drawings_shown)]
        levels = draw_all(self._opened, repeated, self._settings()).levels
        readings = read_all(levels) if are_scenes else None
        originals = self._originals([heldout.keys[sample] for sample in shown], scratch)
        for number, sample in enumerate(shown):
            drawings: list[ShownDrawing] = []
            for place in range(config.drawings_shown):
                index = number * config.drawings_shown + place
                name = f"drawing-{sample:04d}-{place}.png"
                _save(levels[index], scratch / name)
                drawing = ShownDrawing(picture=name)
                if readings is not None:
                    is_right = AttributeCounter().add(
                        readings[index], heldout.descriptions[sample]["objects"]
                    )
                    drawing = ShownDrawing(
                        picture=name, reading=reading_caption(readings[index]), is_right=is_right
                    )
                drawings.append(drawing)
            truth = f"truth-{sample:04d}.png"
            _save(truths[sample], scratch / truth)
            original = None
            if heldout.keys[sample] in originals:
                original = f"original-{sample:04d}.png"
                _save(originals[heldout.keys[sample]][0], scratch / original)
            yield ShownCaption(
                caption=heldout.captions[sample],
                truth=truth,
                original=original,
                description=texts[sample],
                drawings=tuple(drawings),
            )

    def _originals(self, keys: Sequence[bytes], scratch: Path) -> dict[bytes, UInt8[Tensor, "1 3 S S"]]:
        """Return held-out images as the tokenizer sees them, by key."""
        vision = self._opened.processor.vision
        assert vision is not None
        transform = vision.transform
        return original_pictures(
            self._job, keys, lambda picture: transform.levels([picture]), scratch / "images"
        )

    def _shown_answers(
        self, heldout: HeldoutTokens, shown: Sequence[int], truths: Tensor, scratch: Path
    ) -> Iterator[ShownAnswer]:
        """Yield the answers to the shown images' questions, one of each kind."""
        questions = chosen_questions(heldout)
        for sample, asked in questions:
            if sample not in shown:
                continue
            name = f"truth-{sample:04d}.png"
            if not (scratch / name).exists():
                _save(truths[sample], scratch / name)
            codes = {stream: codes[sample : sample + 1] for stream, codes in heldout.codes().items()}
            text = answer(self._opened, codes, asked.question)
            yield ShownAnswer(picture=name, question=asked.question, answer=text, expected=asked.answer)


def shown_samples(num_samples: int, num_shown: int) -> list[int]:
    """Return samples to show, evenly spread over the first ones: neighbours in a table are often alike."""
    num_shown = min(num_samples, num_shown)
    return [place * num_samples // num_shown for place in range(num_shown)]


def _save(levels: UInt8[Tensor, "3 S S"], file: Path) -> None:
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(file)
