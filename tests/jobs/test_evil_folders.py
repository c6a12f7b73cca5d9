"""No door by which a model folder comes in runs its code: the key that asks for it is named, exit code 2."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from dualtoken.jobs.cli import app
from dualtoken.model.config.teacher import TeacherConfig
from dualtoken.model.config.tokenizer import TextConfig, TowerConfig
from dualtoken.model.teacher.folder import CONFIG_FILE, TOKENIZER_CONFIG
from dualtoken.model.teacher.teacher import build_teacher, load_teacher, save_teacher
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.pipelines.config.recipe import Recipe
from dualtoken.pipelines.errors import ExitCode, exit_code
from tests.helpers.evil_folders import SENTINEL_VARIABLE, add_evil_code, change_json, write_evil_pickle
from tests.helpers.tiny_run import TINY, planned_job
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config

AUTO_MAP = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
TEXT = ("model_cfg", "text_cfg")
VISION = ("model_cfg", "vision_cfg")


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "sentinel"
    monkeypatch.setenv(SENTINEL_VARIABLE, str(file))
    return file


@pytest.fixture(scope="module")
def sound_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher whose texts are read by a tokeniser beside its weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("teacher")
    config = TeacherConfig(
        image_size=32,
        tower=TowerConfig(patch_size=8, width=32, depth=3, num_heads=2, mlp_width=48),
        text=TextConfig(context_length=8, width=16, depth=1, num_heads=2),
    )
    save_teacher(build_teacher(config), config, folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "red": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    change_json(folder / CONFIG_FILE, *TEXT, "hf_tokenizer_name", value="beside the weights")
    return folder


@pytest.fixture
def teacher(sound_teacher: Path, tmp_path: Path, sentinel: Path) -> Path:
    assert not sentinel.exists()
    shutil.copytree(sound_teacher, tmp_path / "teacher")
    add_evil_code(tmp_path / "teacher")
    return tmp_path / "teacher"


def refused(arguments: Sequence[object]) -> str:
    """Run a command that must end with exit code 2 and one line; return the line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    message = result.output + str(result.exception)
    assert isinstance(result.exception, Exception), message
    assert len(str(result.exception).splitlines()) == 1, message
    assert exit_code(result.exception) == ExitCode.CONFIGURATION, message
    return message


def test_a_sound_folder_reads_texts_by_the_files_beside_its_weights(teacher: Path) -> None:
    embeddings = load_teacher(teacher).embed_texts(["a red", "a"])
    assert not torch.equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((*TEXT, "tokenizer_kwargs"), {"trust_remote_code": True}),
        ((*TEXT, "tokenizer_kwargs"), {"tokenizer_type": "evil"}),
        ((*TEXT, "hf_model_name"), "evil/text-tower"),
        ((*TEXT, "hf_model_name"), "."),
        ((*TEXT, "trust_remote_code"), True),
        ((*VISION, "timm_model_name"), "hf-hub:evil/tower"),
        ((*VISION, "timm_model_name"), "local-dir:."),
        ((*VISION, "timm_model_name"), "vit_evil"),
        ((*VISION, "timm_model_pretrained"), True),
        ((*VISION, "act_kwargs"), {"inplace": True}),
        (("model_cfg", "multimodal_cfg"), {}),
        (("model_cfg", "auto_map"), AUTO_MAP),
        (("auto_map",), AUTO_MAP),
        (("preprocess_cfg", "transform"), "evil.Evil"),
        (("preprocess_cfg", "std"), [0, 0, 0]),
    ],
)
def test_a_key_of_a_teacher_that_is_not_known_to_be_harmless_is_named(
    keys: tuple[str, ...], value: object, teacher: Path, sentinel: Path
) -> None:
    change_json(teacher / CONFIG_FILE, *keys, value=value)
    with pytest.raises(ValueError, match=r"\A.+\Z") as error:
        load_teacher(teacher)
    named = next(iter(value)) if isinstance(value, dict) and value and "map" not in keys[-1] else keys[-1]
    assert named in str(error.value)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("auto_map", AUTO_MAP), ("trust_remote_code", True), ("tokenizer_class", "../evil.Evil"), ("evil", 1)],
)
def test_a_key_of_a_text_tokeniser_that_is_not_known_to_be_harmless_is_named(
    key: str, value: object, teacher: Path, sentinel: Path
) -> None:
    change_json(teacher / TOKENIZER_CONFIG, key, value=value)
    with pytest.raises(ValueError, match=rf"\A.*tokenizer_config\.json.*{key}.*\Z"):
        load_teacher(teacher)
    assert not sentinel.exists()


