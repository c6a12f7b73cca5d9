"""Uses a saved unified model: draws images for prompts, answers questions about images, describes them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.config.drawing import DrawingConfig
from dualtoken.model.mllm.generation import draw_codes, noise_of_images
from dualtoken.model.mllm.sampling import Sampling, check_guidance_scale, check_unread_share
from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.model.vision.image_files import ImageFileError, open_image
from dualtoken.model.vision.imports import vision_imports
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.images.samples import batched
from dualtoken.pipelines.inference.networks import best_device, prepare_process

with vision_imports():
    from transformers.generation.streamers import BaseStreamer

MAX_ANSWER_IDS = 64
"""Ids of an answer or a description at most."""
SHEET_GAP = 4
"""Pixels between the pictures of a contact sheet."""
PROMPT_STEP = 32
"""Prompts that are to be drawn alike in any batch are padded to a multiple of so many ids."""

ImageCodes = Mapping[str, Int[Tensor, "B N D"]]
"""Codes of images by stream."""


class DrawSettings(NamedTuple):
    """How images are drawn."""

    guidance_scale: float
    """Scale of classifier-free guidance; 1 draws without it."""
    sampling: Sampling
    seed: int = 0
    batch_size: int = 64
    """Images that are drawn together; an image does not depend on it."""
    unread_share: float = 0.0
    """Share of the positions whose own codes are not read while the rest is drawn."""
    shared_noise: bool = False
    """Whether one noise serves all positions of an image."""

    def check(self) -> None:
        """Raise ValueError for settings out of range."""
        self.sampling.check()
        check_guidance_scale(self.guidance_scale)
        check_unread_share(self.unread_share)


def draw_settings(drawing: DrawingConfig, seed: int, batch_size: int) -> DrawSettings:
    """Return the settings of a configuration."""
    sampling = Sampling(drawing.temperature, drawing.top_k, drawing.top_p)
    return DrawSettings(
        drawing.guidance_scale, sampling, seed, batch_size, drawing.unread_share, drawing.shared_noise
    )


class Drawn(NamedTuple):
    """Images of one batch."""

    first: int
    """Number of the first image, in the order of prompts."""
    levels: UInt8[Tensor, "B 3 S S"]
    """Levels 0 to 255."""


def open_model(name: str, device: torch.device | None = None) -> OpenedMllm:
    """Open a saved model, by default on the GPU if there is one; raises `UserError` where it is none."""
    prepare_process(threads=None)
    try:
        return open_mllm(name, device or best_device())
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error


def draw(
    opened: OpenedMllm,
    captions: Sequence[str],
    settings: DrawSettings,
    told: Callable[[float], None] = lambda _: None,
) -> Iterator[Drawn]:
    """Yield the images of captions, in order, a batch at a time; image n has noise n of the seed.

    `told` hears of the share of all positions that are drawn. Raises `UserError` for a caption that is too
    long, and for settings out of range.
    """
    try:
        settings.check()
    except ValueError as error:
        raise UserError(str(error)) from None
    config = opened.model.config
    if "pixel" not in config.targets:
        raise UserError(f"the model predicts {', '.join(config.targets) or 'text alone'}: it cannot draw")
    prompts = [_drawing_prompt(opened, caption) for caption in captions]
    num_positions = len(captions) * config.image_positions
    for first in range(0, len(prompts), settings.batch_size):
        batch = prompts[first : first + settings.batch_size]

        def told_position(position: int, first: int = first, size: int = len(batch)) -> None:
            done = first * config.image_positions + (position + 1) * size
            told(done / num_positions)

        numbers = range(first, first + len(batch))
        yield Drawn(first, _draw_batch(opened, batch, numbers, settings, told=told_position))


def draw_numbered(
    opened: OpenedMllm, captions: Sequence[str], numbers: Sequence[int], settings: DrawSettings
) -> UInt8[Tensor, "B 3 S S"]:
    """Return an image of each caption, with the noise of its number.

    Batches have one shape, which follows from a caption alone: they are padded by images that are dropped. So
    to the last bit, no image depends on those beside it. Raises `UserError` as `draw`.
    """
    settings.check()
    by_length: dict[int, list[int]] = {}
    prompts = [_drawing_prompt(opened, caption) for caption in captions]
    for place, prompt in enumerate(prompts):
        by_length.setdefault(-(-len(prompt) // PROMPT_STEP) * PROMPT_STEP, []).append(place)
    drawn: dict[int, Tensor] = {}
    for length, places in by_length.items():
        for batch in batched(places, settings.batch_size):
            padded = [*batch, *[batch[-1]] * (settings.batch_size - len(batch))]
            levels = _draw_batch(
                opened,
                [prompts[place] for place in padded],
                [numbers[place] for place in padded],
                settings,
                prompt_length=length,
            )
            drawn.update(zip(batch, levels, strict=False))
    return torch.stack([drawn[place] for place in range(len(captions))])


def _draw_batch(
    opened: OpenedMllm,
    prompts: Sequence[Sequence[int]],
    numbers: Sequence[int],
    settings: DrawSettings,
    *,
    prompt_length: int = 0,
    told: Callable[[int], None] = lambda _: None,
) -> UInt8[Tensor, "B 3 S S"]:
    model, processor = opened
    noise = noise_of_images(
        model, settings.seed, numbers, settings.unread_share, shared=settings.shared_noise
    )
    codes = draw_codes(
        model,
        prompts,
        noise.codes,
        unconditional=processor.drawing_prompt(""),
        guidance_scale=settings.guidance_scale,
        sampling=settings.sampling,
        unread=noise.unread,
        prompt_length=prompt_length,
        told=told,
    )
    # On a CPU one by one, which takes no longer: last bits depend on how many images are decoded together.
    decoded_together = 1 if model.device.type == "cpu" else len(prompts)
    return torch.cat([processor.decode_levels(part) for part in codes["pixel"].split(decoded_together)])


def _drawing_prompt(opened: OpenedMllm, caption: str) -> list[int]:
    prompt = opened.processor.drawing_prompt(caption)
    config = opened.model.config
    require_room(opened, len(prompt) + config.image_positions, f"the prompt {caption[:40]!r}")
    return prompt


def require_room(opened: OpenedMllm, num_positions: int, what: str) -> None:
    """Raise `UserError` for what is longer than the trunk's context."""
    most = opened.model.config.text_config.max_position_embeddings
    if num_positions > most:
        raise UserError(f"{what} takes {num_positions} positions, the model reads {most}: shorten it")


