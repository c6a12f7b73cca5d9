"""The unified model in others' suites: lmms-eval finds it by its entry point, and it answers as by itself."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualtoken.model.mllm.saved import OpenedMllm, open_mllm
from dualtoken.pipelines.evaluation.adapters.answering import Prompt, answers, likelihood
from dualtoken.pipelines.evaluation.run_evaluation import ModelPlace
from dualtoken.pipelines.inference.unified import answer
from tests.helpers.taught_mllm import Lesson, lesson_image, lessons, taught_mllm
from tests.helpers.tiny_run import PROJECT

TASK = """
task: toy_vqa
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {table}}}
  local_files_only: true
test_split: test
output_type: {output_type}
doc_to_visual: !function toy.images
doc_to_text: question
doc_to_target: answer
{choices}
generation_kwargs: {{max_new_tokens: 16, until: ["\\n\\n"], temperature: 0}}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
"""
FUNCTIONS = """
import io
from PIL import Image

def images(document):
    return [Image.open(io.BytesIO(document["image"]))]
"""
EVALUATE = """
import json, sys
from dualtoken.model.vision.imports import vision_imports
with vision_imports():
    import torchvision
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

folder, model = sys.argv[1:]
manager = TaskManager("ERROR", include_path=folder, include_defaults=False)
found = simple_evaluate(
    model="dualtoken",
    model_args=f"pretrained={model}",
    tasks=["toy_vqa"],
    batch_size=3,
    device="cpu",
    task_manager=manager,
    bootstrap_iters=0,
)
samples = [
    {"answers": sample["resps"][0], "number": sample["doc_id"]} for sample in found["samples"]["toy_vqa"]
]
print("FOUND " + json.dumps({"results": found["results"]["toy_vqa"], "samples": samples}, default=str))
"""
ARGUMENTS = """
import json, sys
from dualtoken.model.vision.imports import vision_imports
with vision_imports():
    import torchvision
from lmms_eval.models import get_model

model = get_model("dualtoken")
said = []
for arguments in ({"batch_size": "auto"}, {"batch_size": 1, "num_frames": 8}):
    try:
        model(pretrained=sys.argv[1], **arguments)
    except ValueError as error:
        said.append(str(error))
opened = model.create_from_arg_string(f"pretrained={sys.argv[1]}", {"batch_size": 2, "device": "cpu"})
is_held = hasattr(opened, "opened")
opened.clean()
print("FOUND " + json.dumps({"said": said, "is_held": [is_held, hasattr(opened, "opened")]}))
"""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> ModelPlace:
    return taught_mllm(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def opened(taught: ModelPlace) -> OpenedMllm:
    return open_mllm(taught.folder.url)


def own_answer(opened: OpenedMllm, lesson: Lesson) -> str:
    codes = opened.processor.encode_images(lesson_image(lesson.scene))
    by_stream = {"semantic": codes.semantic.flatten(1, 2), "pixel": codes.pixel.flatten(1, 2)}
    return answer(opened, by_stream, lesson.question)


def test_a_batch_is_answered_as_each_question_alone(opened: OpenedMllm) -> None:
    taught = lessons()
    prompts = [Prompt(lesson.question, (lesson_image(lesson.scene),)) for lesson in taught]
    expected = [own_answer(opened, lesson) for lesson in taught]
    assert answers(opened, prompts, 5) == expected
    first = expected[0]
    assert answers(opened, prompts[:1], 1, until=(first[1:3],)) == [first[:1]]


def test_the_likeliest_continuation_is_the_answer(opened: OpenedMllm) -> None:
    lesson = lessons()[0]
    prompt = Prompt(lesson.question, (lesson_image(lesson.scene),))
    given = own_answer(opened, lesson)
    own = likelihood(opened, prompt, given)
    other = likelihood(opened, prompt, "purple" if given != "purple" else "white")
    assert own.is_likeliest
    assert not other.is_likeliest
    assert other.log_probability < own.log_probability < 0


def installed_by_pyproject(folder: Path) -> Path:
    """Write what an installation of this project makes of its entry points, and return the folder."""
    groups = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["entry-points"]
    place = folder / "dualtoken_entry_points-0.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: dualtoken-entry-points\nVersion: 0\n")
    lines: list[str] = []
    for group, points in groups.items():
        lines.append(f"[{group}]")
        lines += [f"{name} = {target}" for name, target in points.items()]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run_lmms_eval(
    folder: Path, model: str, output_type: str, metric: str, choices: str = ""
) -> dict[str, Any]:
    """Evaluate a model on a task of a table of lessons, with no network, in a process of its own."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for lesson in lessons()[:6]:
        picture = folder / "picture.png"
        lesson_image(lesson.scene).save(picture)
        rows.append({"image": picture.read_bytes(), "question": lesson.question, "answer": lesson.answer})
    pq.write_table(pa.Table.from_pylist(rows), folder / "table.parquet")
    task = TASK.format(
        table=folder / "table.parquet", output_type=output_type, metric=metric, choices=choices
    )
    (folder / "toy_vqa.yaml").write_text(task)
    (folder / "toy.py").write_text(FUNCTIONS)
    return found_by(folder, EVALUATE, str(folder), model)


