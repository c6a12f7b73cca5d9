"""Saving, loading, the card, and hub names where there is no hub."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from dualtoken.model.hub.saved_model import find_folder, fingerprint
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.transform import Transform
from tests.helpers.hub_server import Hub, local_hub

ROOT = Path(__file__).resolve().parents[3]


def read(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_transform_travels_with_the_model(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.transform = Transform(
        image_size=16, fit="squash", interpolation="lanczos", mean=(0.4, 0.5, 0.6)
    )
    tokenizer.save_pretrained(tmp_path)
    loaded = DualTokenizer.from_pretrained(tmp_path)
    assert loaded.transform == tokenizer.transform
    images = loaded.transform([Image.new("RGB", (30, 20), "white")])
    assert images.shape == (1, 3, 16, 16)
    assert images[0, :, 0, 0].tolist() == pytest.approx([1.2, 1.0, 0.8])


def test_a_folder_from_before_transforms_still_loads(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["transform"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    (tmp_path / "README.md").unlink()
    assert DualTokenizer.from_pretrained(str(tmp_path)).transform == Transform(image_size=16)


def test_damaged_weights_are_named(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"a text"):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"model\.safetensors is no file of safetensors, or a damaged one: "
        ) as error:
            DualTokenizer.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)


def test_exchanged_weights_are_named_with_both_fingerprints(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        tokenizer.get_parameter("decoder.conv_out.bias").add_(1e-3)
    tokenizer.save_pretrained(tmp_path / "second")
    saved_with = fingerprint(tmp_path / "first")
    (tmp_path / "first/model.safetensors").write_bytes((tmp_path / "second/model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"\A.+take README\.md away and call save_pretrained.+\Z") as error:
        DualTokenizer.from_pretrained(tmp_path / "first")
    assert saved_with in str(error.value)
    assert fingerprint(tmp_path / "first") in str(error.value)
    # The way that the message names.
    (tmp_path / "first/README.md").unlink()
    DualTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "first")
    assert fingerprint(tmp_path / "first") in (tmp_path / "first/README.md").read_text()


def test_damaged_weights_are_named_with_both_fingerprints(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    saved_with = fingerprint(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 64
    for damaged in (bytes(flipped), whole[:-4], b""):
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"\A.+\Z") as error:
            DualTokenizer.from_pretrained(tmp_path)
        assert saved_with in str(error.value)
        assert fingerprint(tmp_path) in str(error.value)


def test_a_card_that_was_written_anew_by_hand_names_no_fingerprint_and_is_no_fault(
    tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("# My tokenizer\n")
    loaded = DualTokenizer.from_pretrained(tmp_path).state_dict()
    saved = tokenizer.state_dict()
    assert list(loaded) == list(saved)
    for name, weights in saved.items():
        assert torch.equal(loaded[name], weights), name


def test_a_configuration_that_cannot_be_is_one_line_with_its_key(
    tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "config.json").read_text()
    for keys, key in (
        (("config", "pixel", "num_codes"), r"config\.pixel\.\S*num_codes"),
        (("transform", "image_size"), r"transform\.image_size"),
    ):
        saved = json.loads(whole)
        *groups, last = keys
        group = saved
        for name in groups:
            group = group[name]
        group[last] = -1
        (tmp_path / "config.json").write_text(json.dumps(saved))
        with pytest.raises(ValueError, match=rf"config\.json: {key}: ") as error:
            DualTokenizer.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)


def test_saving_twice_gives_the_same_bytes_also_after_loading(
    tokenizer: DualTokenizer, tmp_path: Path
) -> None:
    for name in ("first", "second", "second"):
        tokenizer.save_pretrained(tmp_path / name)
    DualTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "third")
    assert sorted(read(tmp_path / "first")) == ["README.md", "config.json", "model.safetensors"]
    assert read(tmp_path / "first") == read(tmp_path / "second") == read(tmp_path / "third")


def test_the_card_says_what_codes_cost(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    # 3 x 3 tokens of 3 depths with 5 bits each, in 16 x 16 pixels, for each of two streams.
    assert "| pixel | 3 x 3 x 3 | 32 | 135 | 0.5273 |" in text
    assert "| both | | | 270 | 1.0547 |" in text
    num_parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
    assert f"Parameters: {num_parameters:,} (tower " in text
    content = (tmp_path / "config.json").read_bytes() + (tmp_path / "model.safetensors").read_bytes()
    assert fingerprint(tmp_path) == hashlib.sha256(content).hexdigest()
    assert fingerprint(tmp_path) in text


def test_the_card_s_example_runs(
    tokenizer: DualTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    readme = (tmp_path / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    exec(example, {})
    assert capsys.readouterr().out == "(1, 3, 3, 3) (1, 3, 3, 3) (1, 3, 16, 16)\n"


def test_other_weights_have_another_fingerprint(tokenizer: DualTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "first")
    with torch.no_grad():
        tokenizer.get_parameter("decoder.conv_out.bias").add_(1e-3)
    tokenizer.save_pretrained(tmp_path / "second")
    assert fingerprint(tmp_path / "first") != fingerprint(tmp_path / "second")


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "some/../where", "../nowhere", "owner/na me"])
def test_what_is_neither_folder_nor_hub_name_is_told_at_once(name: str) -> None:
    with pytest.raises(
        ValueError, match="no such folder: name a folder that save_pretrained wrote, or a hub repository"
    ):
        find_folder(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        # Port 9 of this machine answers nobody: a network without a hub.
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}, "the hub cannot be reached"),
        ({"HF_HUB_OFFLINE": "1"}, "the hub is not asked (offline)"),
    ],
)
def test_a_hub_name_without_a_hub_is_one_quick_line(
    settings: dict[str, str], message: str, tmp_path: Path
) -> None:
    script = """
import time
from dualtoken.model.hub.saved_model import find_folder

started = time.monotonic()
try:
    find_folder("owner/name")
except ValueError as error:
    print(error)
    print(time.monotonic() - started)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path)} | settings
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment, check=True
    )
    line, seconds = ended.stdout.splitlines()
    assert line.startswith(f"owner/name: no such folder, not in the hub's cache, and {message}")
    assert float(seconds) < 8
    assert ended.stderr == ""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the library finds, as if HF_ENDPOINT had named it before the library was imported."""
    with local_hub() as served:
        settings = {
            "ENDPOINT": served.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_none")
        yield served


def test_a_model_pushed_to_a_hub_comes_back_to_the_byte(
    tokenizer: DualTokenizer, tmp_path: Path, hub: Hub
) -> None:
    pushed = tokenizer.push_to_hub("owner/pushed")
    saved = tokenizer.save_pretrained(
        tmp_path / "saved", repo_id="owner/saved", push_to_hub=True, private=True
    )
    assert pushed.startswith(f"{hub.address}/owner/pushed/commit/")
    assert saved is not None
    assert saved.startswith(f"{hub.address}/owner/saved/commit/")
    DualTokenizer.from_pretrained("owner/pushed").save_pretrained(tmp_path / "back")
    files = read(tmp_path / "saved")
    assert hub.repositories["owner/pushed"] == files
    assert hub.repositories["owner/saved"] == files
    assert read(tmp_path / "back") == files
