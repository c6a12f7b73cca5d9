"""A saved tokenizer on image files, as a user calls it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dualtoken.jobs.cli import main
from dualtoken.model.config.quantizer import (
    AnyQuantizerConfig,
    QuantizerConfig,
    ScalarQuantizerConfig,
    SplitQuantizerConfig,
)
from dualtoken.model.config.tokenizer import (
    ConvEncoderConfig,
    DecoderConfig,
    ShortcutConfig,
    TokenizerConfig,
    TowerConfig,
)
from dualtoken.model.hub.saved_model import fingerprint
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.image_files import open_image

PROJECT = Path(__file__).resolve().parents[2]
Command = Callable[..., "Ended"]


class Ended(NamedTuple):
    """What a user sees of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def dualtoken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run the command in this process: starting one that brings PyTorch takes seconds."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dualtoken", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Ended(int(ended.value.code or 0), said.out, said.err)

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def export(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Export in a process of its own: elsewhere in these tests beartype checks shapes, and its checks cannot be exported."""
    command = [sys.executable, "-m", "dualtoken.jobs.cli", "export", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=PROJECT, check=False, timeout=300, env=environment
    )


def build(pixel: AnyQuantizerConfig, semantic: AnyQuantizerConfig, **others: Any) -> DualTokenizer:
    settings = {
        "tower": TowerConfig(patch_size=5, width=32, depth=4, num_heads=2, mlp_width=48),
        "pixel_block": 2,
        "semantic_block": 3,
        "shortcut": ShortcutConfig(block=1),
        "decoder": DecoderConfig(
            latent_size=4, latent_width=16, width=8, multipliers=(1, 2, 2), num_res_blocks=1, norm_groups=4
        ),
    }
    config = TokenizerConfig(image_size=16, pixel=pixel, semantic=semantic, **settings | others)
    torch.manual_seed(0)
    return DualTokenizer(config).eval()


QUANTIZER = QuantizerConfig(num_codes=32, depth=3, width=8)
EXPORTED: dict[str, Callable[[], DualTokenizer]] = {
    "residual": lambda: build(QUANTIZER, QUANTIZER),
    "beam and split": lambda: build(
        QuantizerConfig(num_codes=32, depth=4, width=8, beam=3),
        SplitQuantizerConfig(kind="split", num_codes=32, depth=4, width=8),
    ),
    "scalar and separate": lambda: build(
        ScalarQuantizerConfig(kind="scalar", levels=(4, 4), depth=4),
        QuantizerConfig(num_codes=32, depth=4, width=8, shared=False),
    ),
    "one for both": lambda: build(QUANTIZER, QUANTIZER, shared_codebook=True, pixel_block=3, shortcut=None),
    "an encoder of pixels": lambda: build(
        QUANTIZER,
        QUANTIZER,
        tower=TowerConfig(patch_size=4, width=32, depth=4, num_heads=2, mlp_width=48),
        shortcut=None,
        pixel_encoder=ConvEncoderConfig(width=8, multipliers=(1, 1, 2), num_res_blocks=1, norm_groups=4),
    ),
}


@pytest.fixture(scope="module")
def tokenizer() -> DualTokenizer:
    return build(QUANTIZER, QUANTIZER)


@pytest.fixture(scope="module")
def model(tokenizer: DualTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer.save_pretrained(folder := tmp_path_factory.mktemp("model"))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Three good images, of kinds that need care, and four that are none."""
    levels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(levels).save(folder / "a.png")
    Image.fromarray(levels).convert("CMYK").save(folder / "b.jpg")
    Image.fromarray(levels).save(
        folder / "below/a.png", save_all=True, append_images=[Image.new("RGB", (20, 24))]
    )
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:700])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image\n" * 50)
    return folder


