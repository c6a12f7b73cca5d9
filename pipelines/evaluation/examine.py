"""Examine stage: asks the unified model about held-out images, and lets it describe and draw them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.mllm.sampling import Sampling
from dualtoken.model.mllm.saved import open_mllm
from dualtoken.pipelines.core.stage import StageJob, Unit, UnitOutput
from dualtoken.pipelines.evaluation.asked_questions import chosen_questions, question_scores
from dualtoken.pipelines.evaluation.described_scenes import describe, description_scores
from dualtoken.pipelines.evaluation.drawn_scenes import draw_all, drawing_scores, read_all
from dualtoken.pipelines.evaluation.examination import (
    EXAMINATION,
    Examination,
    ShownAnswer,
    ShownCaption,
    ShownDrawing,
)
from dualtoken.pipelines.evaluation.scene_readings import AttributeCounter, reading_caption
from dualtoken.pipelines.images.scene_generator import IMAGE_SIZE
from dualtoken.pipelines.inference.networks import prepare_process, stage_device
from dualtoken.pipelines.inference.unified import DrawSettings, answer
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
        texts = describe(opened, heldout, max(config.num_descriptions, config.num_shown))
        if are_scenes:
            described, parsed = description_scores(texts, heldout)
            found = found.model_copy(update={"descriptions": described, "described_by_grammar": parsed})
        captions = heldout.captions[: config.num_drawings]
        if "pixel" in opened.model.config.targets:
            drawn = draw_all(opened, captions, self._settings())
            self._facts["images_per_second"] = round(drawn.images_per_second, 1)
            if are_scenes:
                plain = draw_all(opened, captions, self._settings()._replace(guidance_scale=1.0))
                told = drawing_scores(
                    read_all(drawn.levels), read_all(plain.levels), readings[: len(captions)], heldout
                )
                found = found.model_copy(update={"drawings": told.scores, "whole_drawings": told.whole})
            shown = tuple(self._shown_captions(heldout, truths, texts, scratch, are_scenes=are_scenes))
            found = found.model_copy(update={"captions": shown})
        answers = tuple(self._shown_answers(heldout, truths, scratch))
        return found.model_copy(update={"answers": answers})

    def _settings(self) -> DrawSettings:
        config = self._job.recipe.examine
        sampling = Sampling(config.temperature, config.top_k, config.top_p)
        return DrawSettings(config.guidance_scale, sampling, config.seed, config.batch_size)

    def _reconstructions(self, heldout: HeldoutTokens) -> UInt8[Tensor, "B 3 S S"]:
        """Return the held-out images as their codes tell them: the best that drawings can be."""
        decoded: list[Tensor] = []
        for codes in heldout.pixel.split(RECONSTRUCTED_TOGETHER):
            decoded.append(self._opened.processor.decode_levels(codes))
        return torch.cat(decoded)

    def _shown_captions(
        self, heldout: HeldoutTokens, truths: Tensor, texts: Sequence[str], scratch: Path, *, are_scenes: bool
    ) -> Iterator[ShownCaption]:
        config = self._job.recipe.examine
        captions = heldout.captions[: config.num_shown]
        repeated = [caption for caption in captions for _ in range(config.drawings_shown)]
        levels = draw_all(self._opened, repeated, self._settings()).levels
        readings = read_all(levels) if are_scenes else None
        for number, caption in enumerate(captions):
            drawings: list[ShownDrawing] = []
            for place in range(config.drawings_shown):
                index = number * config.drawings_shown + place
                name = f"drawing-{number:02d}-{place}.png"
                _save(levels[index], scratch / name)
                drawing = ShownDrawing(picture=name)
                if readings is not None:
                    is_right = AttributeCounter().add(
                        readings[index], heldout.descriptions[number]["objects"]
                    )
                    drawing = ShownDrawing(
                        picture=name, reading=reading_caption(readings[index]), is_right=is_right
                    )
                drawings.append(drawing)
            truth = f"truth-{number:02d}.png"
            _save(truths[number], scratch / truth)
            yield ShownCaption(
                caption=caption, truth=truth, description=texts[number], drawings=tuple(drawings)
            )

    def _shown_answers(self, heldout: HeldoutTokens, truths: Tensor, scratch: Path) -> Iterator[ShownAnswer]:
        """Yield the answers to the first images' questions, one of each kind."""
        questions = chosen_questions(heldout)
        for sample, asked in questions:
            if sample >= self._job.recipe.examine.num_shown:
                return
            name = f"truth-{sample:02d}.png"
            if not (scratch / name).exists():
                _save(truths[sample], scratch / name)
            codes = {stream: codes[sample : sample + 1] for stream, codes in heldout.codes().items()}
            text = answer(self._opened, codes, asked.question)
            yield ShownAnswer(picture=name, question=asked.question, answer=text, expected=asked.answer)


def _save(levels: UInt8[Tensor, "3 S S"], file: Path) -> None:
    Image.fromarray(levels.permute(1, 2, 0).numpy()).save(file)
