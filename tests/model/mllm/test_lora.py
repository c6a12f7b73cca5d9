"""Adapters of the trunk, by peft itself: they alone are trained, and are merged into what is saved."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dualtoken.model.config.mllm import LoraConfig, MllmTrainingConfig, NamedTrunk, is_adapter
from dualtoken.model.mllm import lora as lora_module
from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.lora import add_adapters, merge_adapters, save_adapter
from dualtoken.model.mllm.saved import save_mllm, vision_digest
from dualtoken.model.mllm.text_tokenizer import load_text_tokenizer
from dualtoken.model.mllm.trainer import MllmTrainer, freeze
from dualtoken.model.vision.imports import vision_imports
from tests.helpers.tiny_mllm import DESCRIBE, DRAW, documents, packed, tiny_config, tiny_model, tiny_vision
from tests.helpers.tiny_trunk import TrunkName, tiny_trunk
from tests.model.mllm.test_build import IDS, logits, named

with vision_imports():
    from transformers import AutoModelForCausalLM

pytest.importorskip("peft", reason="peft is missing: pip install 'dualtoken[lora]'")
LORA = LoraConfig(rank=2, alpha=4)
TRUNK = ("model.language_model.", "lm_head.")


def adapted(config: LoraConfig = LORA) -> DualTokenForConditionalGeneration:
    model = tiny_model()
    add_adapters(model, config, seed=7)
    return model


def steps(
    model: DualTokenForConditionalGeneration, config: MllmTrainingConfig, *numbers: int
) -> list[torch.Tensor]:
    """Take some steps, and return the adapters."""
    trainer = MllmTrainer(model, config)
    batch = packed(model, [documents(model, DRAW, DESCRIBE)])
    for number in numbers:
        trainer.step = number
        trainer.train_step([batch])
    return [parameter.detach() for name, parameter in model.named_parameters() if is_adapter(name)]


def test_fresh_adapters_change_nothing_and_depend_on_their_seed_alone() -> None:
    plain = tiny_model()
    state = torch.get_rng_state()
    first = adapted()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(first.eval()), logits(plain.eval()))
    torch.rand(1)
    again = adapted()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("phase", "others"), [(2, {"model.visual_projector", "model.visual_positions"}), (4, None)]
)
def test_adapters_move_and_their_trunk_does_not(phase: int, others: set[str] | None) -> None:
    model = adapted()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    steps(model, tiny_config(lora=LORA, phase=phase), 0, 1)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if is_adapter(name)}
    assert len(adapters) == 2 * 2 * 7, "two matrices for each of the linear layers of two blocks"
    assert {name for name in moved if name.startswith(TRUNK)} == adapters
    rest = {".".join(name.split(".")[:2]) for name in moved - adapters}
    if others is None:
        assert {"model.visual_projector", "model.visual_positions", "heads.semantic", "heads.pixel"} == rest
    else:
        assert rest == others


def test_only_the_layers_that_are_named_have_adapters() -> None:
    config = LoraConfig(rank=2, target_modules=("q_proj", "v_proj"))
    names = [name for name, _ in adapted(config).named_parameters() if is_adapter(name)]
    assert len(names) == 2 * 2 * 2
    assert all(".q_proj." in name or ".v_proj." in name for name in names)
    for wrong in ("c_attn", "embed_tokens", "layers.0"):
        with pytest.raises(
            ValueError, match=rf"target_modules: '{wrong}' names no linear layers .*: use some of "
        ):
            adapted(LoraConfig(target_modules=(wrong,)))


def test_dropout_is_that_of_the_step_whatever_was_drawn_before() -> None:
    config = tiny_config(lora=LoraConfig(rank=2, dropout=0.5), schedule="constant")
    whole = steps(adapted(LoraConfig(rank=2, dropout=0.5)), config, 0, 1)
    torch.rand(5)
    again = steps(adapted(LoraConfig(rank=2, dropout=0.5)), config, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    other = steps(adapted(LoraConfig(rank=2, dropout=0.5)), config, 0, 2)
    assert not all(torch.equal(a, b) for a, b in zip(whole, other, strict=True)), "each step draws its own"
    none = steps(adapted(LORA), config, 0, 1)
    assert not all(torch.equal(a, b) for a, b in zip(whole, none, strict=True))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own call
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_a_saved_model_has_its_adapters_merged_and_beside_it_as_peft_reads_them(
    name: TrunkName, tmp_path: Path
) -> None:
    from peft import PeftModel  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    trunk = tiny_trunk(tmp_path / "trunk", name)
    vision = tmp_path / "vision"
    tiny_vision().save_pretrained(vision)
    model = named(trunk, vision_digest(vision))
    plain_names = model.state_dict().keys()
    before = logits(model)
    add_adapters(model, LORA, seed=7)
    config = tiny_config(trunk=NamedTrunk(kind="pretrained", model=str(trunk)), lora=LORA)
    steps(model, config, 0, 1, 2)
    expected = logits(model.eval())
    assert not torch.allclose(expected, before)

    saved = tmp_path / "saved"
    saved.mkdir()
    save_adapter(model, LORA, saved / "adapter", str(trunk))
    merge_adapters(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    save_mllm(saved, model, load_text_tokenizer(trunk), vision)
    assert model.state_dict().keys() == plain_names
    assert not any("lora" in key for key in load_file(saved / "model.safetensors"))

    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trunk), str(saved / "adapter"))
    torch.testing.assert_close(logits(by_peft.eval()), expected, rtol=1e-4, atol=1e-5)
    assert by_peft.peft_config["default"].base_model_name_or_path == str(trunk)

    torch.save(expected, tmp_path / "logits.pt")
    program = (
        "import sys; sys.modules['peft'] = None\n"
        "import torch, dualtoken\n"
        "model, _ = dualtoken.open_mllm(sys.argv[1])\n"
        f"found = model(input_ids=torch.tensor({IDS.tolist()})).logits\n"
        "torch.testing.assert_close(found, torch.load(sys.argv[2]), rtol=1e-4, atol=1e-5)\n"
    )
    command = [sys.executable, "-c", program, str(saved), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_peft_it_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(
        ValueError, match=r"^lora needs the package peft: pip install 'dualtoken\[lora\]', or set"
    ):
        adapted()


def test_a_frozen_group_freezes_adapters_too() -> None:
    model = adapted()
    freeze(model, tiny_config(lora=LORA, parameters=[{"pattern": "*lora_A*", "freeze": True}]))
    trained = {name for name, p in model.named_parameters() if p.requires_grad and is_adapter(name)}
    assert trained
    assert all(".lora_B." in name for name in trained)
