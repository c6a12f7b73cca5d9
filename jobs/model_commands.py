"""The commands that use a saved tokenizer on its own: `tokenize`, `reconstruct`, `export`."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dualtoken.jobs.options import RootOption, SetOption
from dualtoken.jobs.output_paths import ANOTHER_PLACE, require_apart, require_safetensors
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.jobs.stage_places import RecipeOptions, find_model
from dualtoken.jobs.version import package_version
from dualtoken.pipelines.core.messages import pluralized
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import ExitCode, UserError

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A recipe whose tokenizer is trained, a folder of a saved tokenizer or one above it, "
        "or a hub repository such as owner/name.",
    ),
]
ImagesArgument = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Image files; a folder stands for the images in it and below."),
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")]


class ExportFormat(StrEnum):
    """What `export` writes."""

    ONNX = "onnx"
    TORCH_EXPORT = "torch-export"


def tokenize(
    model: ModelArgument,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="The safetensors file to write.")],
    batch_size: BatchOption = 16,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Write the codes of images, both streams, into one safetensors file."""
    with find_model(model, RecipeOptions(overrides, root)) as found:
        _require_images(images)
        require_safetensors(out)
        if Path(found).is_dir() and out.resolve().parent == Path(found).resolve():
            raise UserError(f"--out {out} is in the model's own folder: name another place")
        require_writable(out.parent, ANOTHER_PLACE)
        # PyTorch takes seconds.
        from dualtoken.pipelines.inference.image_files import open_model, tokenize_files  # noqa: PLC0415

        counts = tokenize_files(open_model(found), images, out, batch_size, _print_error)
    if counts.images:
        print_line(f"{pluralized(counts.images, 'image')}, {out}")
    else:
        print_line(f"no image, so {out} is not written")
    _exit_after(counts.bad)


def reconstruct(
    model: ModelArgument,
    images: ImagesArgument,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The folder for the PNGs.")],
    batch_size: BatchOption = 16,
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Write each image beside what its pixel codes say of it, and print the PSNR."""
    with find_model(model, RecipeOptions(overrides, root)) as found:
        _require_images(images)
        require_apart(out, images)
        require_writable(out, ANOTHER_PLACE)
        from dualtoken.pipelines.inference.image_files import open_model, reconstruct_files  # noqa: PLC0415

        counts = reconstruct_files(open_model(found), images, out, batch_size, print_line, _print_error)
    if not counts.images:
        print_line("no image")
    _exit_after(counts.bad)


def export(
    model: ModelArgument,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="The folder for the two graphs.")],
    format: Annotated[ExportFormat, typer.Option("--format", help="For which runtime.")] = ExportFormat.ONNX,  # noqa: A002
    overrides: SetOption = None,
    root: RootOption = None,
) -> None:
    """Write two graphs for other runtimes: images to codes, and pixel codes to images."""
    with find_model(model, RecipeOptions(overrides, root)) as found:
        require_writable(out, ANOTHER_PLACE)
        from dualtoken.model.convert import Origin, export_graphs  # noqa: PLC0415
        from dualtoken.pipelines.inference.image_files import open_model  # noqa: PLC0415

        opened = open_model(found)
        origin = Origin.of(Path(opened.folder), package_version())
        tokenizer = opened.network.cpu()
    try:
        paths = export_graphs(tokenizer, format.value, out, origin)
    except ValueError as error:
        raise UserError(str(error)) from error
    for path in paths:
        print_line(f"{path}: {path.stat().st_size:,} bytes")


def _require_images(images: Sequence[str]) -> None:
    """Raise `UserError` at once where no image is there: importing PyTorch takes seconds."""
    if not any(Path(image).exists() for image in images):
        others = f", nor any of the other {len(images) - 1}" if len(images) > 1 else ""
        raise UserError(f"{images[0]}: there is no such file{others}")


def _print_error(line: str) -> None:
    print(f"dualtoken: {line}", file=sys.stderr, flush=True)


def _exit_after(num_bad: int) -> None:
    """End with an error where some files were no images."""
    if num_bad:
        raise typer.Exit(ExitCode.CONFIGURATION)
