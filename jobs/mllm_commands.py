"""The commands that use a saved unified model: `generate`, `ask`, `describe`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dualtoken.jobs.options import RootOption, SetOption
from dualtoken.jobs.output_paths import ANOTHER_PLACE
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.jobs.stage_places import UNIFIED, RecipeOptions, find_model
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import ExitCode, UserError

if TYPE_CHECKING:
    from dualtoken.model.mllm.saved import OpenedMllm

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A recipe whose unified model is trained, its folder or one above it, or a hub repository.",
    ),
]


def generate(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The folder for the PNGs.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="A caption to draw; repeatable.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A text file with a caption in each line.")
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", min=1, help="Images of each caption.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed draws other images.")] = 0,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", help="How closely captions are followed; 1: no guidance."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="0 draws the likeliest codes.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Likeliest codes to choose among; 0: all.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Probability of the codes to choose among.")
    ] = None,
    unread_share: Annotated[
        float | None, typer.Option("--unread-share", help="Share of what is drawn that the rest ignores.")
    ] = None,
    shared_noise: Annotated[
        bool | None,
        typer.Option(
            "--shared-noise/--own-noise", help="One noise for all positions of an image, or one each."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images drawn together.")] = 64,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Draw images for captions: PNGs, and a contact sheet with a row for each caption.

    How they are drawn is the model's own way where no option says otherwise.
    """
    captions = [*(prompt or ()), *_lines(prompts)]
    if not captions:
        raise UserError("no caption is given: use --prompt TEXT or --prompts FILE")
    require_writable(out, ANOTHER_PLACE)
    with _opened(model, RecipeOptions(overrides, root)) as opened:
        # PyTorch takes seconds.
        from dualtoken.pipelines.inference.unified import draw_files, draw_settings  # noqa: PLC0415

        drawing = opened.model.config.drawing_config.changed(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            unread_share=unread_share,
            shared_noise=shared_noise,
        )
        settings = draw_settings(drawing, seed, batch_size)
        files = draw_files(opened, captions, num_images, settings, out, _print_progress)
    print_line(f"{pluralized(len(files) - 1, 'image')}, {files[-1]}")


def ask(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="A question about it.")],
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Answer a question about an image."""
    if not question.strip():
        raise UserError("QUESTION is empty: ask something, or use `dualtoken describe`")
    _require_files([image])
    with _opened(model, RecipeOptions(overrides, root)) as opened:
        from dualtoken.pipelines.inference import unified  # noqa: PLC0415

        unified.ask(opened, str(image), question, _write)
    print_line("")


def describe(
    model: ModelArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Describe images, a line for each."""
    _require_files(images)
    num_bad = 0
    with _opened(model, RecipeOptions(overrides, root)) as opened:
        from dualtoken.pipelines.inference import unified  # noqa: PLC0415

        for image in images:
            try:
                print_line(f"{image}: {unified.ask(opened, str(image), None)}")
            except UserError as error:
                num_bad += 1
                print(f"dualtoken: {error}", file=sys.stderr, flush=True)
    if num_bad:
        raise typer.Exit(ExitCode.CONFIGURATION)


@contextmanager
def _opened(model: str, options: RecipeOptions) -> "Iterator[OpenedMllm]":
    with find_model(model, options, UNIFIED) as found:
        from dualtoken.pipelines.inference.unified import open_model  # noqa: PLC0415

        yield open_model(found)


def _lines(file: Path | None) -> list[str]:
    """Return the captions of a file, empty lines left out."""
    if file is None:
        return []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {file} cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _require_files(images: Sequence[Path]) -> None:
    """Raise `UserError` at once where no image is there: importing PyTorch takes seconds."""
    for image in images:
        if not image.is_file():
            raise UserError(f"{image}: there is no such file")


def _print_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _write(piece: str) -> None:
    print(piece, end="", flush=True)