def draw_files(
    opened: OpenedMllm,
    captions: Sequence[str],
    num_images: int,
    settings: DrawSettings,
    out: Path,
    print_line: Callable[[str], None],
) -> list[Path]:
    """Write `num_images` PNGs for each caption, and a contact sheet with a row for each; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    repeated = [caption for caption in captions for _ in range(num_images)]
    progress = _Progress(len(repeated), print_line)
    files: list[Path] = []
    rows: list[Tensor] = []
    for drawn in draw(opened, repeated, settings, progress.told):
        for place, levels in enumerate(drawn.levels):
            caption_number, number = divmod(drawn.first + place, num_images)
            file = out / f"{caption_number:04d}-{number:02d}.png"
            Image.fromarray(levels.permute(1, 2, 0).numpy()).save(file)
            files.append(file)
        rows.append(drawn.levels)
    sheet = out / "sheet.png"
    contact_sheet(torch.cat(rows), num_images).save(sheet)
    files.append(sheet)
    lines = [f"{number:04d}\t{caption}" for number, caption in enumerate(captions)]
    (out / "prompts.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def contact_sheet(levels: UInt8[Tensor, "B 3 S S"], num_columns: int) -> Image.Image:
    """Return pictures side by side on white, `num_columns` in a row."""
    size = levels.shape[-1] + SHEET_GAP
    num_rows = -(-len(levels) // num_columns)
    sheet = Image.new("RGB", (num_columns * size + SHEET_GAP, num_rows * size + SHEET_GAP), "white")
    for number, picture in enumerate(levels):
        row, column = divmod(number, num_columns)
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        sheet.paste(image, (SHEET_GAP + column * size, SHEET_GAP + row * size))
    return sheet


class _Progress:
    """Prints how many images are drawn and when all will be, every few seconds."""

    SECONDS = 5.0

    def __init__(self, num_images: int, print_line: Callable[[str], None]) -> None:
        self._num_images = num_images
        self._print_line = print_line
        self._started = time.monotonic()
        self._told = self._started

    def told(self, share: float) -> None:
        """Hear of the share that is done."""
        now = time.monotonic()
        if now < self._told + self.SECONDS:
            return
        self._told = now
        passed = now - self._started
        left = passed / share - passed
        done = share * self._num_images
        self._print_line(
            f"{done:.0f} of {self._num_images} images, {done / passed:.1f} a second, {left:.0f} s left"
        )


class _TextPieces(BaseStreamer):
    """Hands an answer over as it grows, in whole characters."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._write = write
        self._ids: list[int] = []
        self._written = ""
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        """Take the prompt, and after it one id at a time."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += value.flatten().tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()
        # A character of several ids is not whole yet.
        if not text.endswith("\ufffd"):
            self._write(text[len(self._written) :])
            self._written = text

    def end(self) -> None:
        """Do nothing: the caller ends the line."""


def ask(
    opened: OpenedMllm, image: str, question: str | None, write: Callable[[str], None] = lambda _: None
) -> str:
    """Return the answer to a question about an image file, or a description of it; `write` gets the pieces.

    Raises `UserError` for a file that gives no picture, and for a question that is too long.
    """
    try:
        picture = open_image(image, decode=decode_rgb)
    except ImageFileError as error:
        raise UserError(str(error)) from error
    codes = opened.processor.encode_images(picture)
    by_stream = {"semantic": codes.semantic.flatten(1, 2), "pixel": codes.pixel.flatten(1, 2)}
    return answer(opened, by_stream, question, write)


def answer(
    opened: OpenedMllm,
    codes: Mapping[str, Int[Tensor, "1 N D"]],
    question: str | None,
    write: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the likeliest answer about one image's codes, as `ask`."""
    model, processor = opened
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    ids = torch.tensor([processor.prompt_ids(processor.chat_prompt(question))], device=model.device)
    num_ids = ids.shape[1]
    require_room(opened, num_ids + MAX_ANSWER_IDS, "the question")
    on_device = {stream: of_stream.to(model.device) for stream, of_stream in codes.items()}
    generated = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        streamer=_TextPieces(tokenizer, write),
        max_new_tokens=MAX_ANSWER_IDS,
        generation_mode="text",
        **on_device,
    )
    assert isinstance(generated, Tensor)
    return str(tokenizer.decode(generated[0, num_ids:], skip_special_tokens=True)).strip()