def test_the_teacher_stage_names_the_key_and_stores_nothing_of_the_folder(
    teacher: Path, tmp_path: Path, sentinel: Path
) -> None:
    change_json(teacher / CONFIG_FILE, *TEXT, "tokenizer_kwargs", value={"trust_remote_code": True})
    change_json(teacher / TOKENIZER_CONFIG, "auto_map", value=AUTO_MAP)
    root = tmp_path / "root"
    local = json.dumps({"kind": "local", "folder": str(teacher)})
    arguments = ["teacher", TINY, "--in-process", "--root", root, "--set", f"teacher={local}"]
    message = refused(arguments)
    assert "auto_map" in message or "trust_remote_code" in message
    assert not list(root.rglob("evil.py"))
    assert not sentinel.exists()


@pytest.mark.parametrize("model", ["hf-hub:evil/teacher", "local-dir:{folder}"])
def test_a_teacher_by_name_is_one_of_open_clip_s_own(model: str, teacher: Path, tmp_path: Path) -> None:
    values = {"kind": "open_clip", "model": model.format(folder=teacher), "pretrained": "webli"}
    arguments = ["plan", TINY, "--root", tmp_path / "root", "--set", f"teacher={json.dumps(values)}"]
    assert "teacher" in refused(arguments)


def test_a_tokenizer_s_folder_runs_nothing(tmp_path: Path, sentinel: Path) -> None:
    DualTokenizer(tiny_tokenizer_config()).save_pretrained(tmp_path / "model")
    add_evil_code(tmp_path / "model")
    whole = (tmp_path / "model/config.json").read_text()
    for keys, value in (
        (("auto_map",), AUTO_MAP),
        (("config", "trust_remote_code"), True),
        (("config", "tower"), {"model": "hf-hub:evil/tower"}),
        (("config", "tower"), {"model": "../../evil"}),
        (("evil",), 1),
    ):
        (tmp_path / "model/config.json").write_text(whole)
        change_json(tmp_path / "model/config.json", *keys, value=value)
        (tmp_path / "image.png").touch()
        message = refused(
            ["tokenize", tmp_path / "model", tmp_path / "image.png", "--out", tmp_path / "c.safetensors"]
        )
        assert keys[-1] in message
        with pytest.raises(ValueError, match=r"\A.+\Z"):
            DualTokenizer.from_pretrained(tmp_path / "model")
    assert not sentinel.exists()