def test_tokenize_does_the_good_files_and_names_the_bad(
    dualtoken: Command, model: Path, tokenizer: DualTokenizer, files: Path, tmp_path: Path
) -> None:
    ended = dualtoken(
        "tokenize",
        model,
        files,
        files / "missing.png",
        "--out",
        tmp_path / "codes.safetensors",
        "--batch-size",
        "2",
    )
    assert ended.returncode == 2
    problems = {line.split(": ")[1]: line.split(": ", 2)[2] for line in ended.stderr.splitlines()}
    assert {Path(name).name for name in problems} == {"cut.png", "empty.png", "text.jpg", "missing.png"}
    assert problems[str(files / "missing.png")] == "there is no such file"
    assert ended.stdout == f"3 images, {tmp_path}/codes.safetensors\n"
    with safe_open(tmp_path / "codes.safetensors", "numpy") as saved:
        said = json.loads(saved.metadata()["dualtoken"])
        semantic, pixel = saved.get_tensor("semantic"), saved.get_tensor("pixel")
    assert said["names"] == [str(files / name) for name in ("a.png", "b.jpg", "below/a.png")]
    assert said["tokenizer"] == fingerprint(model)
    expected = tokenizer.encode(tokenizer.transform([open_image(name) for name in said["names"]]))
    assert (semantic.dtype, pixel.dtype) == (np.uint16, np.uint16)
    assert np.array_equal(semantic, expected.semantic.numpy())
    assert np.array_equal(pixel, expected.pixel.numpy())


def test_reconstruct_shows_both_and_their_distance(
    dualtoken: Command, model: Path, tokenizer: DualTokenizer, files: Path, tmp_path: Path
) -> None:
    ended = dualtoken(
        "reconstruct", model, files / "a.png", files / "below", files / "a.png", "--out", tmp_path / "out"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *_, last = ended.stdout.splitlines()
    assert len(list((tmp_path / "out").iterdir())) == 3
    with Image.open(first.split(" dB, ")[1]) as both:
        pair = np.asarray(both)
    assert pair.shape == (16, 32, 3)
    images = tokenizer.transform([open_image(files / "a.png")])
    drawn = (
        tokenizer.transform.to_uint8(tokenizer.decode(tokenizer.encode(images).pixel))[0]
        .permute(1, 2, 0)
        .numpy()
    )
    assert np.array_equal(pair[:, 16:], drawn)
    error = np.square((pair[:, :16].astype(float) - drawn) / 255).mean()
    assert first.startswith(f"{files}/a.png: {-10 * np.log10(error):.2f} dB")
    assert last.startswith("3 images, mean PSNR ")
    assert "0.5273 bits of pixel codes per pixel" in last
    assert first.endswith("_a.png")


def test_a_call_without_one_good_image_writes_nothing(
    dualtoken: Command, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "none").mkdir()
    ended = dualtoken("tokenize", model, tmp_path / "none", "--out", tmp_path / "codes.safetensors")
    assert ended.returncode == 2
    assert "none: has no image in it" in ended.stderr
    assert not (tmp_path / "codes.safetensors").exists()


def test_a_model_that_is_none_is_one_line(dualtoken: Command, tmp_path: Path) -> None:
    ended = dualtoken("tokenize", tmp_path, "a.png", "--out", tmp_path / "codes.safetensors")
    assert ended.returncode == 2
    assert (
        ended.stderr
        == f"dualtoken: {tmp_path} has no config.json: name a folder that DualTokenizer.save_pretrained wrote\n"
    )


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_name_that_no_model_can_have_is_refused_before_pytorch_is_brought(name: str) -> None:
    lines = [
        "import sys; from jobs.cli import main",
        f"sys.argv = ['dualtoken', 'tokenize', {name!r}, 'a.png', '--out', 'codes.safetensors']",
        "try: main()",
        "except SystemExit as end: sys.exit(9 if 'torch' in sys.modules else end.code)",
    ]
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=PROJECT, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"dualtoken: {name}: no such folder: name a folder")


