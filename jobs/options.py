"""The arguments that commands share."""

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe: a YAML file, an fsspec URL, or a shipped name such as scenes."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe, such as train.steps=100; may be repeated.",
    ),
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root", help="Where everything is written: a folder or an fsspec URL; default: the recipe's."
    ),
]
CorpusOption = Annotated[
    list[str] | None, typer.Option("--corpus", help="Only this corpus; may be repeated.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="`local`, or host:port of a Ray cluster to join; default: the recipe's cluster.address.",
    ),
]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="Run the units one by one in this process, without Ray.")
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="START:STOP",
        help="Record these steps by torch.profiler, such as 20:25; the trace goes to the stage's logs.",
    ),
]
