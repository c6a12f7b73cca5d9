"""What a unified model under training draws and answers, for its log: the same held-out samples each time.

Rank 0 alone makes them, from whole weights: nothing in it waits for another rank. Noise depends on a seed and
an image's number, and answers are the likeliest ones, so that only training changes either. B images of S by
S pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dualtoken.model.data_parallel import is_sharded, weightless_copy, whole_weights
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.processing import DualTokenProcessor
from dualtoken.model.mllm.saved import OpenedMllm, answering_config
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.inference.unified import MAX_ANSWER_IDS, DrawSettings, answer, draw, draw_settings
from dualtoken.pipelines.training.heldout_tokens import HeldoutTokens, read_heldout
from dualtoken.pipelines.training.train_context import RankContext

with vision_imports():
    from transformers import PreTrainedTokenizerBase

NUM_SHOWN = 6
"""Captions that are drawn, all together in one batch."""
NUM_ANSWERED = 3
"""Images that are described, and asked a question where the corpus has some."""


class _Asked(NamedTuple):
    """What is asked about an image."""

    image: int
    question: str | None
    """None asks for a description."""
    expected: str


class MllmPictures:
    """Drawings and answers of one training; `model` is the model before it is sharded."""

    def __init__(
        self,
        job: StageJob,
        context: RankContext,
        model: DualTokenForConditionalGeneration,
        text_tokenizer: PreTrainedTokenizerBase,
        scratch: Path,
    ) -> None:
        self._job = job
        self._context = context
        self._text_tokenizer = text_tokenizer
        self._scratch = scratch
        self._is_first = context.rank == 0
        self._copy: DualTokenForConditionalGeneration | None = None
        """The same model without weights, for those of all workers."""
        will_be_sharded = context.world_size > 1 and job.training.parallel == "fsdp2"
        if self._is_first and will_be_sharded and job.training.log_images_every:
            self._copy = weightless_copy(model)
        self._processor: DualTokenProcessor | None = None
        self._heldout: HeldoutTokens | None = None

    def drawings(self, model: DualTokenForConditionalGeneration) -> Mapping[str, Tensor]:
        """Return held-out images, as their own codes show them, above drawings of their captions.

        All workers call it together, and those of rank 0 return it. Nothing where the model cannot draw.
        """
        if "pixel" not in model.config.targets:
            return {}
        with self._opened(model) as opened:
            if opened is None:
                return {}
            shown = self._drawable(opened)
            if not shown:
                return {}
            heldout = self._samples()
            truths = opened.processor.decode_levels(heldout.pixel[shown])
            captions = [heldout.captions[number] for number in shown]
            [drawn] = draw(opened, captions, self._settings(opened))
        rows = torch.stack((truths, drawn.levels))
        # (2, B, 3, S, S) to (3, 2 S, B S)
        return {"drawings": rows.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)}

    def texts(self, model: DualTokenForConditionalGeneration) -> Mapping[str, str]:
        """Return the captions of the drawings, and answers beside those expected, as Markdown; likewise."""
        with self._opened(model) as opened:
            if opened is None or not self._samples().captions:
                return {}
            shown = self._drawable(opened)
            captions = [self._samples().captions[number] for number in shown]
            rows: list[tuple[str, ...]] = []
            for asked in self._asked(opened):
                codes = {
                    stream: of_stream[asked.image : asked.image + 1]
                    for stream, of_stream in self._samples().codes().items()
                }
                question = asked.question or "(a description)"
                rows.append((question, asked.expected, answer(opened, codes, asked.question)))
        texts = {"answers": _table(("question", "expected", "answer"), rows)}
        if "pixel" in model.config.targets:
            texts["captions"] = _table(("captions of the drawings",), [(caption,) for caption in captions])
        return texts

    @contextmanager
    def _opened(self, model: DualTokenForConditionalGeneration) -> Iterator[OpenedMllm | None]:
        """Open the model for the block on rank 0, with whole weights; None on the others."""
        plain = model
        if is_sharded(model):
            weights = whole_weights(model, keep=self._is_first)
            if self._copy is not None:
                self._copy.load_state_dict(weights, strict=False, assign=True)
                plain = self._copy
        if not self._is_first:
            yield None
            return
        was_training = plain.training
        # Modules that are made draw weights, which are loaded over.
        with torch.random.fork_rng(devices=()):
            processor = self._open_processor()
            assert processor.vision is not None
            plain.generation_config = answering_config(plain)
            nn.Module.to(processor.vision, self._context.device)
            plain.eval()
            try:
                yield OpenedMllm(plain, processor)
            finally:
                plain.train(was_training)
                # On a GPU the memory is the training's.
                nn.Module.to(processor.vision, "cpu")
                if self._copy is not None:
                    _drop_weights(self._copy)

    def _open_processor(self) -> DualTokenProcessor:
        if self._processor is None:
            folder = self._job.input("train").local_folder(self._scratch / "vision tokenizer")
            vision = DualTokenizer.from_pretrained(folder).eval()
            self._processor = DualTokenProcessor(self._text_tokenizer, vision)
        return self._processor

    def _samples(self) -> HeldoutTokens:
        if self._heldout is None:
            self._heldout = read_heldout(self._job, NUM_SHOWN, self._scratch / "held-out tokens")
        return self._heldout

    def _settings(self, opened: OpenedMllm) -> DrawSettings:
        """Return the settings of the recipe's `examine`, so that the report has the same drawings."""
        examine = self._job.recipe.examine
        drawing = examine.drawing(opened.model.config.drawing_config)
        return draw_settings(drawing, examine.seed, NUM_SHOWN)

    def _drawable(self, opened: OpenedMllm) -> list[int]:
        """Return the samples whose caption and image the trunk has room for."""
        positions = opened.model.config.image_positions
        fitting: list[int] = []
        for number, caption in enumerate(self._samples().captions):
            if _has_room(opened, len(opened.processor.drawing_prompt(caption)) + positions):
                fitting.append(number)
        return fitting

    def _asked(self, opened: OpenedMllm) -> Iterator[_Asked]:
        """Yield a description and a question about each of the first images, as far as there is room."""
        heldout = self._samples()
        for image, caption in enumerate(heldout.captions[:NUM_ANSWERED]):
            asked = [_Asked(image, None, caption)]
            if heldout.questions[image]:
                # Another one about each image: their subjects come in one order.
                question = heldout.questions[image][image % len(heldout.questions[image])]
                asked.append(_Asked(image, question.question, question.answer))
            for one in asked:
                prompt = opened.processor.prompt_ids(opened.processor.chat_prompt(one.question))
                if _has_room(opened, len(prompt) + MAX_ANSWER_IDS):
                    yield one


def _has_room(opened: OpenedMllm, num_positions: int) -> bool:
    return num_positions <= opened.model.config.text_config.max_position_embeddings


def _drop_weights(model: nn.Module) -> None:
    """Let go of a model's weights; its buffers stay."""
    parameters = model.named_parameters(remove_duplicate=False)
    empty = {name: parameter.to("meta") for name, parameter in parameters}
    model.load_state_dict(empty, strict=False, assign=True)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    written: list[str] = []
    for line in lines:
        cells = [" ".join(cell.split()).replace("|", "\\|") for cell in line]
        written.append(f"| {' | '.join(cells)} |")
    return "\n".join(written)