def test_an_out_of_the_wrong_kind_is_refused(dualtoken: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for command, out, said in (
        ("tokenize", tmp_path, "is a directory"),
        ("reconstruct", tmp_path / "file", "is a file"),
    ):
        ended = dualtoken(command, model, tmp_path, "--out", out)
        assert ended.returncode == 2
        assert said in " ".join(
            ended.stderr.replace("│", " ").split()
        )  # in a box, broken where the folder's name is long


def test_nothing_is_written_over_what_is_read(dualtoken: Command, model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(picture := tmp_path / "a.png")
    (tmp_path / "below").mkdir()
    before = picture.read_bytes()
    for images, out in ((picture, tmp_path), (tmp_path, tmp_path), (tmp_path, tmp_path / "below")):
        ended = dualtoken("reconstruct", model, images, "--out", out)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert f"--out {out} is where images are read from ({images}): name another folder" in ended.stderr
    ended = dualtoken("tokenize", model, picture, "--out", picture)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"dualtoken: {picture} does not end in .safetensors: name a file to write\n",
    )
    weights = (model / "model.safetensors").read_bytes()
    ended = dualtoken("tokenize", model, picture, "--out", model / "model.safetensors")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "is in the model's own folder: name another place" in ended.stderr
    assert (model / "model.safetensors").read_bytes() == weights
    assert picture.read_bytes() == before
    assert dualtoken("reconstruct", model, picture, "--out", tmp_path / "below").returncode == 0


def test_a_place_that_cannot_be_written_is_told_before_any_work(
    dualtoken: Command, model: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (20, 20), "red").save(picture := tmp_path / "a.png")
    for command, out in (("tokenize", "codes.safetensors"), ("reconstruct", ""), ("export", "")):
        for place in (picture / "x", Path("/proc/x")):
            ended = dualtoken(
                command, model, *([] if command == "export" else [picture]), "--out", place / out
            )
            assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
            assert f"{place} cannot be written (" in ended.stderr


def test_codes_are_readable_by_whom_other_files_are(dualtoken: Command, model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(picture := tmp_path / "a.png")
    assert dualtoken("tokenize", model, picture, "--out", tmp_path / "codes.safetensors").returncode == 0
    modes = {
        file.stat().st_mode for file in (picture, tmp_path / "codes.safetensors", model / "model.safetensors")
    }
    assert len(modes) == 1


@pytest.mark.slow
@pytest.mark.parametrize("made", EXPORTED.values(), ids=EXPORTED)
def test_onnx_gives_the_same_codes_and_pictures(made: Callable[[], DualTokenizer], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install '.[export]'")
    (tokenizer := made()).save_pretrained(tmp_path / "model")
    ended = export(tmp_path / "model", "--format", "onnx", "--out", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    encode, decode = (
        onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("encode", "decode")
    )
    for count in (1, 2, 5):  # of which the exporter saw one
        images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1
        codes = tokenizer.encode(images)
        semantic, pixel = encode.run(None, {"images": images.numpy()})
        assert np.array_equal(semantic, codes.semantic.numpy())
        assert np.array_equal(pixel, codes.pixel.numpy())
        (drawn,) = decode.run(None, {"pixel": pixel})
        assert np.abs(drawn - tokenizer.decode(codes.pixel).numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("made", EXPORTED.values(), ids=EXPORTED)
def test_torch_export_gives_the_same_codes_and_pictures(
    made: Callable[[], DualTokenizer], tmp_path: Path
) -> None:
    (tokenizer := made()).save_pretrained(tmp_path / "model")
    ended = export(tmp_path / "model", "--format", "torch-export", "--out", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    encode, decode = (torch.export.load(tmp_path / f"{name}.pt2").module() for name in ("encode", "decode"))
    for count in (1, 5):
        images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1
        codes = tokenizer.encode(images)
        semantic, pixel = encode(images)
        assert torch.equal(semantic, codes.semantic)
        assert torch.equal(pixel, codes.pixel)
        assert (decode(pixel) - tokenizer.decode(codes.pixel)).abs().max() < 1e-4
