"""The unified model's stage: resumed to the bit, the same by any workers, and refused in one line."""

import itertools
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dualtoken.infra.storage import Store
from dualtoken.model.config.drawing import DrawingConfig
from dualtoken.model.mllm import build
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.losses import step_size
from dualtoken.model.mllm.saved import open_mllm
from dualtoken.pipelines.config.corpora import HeldoutFraction
from dualtoken.pipelines.config.mllm import MllmStageConfig
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.core.ledger import key_fraction
from dualtoken.pipelines.core.stage import StageJob
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.images.decoding import decode_rgb
from dualtoken.pipelines.inference.unified import answer, draw, draw_settings
from dualtoken.pipelines.loader.document_kinds import DRAW
from dualtoken.pipelines.runtime.executor import LocalExecutor
from dualtoken.pipelines.runtime.plan import Planner
from dualtoken.pipelines.runtime.run import run_command
from dualtoken.pipelines.runtime.stage_settings import mllm_settings
from dualtoken.pipelines.training import mllm_pictures, training_log
from dualtoken.pipelines.training.engine import train
from dualtoken.pipelines.training.heldout_tokens import HeldoutTokens, read_heldout
from dualtoken.pipelines.training.metrics_log import read_metrics
from dualtoken.pipelines.training.mllm import MllmTask, first_model, mllm_config, trained_model
from dualtoken.pipelines.training.mllm_documents import MllmDocuments
from dualtoken.pipelines.training.mllm_pictures import NUM_ANSWERED, NUM_SHOWN
from dualtoken.pipelines.training.process_settings import process_settings
from dualtoken.pipelines.training.step_cost import MllmStepCounter, flop_utilization, mllm_shape
from dualtoken.pipelines.training.task import StepCost
from dualtoken.pipelines.training.train_context import SingleProcessContext, TrainContext
from tests.helpers.tiny_run import PROJECT, TINY, LoadTiny, planned_job
from tests.helpers.training_groups import CPU, GlooContext, GroupJob, distance, train_as_group
from tests.helpers.waiting import wait_until

CLOSE = 2e-5
"""Largest relative distance of all weights together that sums in another order explain."""
STEPS = ("mllm.steps=6", "mllm.batch_size=4", "mllm.checkpoint_every=3")
MIXED = "mllm.documents.shares={draw: 1, text: 3}"
"""So few images that steps come in which a worker has none."""


def job_in(folder: Path, load_tiny: LoadTiny, finished: Recipe, *overrides: str) -> StageJob:
    recipe = load_tiny(Path(finished.root), *STEPS, *overrides)
    return replace(planned_job(recipe, "mllm"), folder=str(folder))


def weights(job: StageJob) -> dict[str, torch.Tensor]:
    scratch = Path(f"{job.folder} result")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    trained_model(job, scratch)
    return load_file(scratch / "model.safetensors")


