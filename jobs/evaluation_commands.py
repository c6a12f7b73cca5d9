"""The commands that measure saved models, and compare measurements: `evaluate`, `compare`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dualtoken.infra.storage import Store, join
from dualtoken.jobs.options import AddressOption, InProcessOption
from dualtoken.jobs.output_paths import ANOTHER_PLACE
from dualtoken.jobs.recipe_arguments import print_line
from dualtoken.jobs.stage_places import (
    UNIFIED,
    RecipeOptions,
    find_model,
    find_stage,
    names_recipe,
)
from dualtoken.model.config.base import is_url
from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.config.parse import load_evaluation
from dualtoken.pipelines.core.receipts import STAGE_FILE
from dualtoken.pipelines.core.writable import require_writable
from dualtoken.pipelines.errors import ExitCode, UserError
from dualtoken.pipelines.evaluation.selection import selected
from dualtoken.pipelines.runtime.find_stage import holds_stages, require_whole
from dualtoken.pipelines.runtime.open_executor import open_executor
from dualtoken.pipelines.runtime.stage_folder import read_stage

if TYPE_CHECKING:
    from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace

TEACHER = "teacher"
EvaluatedArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A recipe whose model is trained, a folder with a tokenizer or unified model, or a hub name.",
    ),
]
SetsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME", help="A set of the file; may be repeated; default: all."),
]
ProtocolsOption = Annotated[
    list[str] | None,
    typer.Option("--protocol", metavar="NAME", help="A protocol of it; may be repeated; default: all."),
]
EvaluationOption = Annotated[
    str,
    typer.Option(
        "--evaluation",
        metavar="FILE",
        help="The sets and protocols: a YAML file, an fsspec URL, or a shipped name.",
    ),
]
StageOption = Annotated[
    Literal["train", "mllm"],
    typer.Option(
        "--stage",
        help="Whose model is meant where MODEL is a recipe, or a folder above several: the tokenizer of "
        "train, or the unified model of mllm.",
    ),
]
TeacherOption = Annotated[
    str | None,
    typer.Option("--teacher", help="Folder of the teacher; default: the one the tokenizer learned from."),
]
ResultsOption = Annotated[
    str | None, typer.Option("--root", help="Where results are written; default: the file's root.")
]
KeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="KEY=VALUE", help="Override a key of that file, such as sets.scenes.num_images=64."
    ),
]


def evaluate(
    model: EvaluatedArgument,
    sets: SetsOption = None,
    protocols: ProtocolsOption = None,
    evaluation: EvaluationOption = "evaluation-scenes",
    teacher: TeacherOption = None,
    stage: StageOption = "train",
    keys: KeyOption = None,
    root: ResultsOption = None,
    address: AddressOption = None,
    in_process: InProcessOption = False,
) -> None:
    """Measure a model on sets by protocols: scores of each sample, values with intervals, a card."""
    overrides = [*(keys or ()), *([f"cluster.address={address}"] if address else ())]
    config = open_evaluation(evaluation, overrides, root, sets, protocols)
    with find_subject(model, stage, teacher) as place:
        evaluate_place(config, place, in_process=in_process)


def open_evaluation(
    location: str,
    overrides: Sequence[str] | None,
    root: str | None,
    sets: Sequence[str] | None,
    protocols: Sequence[str] | None,
) -> EvaluationConfig:
    """Read a file of sets and protocols with its overrides; return it with those that are named alone."""
    config = load_evaluation(location, overrides or (), root)
    return selected(config, sets or (), protocols or ())


def evaluate_place(config: EvaluationConfig, place: "ModelPlace", *, in_process: bool = False) -> None:
    """Evaluate a model that was found, write its page, and print the results."""
    # PyTorch takes seconds, and a mistake in the names none.
    from dualtoken.pipelines.evaluation.evaluation_card import lines  # noqa: PLC0415

    with open_executor(config.cluster, in_process=in_process or config.in_process) as executor:
        from dualtoken.pipelines.evaluation.run_evaluation import run_evaluation  # noqa: PLC0415

        evaluated = run_evaluation(config, place, executor, print_line)
        from dualtoken.pipelines.evaluation.evaluation_page import PAGE, evaluation_page  # noqa: PLC0415
        from dualtoken.pipelines.evaluation.evaluations import read_evaluation  # noqa: PLC0415

        page = evaluation_page(read_evaluation(evaluated.folder.url))
        evaluated.folder.put_bytes(page.encode(), PAGE)
    for line in lines(evaluated.summary):
        print_line(line)
    print_line(f"page: {join(evaluated.folder.url, PAGE)}")
    print_line(f"summary: {evaluated.folder.url}")


@contextmanager
def find_subject(model: str, training: str, teacher: str | None) -> Iterator["ModelPlace"]:
    """Enter for a model's folder, and that of its teacher where one is known."""
    from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace  # noqa: PLC0415

    stage = _stage_folder(model, training)
    if stage is not None:
        require_whole(stage)
        yield ModelPlace(model, stage, _teacher_folder(teacher, stage))
        return
    with find_model(model, RecipeOptions(), training) as found:
        yield ModelPlace(model, Store(str(_local_folder(found))), _teacher_folder(teacher, None))