def train_refused(finished: Recipe, scratch: Path, *settings: str) -> str:
    """Run a training with other settings in a copy of a run; return the one line that refuses it."""
    root = shutil.copytree(finished.root, scratch / "run", dirs_exist_ok=True)
    arguments = ["train", TINY, "--in-process", "--root", root]
    for setting in settings:
        arguments += ["--set", f"train.{setting}"]
    line = refused(arguments)
    assert not list(root.rglob("evil.py"))
    return line


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("config.json", ("auto_map",), AUTO_MAP),
        ("config.json", ("config", "trust_remote_code"), True),
        ("config.json", ("config", "tower"), {"model": "hf-hub:evil/tower"}),
        ("config.json", ("config", "tower", "width"), 32 * 10**7),
    ],
)
def test_a_training_starts_from_no_folder_that_asks_for_code_or_memory(
    file: str, keys: tuple[str, ...], value: object, finished: Recipe, tmp_path: Path, sentinel: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(planned_job(finished, "train").folder, folder)
    add_evil_code(folder)
    change_json(folder / file, *keys, value=value)
    line = train_refused(finished, tmp_path, f"start_from={folder}")
    assert (
        line.startswith("1 of 1 units failed; train model: train.start_from=") or "train.start_from" in line
    )
    assert not sentinel.exists()


def test_a_training_starts_from_no_pickle_in_the_place_of_weights(
    finished: Recipe, tmp_path: Path, sentinel: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(planned_job(finished, "train").folder, folder)
    write_evil_pickle(folder / "model.safetensors", sentinel)
    assert "start_from" in train_refused(finished, tmp_path, f"start_from={folder}")
    assert not sentinel.exists()


def test_weights_of_lpips_run_no_code(finished: Recipe, tmp_path: Path, sentinel: Path) -> None:
    write_evil_pickle(tmp_path / "vgg.pth", sentinel)
    for key in ("backbone", "heads"):
        line = train_refused(finished, tmp_path, f"perceptual={{kind: lpips, {key}: {tmp_path / 'vgg.pth'}}}")
        assert "train.perceptual" in line
        if key == "backbone":
            assert "vgg.pth cannot be read as weights alone" in line
    assert not sentinel.exists()


def test_convert_runs_no_code_of_its_source(tmp_path: Path, sentinel: Path) -> None:
    (tmp_path / "reference.json").write_text("{}")
    write_evil_pickle(tmp_path / "checkpoint.pt", sentinel)
    message = refused(
        [
            "convert",
            tmp_path / "checkpoint.pt",
            tmp_path / "out",
            "--config",
            tmp_path / "reference.json",
        ]
    )
    assert "checkpoint.pt" in message
    assert "weights_only" not in message
    siglip = tmp_path / "siglip"
    siglip.mkdir()
    add_evil_code(siglip)
    (siglip / "config.json").write_text(json.dumps({"model_type": "siglip", "auto_map": AUTO_MAP}))
    assert "auto_map" in refused(["convert", siglip, tmp_path / "out"])
    (siglip / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": {}}))
    (siglip / TOKENIZER_CONFIG).write_text(json.dumps({"auto_map": AUTO_MAP}))
    assert "auto_map" in refused(["convert", siglip, tmp_path / "out"])
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ((*TEXT, "width"), 10**9),
        ((*TEXT, "layers"), 10**9),
        ((*TEXT, "vocab_size"), 10**12),
        ((*TEXT, "context_length"), 10**9),
        ((*TEXT, "heads"), 10**9),
        (("model_cfg", "embed_dim"), 10**9),
        ((*VISION, "timm_model_name"), "dualtoken_vit_p8_32_d3_w1000000000_h1_m48"),
        ((*VISION, "timm_model_name"), "dualtoken_vit_p8_32_d1000000000_w32_h2_m48"),
    ],
)
def test_a_teacher_larger_than_its_file_is_refused_before_it_is_made(
    keys: tuple[str, ...], value: object, teacher: Path
) -> None:
    change_json(teacher / CONFIG_FILE, *keys, value=value)
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        load_teacher(teacher)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("config", "tower", "width"), 10**9),
        (("config", "tower", "depth"), 10**9),
        (("config", "decoder", "latent_width"), 32 * 10**8),
        (("config", "decoder", "num_res_blocks"), 10**9),
        (("config", "pixel", "width"), 32 * 10**9),
    ],
)
def test_a_tokenizer_larger_than_its_file_is_refused_before_it_is_made(
    keys: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    DualTokenizer(tiny_tokenizer_config()).save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", *keys, value=value)
    with pytest.raises(ValueError, match=r"\A.+\Z"):
        DualTokenizer.from_pretrained(tmp_path)