def train_alone(job: StageJob) -> dict[str, torch.Tensor]:
    train(job, SingleProcessContext(CPU), MllmTask)
    return weights(job)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_a_training_goes_on_from_its_checkpoint_to_the_bit(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    job = job_in(tmp_path / "run", load_tiny, finished, "mllm.optimizer=muon", "mllm.code_dropout=1")
    expected = train_alone(job)
    folders = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert folders == ["step-000000002", "step-000000005"]
    before = read_metrics(Store(job.folder))
    shutil.rmtree(tmp_path / "run/checkpoints/step-000000005")
    assert_same(train_alone(job), expected)
    after = read_metrics(Store(job.folder))
    assert [line["loss"] for line in after] == [line["loss"] for line in before]
    assert all("sequences_per_second" in line for line in before)


@pytest.mark.parametrize(("share", "expected", "whole"), [(0.8, 0.4, 0.0), (2.5, 0.8, 0.6)])
def test_code_dropout_hides_codes_of_images_to_draw_alone_and_less_than_its_share(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, share: float, expected: float, whole: float
) -> None:
    settings = (f"mllm.code_dropout={share}", "mllm.documents.shares={draw: 1, describe: 1}")
    job = job_in(tmp_path, load_tiny, finished, *settings)
    documents = MllmDocuments(job, SingleProcessContext(CPU))
    unread_of_drawings: list[torch.Tensor] = []
    for batch, _ in zip(documents.batches(), range(8), strict=False):
        model_batch = documents.to_model(batch)
        assert model_batch.unread is not None
        is_drawn = model_batch.visual_targets
        assert not bool((model_batch.unread & ~is_drawn).any())
        num_drawings = int((batch.kinds == DRAW).sum())
        unread_of_drawings.append(model_batch.unread[is_drawn].view(num_drawings, -1))
        again = documents.to_model(batch).unread
        assert again is not None
        assert torch.equal(again, model_batch.unread)
    is_unread = torch.cat(unread_of_drawings).float()
    mean = float(is_unread.mean())
    assert mean == pytest.approx(expected, abs=0.1)
    assert float((is_unread.mean(dim=1) == 1).float().mean()) == pytest.approx(whole, abs=0.15)
    of_one_share = math.sqrt(mean * (1 - mean) / is_unread.shape[1])
    assert float(is_unread.mean(dim=1).std()) > 1.3 * of_one_share, "each document has a share of its own"
    documents.close()


def test_turns_are_kept_apart_where_the_recipe_says_so(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    settings = ("mllm.documents.shares={answer: 1, draw: 1}", "mllm.documents.turns_apart=true")
    apart = MllmDocuments(job_in(tmp_path, load_tiny, finished, *settings), SingleProcessContext(CPU))
    together = MllmDocuments(job_in(tmp_path, load_tiny, finished, settings[0]), SingleProcessContext(CPU))
    batch = next(apart.batches())
    segments = apart.to_model(batch).segments
    assert segments.prefixes is not None
    firsts = segments.cu_seqlens[:-1][segments.prefixes >= 0]
    assert len(firsts) > 0
    assert firsts.tolist() == batch.turns.tolist()
    image_start = apart.text_tokenizer.get_vocab()["<|vision_start|>"]
    of_prefixes = segments.cu_seqlens[segments.prefixes[segments.prefixes >= 0]].long()
    assert bool((batch.text.flatten()[of_prefixes] == image_start).all())
    assert together.to_model(batch).segments.prefixes is None
    apart.close()
    together.close()


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> None:
    root = Path(shutil.copytree(finished.root, tmp_path / "root"))
    overrides = ["mllm.steps=40", "mllm.checkpoint_every=2", "mllm.log_every=1"]
    job = planned_job(load_tiny(root, *overrides), "mllm")
    command = [sys.executable, "-m", "dualtoken.jobs.cli", "mllm", TINY, "--root", str(root), "--in-process"]
    for override in overrides:
        command += ["--set", override]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL) as process:
        wait_until(
            lambda: any(name.endswith("receipt.json") for name, _ in job.store().files("checkpoints")),
            seconds=90,
        )
        process.send_signal(signal.SIGKILL)
    assert len(read_metrics(job.store())) < 40
    whole = replace(job, folder=str(tmp_path / "whole"))
    assert_same(train_alone(job), train_alone(whole))


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory, finished: Recipe, load_tiny: LoadTiny) -> Path:
    """Folders of trainings by two workers."""
    folder = tmp_path_factory.mktemp("two")
    jobs: list[GroupJob] = []
    for parallel in ("ddp", "fsdp2"):
        overrides = (f"mllm.parallel={parallel}", MIXED, "mllm.log_images_every=2")
        jobs.append((job_in(folder / parallel, load_tiny, finished, *overrides), MllmTask))
    train_as_group(jobs, 2, folder)
    return folder


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_workers_train_what_one_does(
    parallel: str, by_two: Path, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    expected = train_alone(job_in(tmp_path / "alone", load_tiny, finished, MIXED))
    together = job_in(by_two / parallel, load_tiny, finished, MIXED)
    assert distance(weights(together), expected) < CLOSE
    [first, *_] = read_metrics(Store(together.folder))
    [alone, *_] = read_metrics(Store(str(tmp_path / "alone")))
    assert first["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert (first["num_text"], first["num_visual"]) == (alone["num_text"], alone["num_visual"])


def test_one_goes_on_where_two_were(
    by_two: Path, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    left = job_in(Path(shutil.copytree(by_two / "ddp", tmp_path / "left")), load_tiny, finished, MIXED)
    expected = weights(left)
    shutil.rmtree(tmp_path / "left/checkpoints/step-000000005")
    assert distance(train_alone(left), expected) < CLOSE


def test_parts_of_a_batch_make_the_same_step(tmp_path: Path, finished: Recipe, load_tiny: LoadTiny) -> None:
    whole = train_alone(job_in(tmp_path / "whole", load_tiny, finished))
    parts = train_alone(job_in(tmp_path / "parts", load_tiny, finished, "mllm.accumulate_steps=4"))
    assert distance(parts, whole) < CLOSE


@pytest.mark.parametrize(
    ("phase", "moved"),
    [
        (1, ("model.visual_projector.", "model.visual_positions.")),
        (2, ("model.visual_projector.", "model.visual_positions.", "model.language_model.")),
        (3, ("heads.",)),
    ],
)
def test_a_phase_moves_its_own_weights_and_begins_from_a_folder(
    phase: int, moved: tuple[str, ...], tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    start = planned_job(finished, "mllm").folder
    overrides = (f"mllm.phase={phase}", f"mllm.start_from={start}")
    found = train_alone(job_in(tmp_path / "run", load_tiny, finished, *overrides))
    before = load_file(Path(start) / "model.safetensors")
    changed = {name for name in before if not torch.equal(found[name], before[name])}
    assert changed
    assert {name for name in changed if not name.startswith(moved)} == set()
    for beginning in moved:
        assert any(name.startswith(beginning) for name in changed)


def test_a_step_costs_what_its_own_documents_take_the_mean_since_the_last_line(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    """Steps have other numbers of images and text; two workers' shares are the whole."""
    job = job_in(tmp_path / "run", load_tiny, finished, MIXED, "mllm.precision=bfloat16")
    whole = costs_of_steps(job, SingleProcessContext(CPU), 3, tmp_path)
    shares = [costs_of_steps(job, GlooContext(rank, 2), 3, tmp_path) for rank in range(2)]
    assert len(set(whole)) == 3
    for number, flop in enumerate(whole):
        assert flop == sum(share[number] for share in shares)


def costs_of_steps(job: StageJob, context: TrainContext, num_steps: int, scratch: Path) -> list[float]:
    """Return the costs of a worker's share of some steps, as a count of its documents gives them."""
    documents = MllmDocuments(job, context)
    model = first_model(job, documents, scratch)
    counter = MllmStepCounter(mllm_shape(mllm_config(job), model.config))
    assert counter.mean_cost() is None
    costs: list[float] = []
    total = 0.0
    sizes = [step_size(documents.to_model(batch)) for batch in islice(documents.batches(), num_steps)]
    for size in sizes:
        counter.add(size)
        cost = counter.mean_cost()
        assert cost is not None
        assert cost.precision == "bfloat16"
        costs.append(cost.flop)
        total += cost.flop
    for size in sizes:
        counter.add(size)
    mean = counter.mean_cost()
    assert mean is not None
    assert mean.flop == pytest.approx(total / num_steps)
    documents.close()
    return costs


def test_the_log_of_a_gpu_has_the_share_of_its_rate(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(training_log, "flop_utilization", as_if_on_a_gpu)
    train_alone(job_in(tmp_path / "run", load_tiny, finished, "mllm.log_every=4"))
    lines = read_metrics(Store(str(tmp_path / "run")))
    assert [line["step"] for line in lines] == [0, 4, 5]
    assert all(0 < line["mfu"] < 1 for line in lines)


def as_if_on_a_gpu(cost: StepCost, steps_per_second: float, _: TrainContext) -> float | None:
    """Return the share of an H200's rate that steps on this CPU would be, enlarged to be seen."""
    context = GlooContext(0, 1, torch.device("cuda"))
    share = flop_utilization(cost, steps_per_second, context)
    return None if share is None else 1e4 * share


def pictures_of(folder: Path) -> EventAccumulator:
    """Read the pictures and texts of a training as TensorBoard does."""
    found = EventAccumulator(str(folder / "logs/tensorboard/pictures"), {"images": 0, "tensors": 0})
    found.Reload()
    return found


def drawings_of(folder: Path) -> dict[int, np.ndarray]:
    """Return the shown rows of truths and drawings by step, (2 S, B S, 3)."""
    shown = pictures_of(folder).Images("drawings")
    return {picture.step: np.array(decode_rgb(picture.encoded_image_string)) for picture in shown}


def texts_of(folder: Path, name: str) -> list[str]:
    tensors = pictures_of(folder).Tensors(f"{name}/text_summary")
    return [tensor.tensor_proto.string_val[0].decode() for tensor in tensors]


def drawn_by(job: StageJob, folder: Path, shown: Sequence[int] = range(NUM_SHOWN)) -> np.ndarray:
    """Return what a saved model draws of some held-out captions, likewise, on as many threads."""
    opened = open_mllm(str(folder))
    heldout = read_heldout(job, NUM_SHOWN, folder / "tokens")
    captions = [heldout.captions[number] for number in shown]
    examine = job.recipe.examine
    settings = draw_settings(examine.drawing(DrawingConfig()), examine.seed, 64)
    with process_settings(job.training.cpus_per_worker):
        [drawn] = draw(opened, captions, settings)
        truths = opened.processor.decode_levels(heldout.pixel[list(shown)])
        rows = torch.stack((truths, drawn.levels))
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()


def test_tensorboard_shows_held_out_captions_drawn_anew_and_answers(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    overrides = ("mllm.steps=20", "mllm.learning_rate=0.02", "mllm.log_images_every=15")
    job = job_in(tmp_path / "run", load_tiny, finished, *overrides)
    train_alone(job)
    shown = drawings_of(tmp_path / "run")
    assert list(shown) == [14, 19]
    assert shown[19].shape == (2 * 32, NUM_SHOWN * 32, 3)
    assert np.array_equal(shown[14][:32], shown[19][:32]), "the true pictures stay"
    assert not np.array_equal(shown[14][32:], shown[19][32:])
    assert np.array_equal(shown[19], drawn_by(job, Path(f"{job.folder} result")))

    captions = read_heldout(job, NUM_SHOWN, tmp_path).captions
    assert texts_of(tmp_path / "run", "captions")[0].splitlines()[2:] == [
        f"| {caption} |" for caption in captions
    ]
    _, last = texts_of(tmp_path / "run", "answers")
    assert len(last.splitlines()) == 2 + 2 * NUM_ANSWERED, "a description and a question of each image"
    opened = open_mllm(f"{job.folder} result")
    heldout = read_heldout(job, NUM_SHOWN, tmp_path)
    codes = {stream: of_stream[1:2] for stream, of_stream in heldout.codes().items()}
    asked = heldout.questions[1][1]
    answered = answer(opened, codes, asked.question)
    assert answered, "it says something by now"
    assert f"| {asked.question} | {asked.answer} | {answered} |" in last
    assert f"| (a description) | {captions[1]} | {answer(opened, codes, None)} |" in last


def test_pictures_change_no_bit_and_no_random_number_and_are_not_made_where_the_recipe_says_so(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    without = job_in(tmp_path / "without", load_tiny, finished, "mllm.log_images_every=0")
    assert not any("heldout" in name for name in without.inputs)
    expected = train_alone(without)
    assert not (tmp_path / "without/logs/tensorboard/pictures").exists()
    each = job_in(tmp_path / "each", load_tiny, finished, "mllm.log_images_every=1")
    assert each.fingerprint == without.fingerprint
    assert_same(train_alone(each), expected)
    assert len(drawings_of(tmp_path / "each")) == 6

    with closing(MllmTask(each, SingleProcessContext(CPU), tmp_path / "scratch")) as task:
        state = torch.get_rng_state()
        was_training = task.parts.modules["model"].training
        assert task.pictures()
        assert task.texts()
        assert torch.equal(torch.get_rng_state(), state)
        assert task.parts.modules["model"].training == was_training


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_the_first_of_two_workers_draws_with_the_weights_of_both(
    parallel: str, by_two: Path, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    folder = Path(shutil.copytree(by_two / parallel, tmp_path / parallel))
    together = job_in(folder, load_tiny, finished, f"mllm.parallel={parallel}", MIXED)
    weights(together)
    shown = drawings_of(folder)
    assert list(shown) == [1, 3, 5]
    assert np.array_equal(shown[5], drawn_by(together, Path(f"{folder} result")))


def test_a_model_that_cannot_draw_answers_and_what_has_no_room_is_left_out(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = job_in(tmp_path / "blind", load_tiny, finished, "mllm.targets=[]", "mllm.documents.shares.draw=0")
    with closing(MllmTask(blind, SingleProcessContext(CPU), tmp_path / "scratch")) as task:
        assert task.pictures() == {}
        assert list(task.texts()) == ["answers"]

    monkeypatch.setattr(build, "MAX_POSITIONS", 20)
    small = job_in(tmp_path / "small", load_tiny, finished)
    with closing(MllmTask(small, SingleProcessContext(CPU), tmp_path / "other scratch")) as task:
        assert task.pictures() == {}
        assert len(task.texts()["answers"].splitlines()) == 2


@pytest.mark.parametrize(
    ("room", "shown", "num_answers"), [(71, (1, 2, 3, 4), 0), (101, range(NUM_SHOWN), 5)]
)
def test_what_just_fits_is_drawn_and_asked(
    room: int,
    shown: Sequence[int],
    num_answers: int,
    tmp_path: Path,
    finished: Recipe,
    load_tiny: LoadTiny,
) -> None:
    """Images take 16 positions, drawings' captions 41 to 58, answers 64, questions 19 to 40.

    The third caption to draw takes all of 71, the second question all of 101.
    """
    start = Path(shutil.copytree(planned_job(finished, "mllm").folder, tmp_path / "start"))
    job = job_in(tmp_path / "run", load_tiny, finished, f"mllm.start_from={start}")
    captions = read_heldout(job, NUM_SHOWN, tmp_path).captions
    with closing(MllmTask(job, SingleProcessContext(CPU), tmp_path / "scratch")) as task:
        model = task.parts.modules["model"]
        assert isinstance(model, DualTokenForConditionalGeneration)
        model.config.text_config.max_position_embeddings = room
        with process_settings(job.training.cpus_per_worker):
            drawings = task.pictures()["drawings"].permute(1, 2, 0).numpy()
        texts = task.texts()
    assert np.array_equal(drawings, drawn_by(job, start, shown))
    assert texts["captions"].splitlines()[2:] == [f"| {captions[number]} |" for number in shown]
    assert len(texts["answers"].splitlines()) == 2 + num_answers


def test_no_part_trains_while_it_draws_and_what_is_written_breaks_no_table(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_odd(*arguments: Any) -> HeldoutTokens:
        heldout = read_heldout(*arguments)
        return heldout._replace(captions=["a | b\n c", *heldout.captions[1:]])

    monkeypatch.setattr(mllm_pictures, "read_heldout", read_odd)
    job = job_in(tmp_path / "run", load_tiny, finished)
    with closing(MllmTask(job, SingleProcessContext(CPU), tmp_path / "scratch")) as task:
        model = task.parts.modules["model"]
        model.train()
        are_training: set[bool] = set()
        for module in model.modules():
            module.register_forward_pre_hook(lambda called, _: are_training.add(called.training))
        assert task.pictures()
        texts = task.texts()
        assert all(module.training for module in model.modules())
    assert are_training == {False}
    assert texts["captions"].splitlines()[2] == "| a \\| b c |"


MISTAKES = {
    "mllm.documents.questions=nothing": "has no column 'nothing': use one of key, ",
    "mllm.capacity=12": "an image takes ",
    "mllm.trunk={kind: pretrained, model: /nowhere/at/all}": "/nowhere/at/all",
    "mllm.start_from=/nowhere/at/all": "mllm.start_from='/nowhere/at/all' has no config.json",
    "mllm.parameters=[{pattern: nothing.*}]": "mllm: parameters[0].pattern='nothing.*' matches no parameter",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    override: str, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    with pytest.raises((UserError, ValueError)) as raised:
        train_alone(job_in(tmp_path / "run", load_tiny, finished, override))
    assert MISTAKES[override] in str(raised.value)
    assert "\n" not in str(raised.value)


LORA = "mllm.lora={rank: 2, dropout: 0.5}"


def lora_job(folder: Path, load_tiny: LoadTiny, finished: Recipe, *overrides: str) -> StageJob:
    pytest.importorskip("peft", reason="peft is missing: pip install 'dualtoken[lora]'")
    start = planned_job(finished, "mllm").folder
    return job_in(folder, load_tiny, finished, LORA, f"mllm.start_from={start}", *overrides)


def test_adapters_go_on_to_the_bit_and_are_saved_merged_and_apart(
    tmp_path: Path, finished: Recipe, load_tiny: LoadTiny, capsys: pytest.CaptureFixture[str]
) -> None:
    job = lora_job(tmp_path / "run", load_tiny, finished, "mllm.phase=2")
    expected = train_alone(job)
    before = load_file(Path(planned_job(finished, "mllm").folder) / "model.safetensors")
    assert expected.keys() == before.keys()
    moved = {name for name in before if not torch.equal(expected[name], before[name])}
    assert any(name.endswith("q_proj.weight") for name in moved)
    assert not any("embed_tokens" in name or "norm" in name for name in moved), "no adapters there"
    adapter = Path(f"{job.folder} result") / "adapter"
    assert {file.name for file in adapter.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    # Adapters of 7 layers of 16 and 32 channels; the projector; row and column vectors of a 4 by 4 grid.
    found = re.search(r"mllm: trains ([\d,]+) of ([\d,]+) parameters \(\d+ %\)", capsys.readouterr().out)
    assert found
    trained, total = (int(number.replace(",", "")) for number in found.groups())
    of_adapters = 2 * (4 * (16 + 16) + 3 * (16 + 32))
    of_visual = sum(tensor.numel() for name, tensor in before.items() if name.startswith("model.visual_"))
    assert trained == of_adapters + of_visual
    others = sum(tensor.numel() for name, tensor in before.items() if not name.startswith("model.codebooks"))
    assert total == others + of_adapters

    shutil.rmtree(tmp_path / "run/checkpoints/step-000000005")
    assert_same(train_alone(job), expected)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_workers_train_the_adapters_that_one_does(
    parallel: str, tmp_path: Path, finished: Recipe, load_tiny: LoadTiny
) -> None:
    overrides = ("mllm.lora={rank: 2}", f"mllm.parallel={parallel}")
    expected = train_alone(lora_job(tmp_path / "alone", load_tiny, finished, *overrides))
    together = lora_job(tmp_path / "two", load_tiny, finished, *overrides)
    train_as_group([(together, MllmTask)], 2, tmp_path)
    assert distance(weights(together), expected) < CLOSE


def test_adapters_need_a_trained_trunk_and_a_phase_that_trains_it() -> None:
    with pytest.raises(
        ValueError, match=r"lora adapts a trained trunk, this one starts from nothing: set trunk"
    ):
        MllmStageConfig.model_validate({"lora": {}})
    for phase in (1, 3):
        with pytest.raises(ValueError, match=rf"lora adapts the trunk, which phase={phase} leaves as it is"):
            MllmStageConfig.model_validate({"lora": {}, "phase": phase, "start_from": "there"})
    assert "lora" not in MllmStageConfig().identity()
    named = {"lora": {"rank": 3}, "trunk": {"kind": "pretrained", "model": "there"}}
    assert MllmStageConfig.model_validate(named).identity()["lora"]["rank"] == 3


def test_the_held_out_fraction_of_a_corpus_is_in_no_document_and_in_the_fingerprint(
    finished: Recipe,
) -> None:
    job = planned_job(finished, "mllm")
    whole_corpus = {"tiny-train": finished.corpora["tiny-train"]}
    fraction = HeldoutFraction(kind="fraction", fraction=0.4)
    recipe = finished.model_copy(update={"corpora": whole_corpus, "heldout": fraction})
    documents = MllmDocuments(replace(job, recipe=recipe), SingleProcessContext(CPU))
    batches = list(itertools.islice(documents.batches(), 12))
    documents.close()
    keys = {bytes(key) for batch in batches for key in batch.keys.numpy()}
    assert len(keys) > 10
    assert min(map(key_fraction, keys)) >= 0.4
    assert mllm_settings(recipe, None)["heldout"] == {"kind": "fraction", "fraction": 0.4}
    assert "heldout" not in mllm_settings(finished, None)


def test_documents_that_answer_name_their_column() -> None:
    with pytest.raises(ValueError, match=r"shares.answer=1 without questions: name the column"):
        MllmStageConfig.model_validate({"documents": {"shares": {"answer": 1}}})
    with pytest.raises(ValueError, match=r"turns_apart=true without shares.answer: give it a share"):
        MllmStageConfig.model_validate({"documents": {"turns_apart": True}})
    with pytest.raises(ValueError, match="inputs have semantic, targets do not"):
        MllmStageConfig.model_validate({"targets": ["pixel"]})


def test_a_recipe_without_the_key_has_no_such_stage(tmp_path: Path, load_tiny: LoadTiny) -> None:
    recipe = load_tiny(tmp_path, "mllm=null")
    assert [planned.stage for planned in Planner(recipe).plan()][-3:] == ["pretokenize", "measure", "report"]
    for command in ("mllm", "examine"):
        with pytest.raises(UserError, match=f"^{command}: the recipe tiny has no mllm: add the key$"):
            run_command(command, recipe, LocalExecutor(), lambda _: None)