def _stage_folder(model: str, training: str) -> Store | None:
    """Return the folder of the training that a recipe, or a folder at or above it, names; None for others."""
    if names_recipe(model) or is_url(model):
        return find_stage(model, training, RecipeOptions())
    if not Path(model).is_dir() or not holds_stages(model):
        return None
    store = Store(model)
    if store.exists(STAGE_FILE) and read_stage(store).stage == UNIFIED:
        return store
    return find_stage(model, training, RecipeOptions())


def _local_folder(model: str) -> Path:
    from dualtoken.model.hub.saved_model import find_folder  # noqa: PLC0415

    try:
        return find_folder(model)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from None


def _teacher_folder(teacher: str | None, training: Store | None) -> Store | None:
    """Return the teacher that an option names, or that the training read."""
    if teacher is not None:
        folder = find_stage(teacher, TEACHER, RecipeOptions()) if holds_stages(teacher) else Store(teacher)
        if not any(True for _ in folder.files()):
            raise UserError(f"--teacher {teacher} has no file: name the folder of a teacher")
        return folder
    if training is None:
        return None
    from dualtoken.pipelines.evaluation.saved_subject import teacher_of  # noqa: PLC0415

    return teacher_of(training)


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="Folder of an evaluation's summary.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, by the same sets and protocols.")],
    primary: Annotated[
        list[str] | None,
        typer.Option(
            "--primary",
            metavar="SERIES",
            help="A series that counts, such as scenes/reconstruction/psnr; up to 8; default: all.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help="Folder for a page with the samples that lost most."),
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", min=1, help="Samples on the page.")] = 20,
    fail_if_worse: Annotated[
        bool, typer.Option("--fail-if-worse", help="Exit with 3 where a primary series is worse.")
    ] = False,
) -> None:
    """Tell whether B is better or worse than A: paired differences with intervals, and the samples lost."""
    # NumPy and SciPy take a second.
    from dualtoken.pipelines.evaluation.comparison import compare as compare_evaluations  # noqa: PLC0415
    from dualtoken.pipelines.evaluation.comparison_text import comparison_lines, comparison_markdown  # noqa: PLC0415
    from dualtoken.pipelines.evaluation.evaluations import read_evaluation  # noqa: PLC0415

    if out is not None:
        require_writable(out, ANOTHER_PLACE)
    a = read_evaluation(first)
    b = read_evaluation(second)
    comparison = compare_evaluations(a.summary, a.scores, b.summary, b.scores, primary or None)
    for line in comparison_lines(comparison):
        print_line(line)
    if out is not None:
        # PyTorch takes seconds.
        from dualtoken.pipelines.evaluation.lost_pictures import comparison_page  # noqa: PLC0415

        scored = [one.series for one in comparison.series if one.is_primary and one.p is not None]
        page = comparison_page(comparison, a, b, scored, num_samples)
        (out / "comparison.json").write_bytes(comparison.to_bytes())
        (out / "comparison.md").write_text(comparison_markdown(comparison), encoding="utf-8")
        (out / "index.html").write_text(page, encoding="utf-8")
        print_line(f"page: {out / 'index.html'}")
    if fail_if_worse and any(one.is_primary and one.verdict == "worse" for one in comparison.series):
        raise typer.Exit(ExitCode.REGRESSED)
