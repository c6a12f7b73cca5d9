"""A saved tokenizer on image files, as a user calls it."""

import json
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
from dualtoken.model.config.tokenizer import ConvEncoderConfig, TokenizerConfig, TowerConfig
from dualtoken.model.hub.saved_model import fingerprint
from dualtoken.model.tokenizer.dual_tokenizer import DualTokenizer
from dualtoken.model.vision.image_files import open_image
from tests.helpers.command_line import run_dualtoken
from tests.helpers.tiny_run import PROJECT
from tests.helpers.tiny_tokenizer import tiny_tokenizer_config

Command = Callable[..., "Ended"]
"""Runs a command in this process."""


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
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def export(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Export in a process of its own.

    beartype may check shapes in this one, and its checks cannot be exported.
    """
    return run_dualtoken("export", *arguments, timeout_seconds=300, environment={"OMP_NUM_THREADS": "1"})


def build(pixel: AnyQuantizerConfig, semantic: AnyQuantizerConfig, **others: Any) -> DualTokenizer:
    """Return a tiny tokenizer with other quantizers and settings."""
    settings = dict(tiny_tokenizer_config()) | {"pixel": pixel, "semantic": semantic} | others
    torch.manual_seed(0)
    return DualTokenizer(TokenizerConfig.model_validate(settings)).eval()


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
    folder = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red image."""
    file = tmp_path / "a.png"
    Image.new("RGB", (20, 20), "red").save(file)
    return file


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
    out = tmp_path / "codes.safetensors"
    ended = dualtoken("tokenize", model, files, files / "missing.png", "--out", out, "--batch-size", "2")
    assert ended.returncode == 2
    problems: dict[str, str] = {}
    for line in ended.stderr.splitlines():
        _, name, problem = line.split(": ", 2)
        problems[name] = problem
    assert {Path(name).name for name in problems} == {"cut.png", "empty.png", "text.jpg", "missing.png"}
    assert problems[str(files / "missing.png")] == "there is no such file"
    assert ended.stdout == f"3 images, {out}\n"
    with safe_open(out, "numpy") as saved:
        metadata = json.loads(saved.metadata()["dualtoken"])
        semantic = saved.get_tensor("semantic")
        pixel = saved.get_tensor("pixel")
    assert metadata["names"] == [str(files / name) for name in ("a.png", "b.jpg", "below/a.png")]
    assert metadata["tokenizer"] == fingerprint(model)
    images = [open_image(name) for name in metadata["names"]]
    expected = tokenizer.encode(tokenizer.transform(images))
    assert (semantic.dtype, pixel.dtype) == (np.uint16, np.uint16)
    assert np.array_equal(semantic, expected.semantic.numpy())
    assert np.array_equal(pixel, expected.pixel.numpy())


def test_names_that_are_not_utf8_are_escaped_and_the_rest_is_done(
    dualtoken: Command, model: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("caf\udce9.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(picture.read_bytes())
    ended = dualtoken("reconstruct", model, tmp_path / "in", "--out", tmp_path / "out")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "caf\\udce9.png: " in ended.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2
    codes = tmp_path / "codes.safetensors"
    assert dualtoken("tokenize", model, tmp_path / "in", "--out", codes).returncode == 0
    with safe_open(codes, "np") as file:
        names = json.loads(file.metadata()["dualtoken"])["names"]
    assert [Path(name).name for name in names] == ["b.png", "caf\\xe9.png"]


def test_reconstruct_shows_both_and_their_distance(
    dualtoken: Command, model: Path, tokenizer: DualTokenizer, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = dualtoken("reconstruct", model, files / "a.png", files / "below", files / "a.png", "--out", out)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *_, last = ended.stdout.splitlines()
    assert len(list(out.iterdir())) == 3
    with Image.open(first.split(" dB, ")[1]) as side_by_side:
        levels = np.asarray(side_by_side)
    assert levels.shape == (16, 32, 3)
    original = levels[:, :16]
    reconstruction = levels[:, 16:]
    images = tokenizer.transform([open_image(files / "a.png")])
    decoded = tokenizer.decode(tokenizer.encode(images).pixel)
    expected = tokenizer.transform.to_uint8(decoded)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(reconstruction, expected)
    error = np.square((original.astype(float) - expected) / 255).mean()
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
    told = "has no config.json: name a folder that DualTokenizer.save_pretrained wrote"
    assert ended.stderr == f"dualtoken: {tmp_path} {told}\n"


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_name_that_no_model_can_have_is_refused_before_pytorch_is_brought(name: str) -> None:
    lines = [
        "import sys",
        "from dualtoken.jobs.cli import main",
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
    mistakes = [("tokenize", tmp_path, "is a directory"), ("reconstruct", tmp_path / "file", "is a file")]
    for command, out, problem in mistakes:
        ended = dualtoken(command, model, tmp_path, "--out", out)
        assert ended.returncode == 2
        # In a box, with a line break where the name of the folder is long.
        assert problem in " ".join(ended.stderr.replace("│", " ").split())


def test_nothing_is_written_over_what_is_read(
    dualtoken: Command, model: Path, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    before = picture.read_bytes()
    for images, out in ((picture, tmp_path), (tmp_path, tmp_path), (tmp_path, tmp_path / "below")):
        ended = dualtoken("reconstruct", model, images, "--out", out)
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert f"--out {out} is where images are read from ({images}): name another folder" in ended.stderr
    ended = dualtoken("tokenize", model, picture, "--out", picture)
    assert ended.returncode == 2
    assert ended.stderr == f"dualtoken: {picture} does not end in .safetensors: name a file to write\n"
    weights = (model / "model.safetensors").read_bytes()
    ended = dualtoken("tokenize", model, picture, "--out", model / "model.safetensors")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "is in the model's own folder: name another place" in ended.stderr
    assert (model / "model.safetensors").read_bytes() == weights
    assert picture.read_bytes() == before
    assert dualtoken("reconstruct", model, picture, "--out", tmp_path / "below").returncode == 0


def test_a_place_that_cannot_be_written_is_told_before_any_work(
    dualtoken: Command, model: Path, picture: Path
) -> None:
    for place in (picture / "x", Path("/proc/x")):
        for arguments in (
            ("tokenize", model, picture, "--out", place / "codes.safetensors"),
            ("reconstruct", model, picture, "--out", place),
            ("export", model, "--out", place),
        ):
            ended = dualtoken(*arguments)
            assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
            assert f"{place} cannot be written (" in ended.stderr


def test_codes_are_readable_by_whom_other_files_are(
    dualtoken: Command, model: Path, picture: Path, tmp_path: Path
) -> None:
    codes = tmp_path / "codes.safetensors"
    assert dualtoken("tokenize", model, picture, "--out", codes).returncode == 0
    modes = {file.stat().st_mode for file in (picture, codes, model / "model.safetensors")}
    assert len(modes) == 1


def few_images(count: int) -> torch.Tensor:
    """Return images of noise in [-1, 1]."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1


@pytest.mark.slow
@pytest.mark.parametrize("made", EXPORTED.values(), ids=EXPORTED)
def test_onnx_gives_the_same_codes_and_pictures(made: Callable[[], DualTokenizer], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install '.[export]'")
    tokenizer = made()
    tokenizer.save_pretrained(tmp_path / "model")
    ended = export(tmp_path / "model", "--format", "onnx", "--out", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    encode = onnxruntime.InferenceSession(str(tmp_path / "encode.onnx"))
    decode = onnxruntime.InferenceSession(str(tmp_path / "decode.onnx"))
    for count in (1, 2, 5):  # the exporter saw one of these
        images = few_images(count)
        codes = tokenizer.encode(images)
        semantic, pixel = encode.run(None, {"images": images.numpy()})
        assert np.array_equal(semantic, codes.semantic.numpy())
        assert np.array_equal(pixel, codes.pixel.numpy())
        (decoded,) = decode.run(None, {"pixel": pixel})
        assert np.abs(decoded - tokenizer.decode(codes.pixel).numpy()).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("made", EXPORTED.values(), ids=EXPORTED)
def test_torch_export_gives_the_same_codes_and_pictures(
    made: Callable[[], DualTokenizer], tmp_path: Path
) -> None:
    tokenizer = made()
    tokenizer.save_pretrained(tmp_path / "model")
    ended = export(tmp_path / "model", "--format", "torch-export", "--out", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    encode = torch.export.load(tmp_path / "encode.pt2").module()
    decode = torch.export.load(tmp_path / "decode.pt2").module()
    for count in (1, 5):
        images = few_images(count)
        codes = tokenizer.encode(images)
        semantic, pixel = encode(images)
        assert torch.equal(semantic, codes.semantic)
        assert torch.equal(pixel, codes.pixel)
        assert (decode(pixel) - tokenizer.decode(codes.pixel)).abs().max() < 1e-4
