"""`dualtoken convert`: other projects' weights into our folders, and ours into the released code's."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dualtoken.jobs.output_paths import require_new, require_safetensors
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.pipelines.errors import UserError


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint of the released DualToken code (.pt or .safetensors), "
            "a Hugging Face SigLIP folder, or with --to-reference a folder of ours.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="A folder to make; with --to-reference, a .safetensors file."),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="The configuration file beside the checkpoint.")
    ] = None,
    to_reference: Annotated[
        bool,
        typer.Option(
            "--to-reference",
            help="From ours to the released code's names; its configuration is written beside them.",
        ),
    ] = False,
) -> None:
    """Convert weights: the released DualToken code's to ours and back, or a SigLIP to a teacher."""
    if not source.exists():
        raise UserError(f"{source} does not exist: give a checkpoint or a folder")
    if to_reference:
        require_safetensors(out)
    require_new(out)
    try:
        if to_reference:
            _to_reference(source, out)
        elif source.is_dir():
            _siglip(source, out)
        else:
            _from_reference(source, config, out)
    except ValueError as error:
        raise UserError(str(error)) from None


def _from_reference(source: Path, config: Path | None, out: Path) -> None:
    if config is None:
        raise UserError(
            "--config is missing: name the JSON file beside the checkpoint, such as siglip_384_rvq8.json"
        )
    # PyTorch takes seconds to import.
    from dualtoken.model.convert.reference import from_reference, refuse_older_layouts  # noqa: PLC0415
    from dualtoken.model.convert.reference_config import config_from_reference  # noqa: PLC0415
    from dualtoken.model.convert.siglip import read_weights  # noqa: PLC0415
    from dualtoken.model.hub.json_files import read_json  # noqa: PLC0415
    from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer  # noqa: PLC0415

    values = read_json(config)
    state = read_weights(source)
    refuse_older_layouts(state)
    settings = config_from_reference(values, state)
    tokenizer = DualTokenizer.from_weights(settings, from_reference(state, settings))
    tokenizer.save_pretrained(out)
    num_text = sum(name.startswith("siglip_model.text_model.") for name in state)
    print_line(
        f"{out}: a tokenizer of {settings.grid_size}x{settings.grid_size} tokens, "
        f"{settings.pixel.depth} codes deep in each stream"
    )
    print_line(f"left out: {num_text} tensors of the text tower, which a tokenizer does not have")


def _to_reference(source: Path, out: Path) -> None:
    from dualtoken.model.convert.reference import to_reference  # noqa: PLC0415
    from dualtoken.model.convert.reference_config import config_to_reference  # noqa: PLC0415
    from dualtoken.model.hub.saved_model import write_safetensors  # noqa: PLC0415
    from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer  # noqa: PLC0415

    settings = out.with_suffix(".json")
    require_new(settings)
    tokenizer = DualTokenizer.from_pretrained(source)
    weights = to_reference(tokenizer.state_dict(), tokenizer.config)
    written = config_to_reference(tokenizer.config)
    write_safetensors(weights, out)
    settings.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print_line(f"{out}: {len(weights)} tensors under the released code's names")
    print_line(
        "absent: siglip_model.text_model.*, logit_scale and logit_bias; "
        "load with strict=False, or take them from SigLIP"
    )
    print_line(f"{settings}: the released code's configuration of them, for --config")


def _siglip(source: Path, out: Path) -> None:
    from dualtoken.model.convert.siglip_teacher import convert_siglip  # noqa: PLC0415

    convert_siglip(source, out)
    print_line(f"{out}: a teacher; name it in a recipe as teacher: {{kind: local, folder: {out}}}")