def found_by(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Run a script where lmms-eval finds this project's entry points, and return what it prints as found."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env={
            **os.environ,
            "PYTHONPATH": f"{PROJECT}:{installed_by_pyproject(folder / 'installed')}",
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
        },
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert found, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(found[0].removeprefix("FOUND "))


needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None,
    reason="lmms-eval is not installed: pip install '.[lmms-eval]'",
)


@needs_lmms_eval
def test_lmms_eval_gets_our_answers(taught: ModelPlace, opened: OpenedMllm, tmp_path: Path) -> None:
    found = run_lmms_eval(tmp_path / "task", taught.folder.url, "generate_until", "exact_match")
    expected = [own_answer(opened, lesson) for lesson in lessons()[:6]]
    in_order = sorted(found["samples"], key=lambda sample: sample["number"])
    assert [sample["answers"] for sample in in_order] == [[text] for text in expected]
    are_right = [text == lesson.answer for text, lesson in zip(expected, lessons(), strict=False)]
    assert found["results"]["exact_match,none"] == pytest.approx(sum(are_right) / 6)
    assert any(are_right), "it has been taught these answers"


@needs_lmms_eval
def test_lmms_eval_chooses_the_likeliest_of_choices(
    taught: ModelPlace, opened: OpenedMllm, tmp_path: Path
) -> None:
    choices = ["circle", "square", "triangle", "diamond", "cross", "ring", *("red", "orange", "yellow")]
    choices += ["green", "cyan", "blue", "purple", "white", "small", "large"]
    found = run_lmms_eval(
        tmp_path / "task",
        taught.folder.url,
        "multiple_choice",
        "acc",
        f"doc_to_choice: {json.dumps(choices)}",
    )
    num_right = 0
    for lesson in lessons()[:6]:
        prompt = Prompt(lesson.question, (lesson_image(lesson.scene),))
        scores = {choice: likelihood(opened, prompt, choice).log_probability for choice in choices}
        num_right += max(scores, key=lambda choice: scores[choice]) == lesson.answer
    assert found["results"]["acc,none"] == pytest.approx(num_right / 6)
    assert num_right


@needs_lmms_eval
def test_arguments_of_lmms_eval_are_checked_and_memory_is_let_go(taught: ModelPlace, tmp_path: Path) -> None:
    found = found_by(tmp_path, ARGUMENTS, taught.folder.url)
    assert found["said"] == [
        "batch_size=auto: give a whole number",
        "--model_args: dualtoken has no num_frames: leave it out; it takes pretrained, batch_size and device",
    ]
    assert found["is_held"] == [True, False]


VLMEVAL = {
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {}\n",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": '''
class BaseModel:
    """As VLMEvalKit documents it: `generate` checks a message, and hands its parts to `generate_inner`."""

    INTERLEAVE = False
    allowed_types = ["text", "image", "video"]

    def __init__(self):
        self.dump_image_func = None

    def generate(self, message, dataset=None):
        assert all(part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)
''',
}
"""VLMEvalKit's interface: the package itself is not on the index."""


def test_a_message_of_vlmevalkit_is_answered(
    opened: OpenedMllm, taught: ModelPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("vlmeval") is None:
        for name, text in VLMEVAL.items():
            file = tmp_path / "site" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.syspath_prepend(tmp_path / "site")
    from vlmeval.config import supported_VLM  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    from dualtoken.pipelines.evaluation.adapters.vlmeval_model import register  # noqa: PLC0415

    register(taught.folder.url)
    model = supported_VLM["dualtoken"]()
    lesson = lessons()[0]
    file = tmp_path / "picture.png"
    lesson_image(lesson.scene).save(file)
    message = [{"type": "image", "value": str(file)}, {"type": "text", "value": lesson.question}]
    assert model.generate(message) == own_answer(opened, lesson)
