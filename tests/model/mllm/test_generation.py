"""Drawing and answering: guidance, batches, seeds, caches; and what a saved model gives in a new process."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from dualtoken.model.mllm.conditional_generation import DualTokenForConditionalGeneration
from dualtoken.model.mllm.depth_heads import DecodingHeads
from dualtoken.model.mllm.generation import draw_codes, noise_of_images
from dualtoken.model.mllm.sampling import Sampling, guided, image_noise, sample
from dualtoken.model.mllm.saved import open_mllm, save_mllm, vision_digest
from dualtoken.model.mllm.segments import Segments
from tests.helpers.tiny_mllm import MARKERS, TEXT, tiny_config, tiny_model, tiny_vision

START = MARKERS.image_start
SHORT = [270, START]
LONG = [271, 272, 273, 274, 275, 276, START]


def noise(model: DualTokenForConditionalGeneration, *images: int, seed: int = 0) -> Tensor:
    config = model.config
    made = [image_noise(seed, n, config.image_positions, len(config.targets), config.depth) for n in images]
    return torch.stack(made)


def draw(
    model: DualTokenForConditionalGeneration, prompts: list[list[int]], own_noise: Tensor, scale: float = 3.0
) -> dict[str, Tensor]:
    return draw_codes(model, prompts, own_noise, unconditional=[START], guidance_scale=scale)


def trained_model(targets: tuple[str, ...] = ("semantic", "pixel")) -> DualTokenForConditionalGeneration:
    """Return a model whose heads and trunk say different things of different prompts."""
    model = tiny_model(tiny_config(inputs=list(targets), targets=list(targets)))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(9)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def test_an_image_depends_on_its_prompt_and_noise_alone() -> None:
    model = trained_model()
    together = draw(model, [SHORT, LONG, SHORT], noise(model, 0, 1, 2))
    for place, prompt in enumerate([SHORT, LONG, SHORT]):
        alone = draw(model, [prompt], noise(model, place))
        for stream, codes in alone.items():
            assert torch.equal(codes[0], together[stream][place])
    assert not torch.equal(together["pixel"][0], together["pixel"][2]), "other noise, another image"
    assert not torch.equal(together["pixel"][0], together["pixel"][1])
    again = draw(model, [SHORT, LONG, SHORT], noise(model, 0, 1, 2))
    assert torch.equal(again["semantic"], together["semantic"]), "nothing is kept between calls"


def test_the_cached_drawing_is_the_likeliest_by_the_losses_own_pass() -> None:
    """Greedy codes, one position and depth at a time from caches, are those of a pass over the whole."""
    model = trained_model()
    greedy = Sampling(temperature=0.0)
    none = noise(model, 0)
    drawn = draw_codes(model, [LONG], none, unconditional=[START], sampling=greedy)
    ids = torch.tensor([[*LONG, *[MARKERS.image] * model.config.image_positions]])
    segments = Segments(torch.tensor([0, ids.shape[1]], dtype=torch.int32), ids.shape[1])
    codes = {stream: of_stream[0] for stream, of_stream in drawn.items()}
    hidden = model.hidden_states(ids, ids == MARKERS.image, codes, segments)[0, len(LONG) - 1 : -1]
    for stream, own in codes.items():
        head = model.head(stream)
        states = head(hidden, model.model.code_vectors(stream)(own)[:, :-1])
        for depth, weight in enumerate(head.classifier_weights()):
            assert torch.equal((states[:, depth] @ weight.T).argmax(dim=1), own[:, depth])


def test_heads_with_a_cache_are_heads_over_all_depths() -> None:
    model = trained_model()
    heads = DecodingHeads(dict(model.heads.items()))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 16, generator=generator)
    codes = torch.randint(5, (5, model.config.depth), generator=generator)
    cached = [heads.first_logits(hidden)]
    sums = {stream: model.model.code_vectors(stream)(codes) for stream in heads.streams}
    for place in range(1, heads.depth):
        both = torch.stack([sums[stream][:, place - 1] for stream in heads.streams])
        cached.append(heads.next_logits(both, place))
    for number, stream in enumerate(heads.streams):
        head = model.head(stream)
        states = head(hidden, sums[stream][:, :-1])
        for place, weight in enumerate(head.classifier_weights()):
            expected = states[:, place] @ weight.T
            torch.testing.assert_close(
                cached[place][number, :, : expected.shape[1]], expected, rtol=1e-4, atol=1e-5
            )


def test_guidance_of_scale_one_is_none_and_another_scale_is_used() -> None:
    model = trained_model()
    plain = draw_codes(model, [LONG], noise(model, 0), unconditional=[START])
    assert torch.equal(draw(model, [LONG], noise(model, 0), scale=1.0)["pixel"], plain["pixel"])
    assert not torch.equal(draw(model, [LONG], noise(model, 0), scale=8.0)["pixel"], plain["pixel"])
    # Scale 0 draws as if there were no caption.
    uncaptioned = draw_codes(model, [[START]], noise(model, 0), unconditional=[START])
    assert torch.equal(draw(model, [LONG], noise(model, 0), scale=0.0)["pixel"], uncaptioned["pixel"])
    conditional = torch.tensor([1.0, 2.0])
    assert torch.equal(guided(conditional, torch.tensor([3.0, 1.0]), 2.0), torch.tensor([-1.0, 3.0]))


def test_codes_that_are_unread_change_nothing_that_is_drawn_after_them() -> None:
    model = trained_model()
    own_noise = noise(model, 0, 1)
    first_noise = own_noise.clone()
    first_noise[:, 0] = 1 - first_noise[:, 0]
    unread = torch.zeros(own_noise.shape[:2]).bool()
    unread[0, 0] = True

    def pixels(of_images: Tensor) -> Tensor:
        return draw_codes(model, [LONG, LONG], of_images, unconditional=[START], unread=unread)["pixel"]

    drawn, other = pixels(own_noise), pixels(first_noise)
    assert not torch.equal(drawn[:, 0], other[:, 0])
    assert torch.equal(drawn[0, 1:], other[0, 1:]), "the first image does not read its first position"
    assert not torch.equal(drawn[1, 1:], other[1, 1:]), "the second one does"


def test_unread_positions_are_as_in_training() -> None:
    """Greedy codes with positions unread are the likeliest of a training's pass with the same ones."""
    model = trained_model()
    none = noise(model, 0)
    unread = noise_of_images(model, 0, [0], unread_share=0.5).unread
    assert 0 < int(unread.sum()) < unread.numel()
    drawn = draw_codes(
        model, [LONG], none, unconditional=[START], sampling=Sampling(temperature=0.0), unread=unread
    )
    ids = torch.tensor([[*LONG, *[MARKERS.image] * model.config.image_positions]])
    segments = Segments(torch.tensor([0, ids.shape[1]], dtype=torch.int32), ids.shape[1])
    codes = {stream: of_stream[0] for stream, of_stream in drawn.items()}
    states = model.hidden_states(ids, ids == MARKERS.image, codes, segments, unread[0])
    hidden = states[0, len(LONG) - 1 : -1]
    for stream, own in codes.items():
        head = model.head(stream)
        first = head(hidden, model.model.code_vectors(stream)(own)[:, :-1])[:, 0]
        assert torch.equal((first @ head.classifier_weights()[0].T).argmax(dim=1), own[:, 0])


def test_unread_positions_depend_on_seed_and_number_and_are_as_many_as_told() -> None:
    model = trained_model()
    together = noise_of_images(model, 3, range(300), 0.3).unread
    assert float(together.float().mean()) == pytest.approx(0.3, abs=0.03)
    assert torch.equal(noise_of_images(model, 3, [7], 0.3).unread[0], together[7])
    assert not torch.equal(noise_of_images(model, 4, range(300), 0.3).unread, together)
    assert len(set(map(bytes, together.numpy()))) > 5, "images differ"
    assert not bool(noise_of_images(model, 3, range(9)).unread.any())
    assert bool(noise_of_images(model, 3, range(9), 1.0).unread.all())


def test_a_shared_noise_is_one_for_all_positions_of_an_image_and_another_for_each_image() -> None:
    model = trained_model()
    shared = noise_of_images(model, 3, range(4), shared=True).codes
    own = noise_of_images(model, 3, range(4)).codes
    assert torch.equal(shared[:, 0], own[:, 0])
    assert torch.equal(shared, own[:, :1].expand_as(own))
    assert not torch.equal(shared[0], shared[1])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0: give 0 or more"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: give 0 or more"),
        ({"unread_share": 1.5}, "unread_share=1.5: give a share from 0 to 1"),
        ({"temperature": -1.0}, "temperature=-1.0: give 0 or more"),
    ],
)
def test_generate_refuses_settings_out_of_range(setting: dict[str, float], message: str) -> None:
    model = trained_model()
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([LONG]), generation_mode="image", **setting)


def test_generate_draws_as_the_model_is_configured_where_nothing_is_said() -> None:
    model = trained_model()
    own = {"guidance_scale": 2.0, "temperature": 0.3, "top_k": 2, "top_p": 0.9, "unread_share": 0.5}
    own |= {"shared_noise": True}
    prompt = torch.tensor([LONG])
    explicit = model.generate(prompt, generation_mode="image", **own)["pixel"]
    assert not torch.equal(model.generate(prompt, generation_mode="image")["pixel"], explicit)
    model.config.drawing = own
    assert torch.equal(model.generate(prompt, generation_mode="image")["pixel"], explicit)


def test_a_stream_alone_is_drawn_as_well() -> None:
    model = trained_model(("pixel",))
    drawn = draw(model, [LONG], noise(model, 0))
    assert drawn.keys() == {"pixel"}
    assert drawn["pixel"].shape == (1, model.config.image_positions, model.config.depth)


def test_sampling_follows_the_probabilities_that_are_left() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20000, 4)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    cases = {
        Sampling(): [0.5, 0.3, 0.15, 0.05],
        Sampling(top_k=2): [0.625, 0.375, 0, 0],
        Sampling(top_p=0.6): [0.625, 0.375, 0, 0],
        Sampling(top_k=3, top_p=0.9): [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0],
        Sampling(top_k=1): [1, 0, 0, 0],
        Sampling(temperature=0.0): [1, 0, 0, 0],
        Sampling(temperature=0.5): [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365],
    }
    for settings, expected in cases.items():
        shares = sample(logits, uniform, settings).bincount(minlength=4) / 20000
        torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float32), atol=0.012, rtol=0)
    # Noise next to 1 takes the last code that has a probability.
    edge = torch.full((1,), 1 - 2**-24)
    masked = torch.tensor([[0.0, 0.0, -1e9]])
    assert sample(masked, edge, Sampling()).item() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Sampling(temperature=-1.0), "temperature=-1.0: give 0 or more"),
        (Sampling(top_k=-1), "top_k=-1: give 1 or more, or 0 for all codes"),
        (Sampling(top_p=0.0), "top_p=0.0: give a probability over 0, up to 1"),
    ],
)
def test_settings_out_of_range_are_named(settings: Sampling, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("?", "\\?") + "$"):
        settings.check()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a saved model."""
    folder = tmp_path_factory.mktemp("saved")
    vision = tiny_vision()
    vision.save_pretrained(folder / "vision")
    model = trained_model()
    model.config.vision_tokenizer = vision_digest(folder / "vision")
    save_mllm(folder / "model", model, TEXT, folder / "vision")
    return folder / "model"


def test_text_is_the_same_in_batches_with_and_without_a_cache(saved: Path) -> None:
    model, processor = open_mllm(str(saved))
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    prompts = [processor.chat_prompt("what shape is at the top left?"), processor.chat_prompt(None)]
    both = processor(prompts, pictures)
    together = model.generate(**both, max_new_tokens=6)
    for place, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        inputs = processor(prompt, picture)
        num_ids = inputs["input_ids"].shape[1]
        cached = model.generate(**inputs, max_new_tokens=6)[0, num_ids:]
        uncached = model.generate(**inputs, max_new_tokens=6, use_cache=False)[0, num_ids:]
        static = model.generate(**inputs, max_new_tokens=6, cache_implementation="static")[0, num_ids:]
        assert torch.equal(cached, uncached)
        assert torch.equal(cached, static)
        assert torch.equal(together[place, both["input_ids"].shape[1] :][: len(cached)], cached)


def test_the_answer_hangs_on_the_image_and_on_both_streams(saved: Path) -> None:
    model, processor = open_mllm(str(saved))
    inputs = processor(processor.chat_prompt("what shape?"), Image.new("RGB", (16, 16), "red"))
    logits = model(**inputs).logits
    for stream in ("semantic", "pixel"):
        other = {**inputs, stream: (inputs[stream] + 1) % 5}
        assert not torch.allclose(model(**other).logits[0, -1], logits[0, -1])


def test_a_saved_model_is_itself_in_a_new_process(saved: Path) -> None:
    model, processor = open_mllm(str(saved))
    inputs = processor(processor.chat_prompt(None), Image.new("RGB", (16, 16), "teal"))
    expected = model(**inputs).logits.double().sum().item()
    program = f"""
import dualtoken.model.mllm
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
model = AutoModelForImageTextToText.from_pretrained({str(saved)!r}).eval()
processor = AutoProcessor.from_pretrained({str(saved)!r})
assert model.lm_head.weight is model.get_input_embeddings().weight
inputs = processor(processor.chat_prompt(None), Image.new("RGB", (16, 16), "teal"))
print(repr(model(**inputs).logits.double().sum().item()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == expected


def test_images_and_places_must_agree(saved: Path) -> None:
    model, processor = open_mllm(str(saved))
    picture = Image.new("RGB", (16, 16), "red")
    with pytest.raises(ValueError, match="2 images for 1 places in the text: pass one for each"):
        processor(processor.chat_prompt("what?"), [picture, picture])
    inputs = processor(processor.chat_prompt("what?"), picture)
    with pytest.raises(ValueError, match="pixel=None for 9 image positions: pass their codes"):
        model(input_ids=inputs["input_ids"], semantic=inputs["semantic"])
    with pytest.raises(ValueError, match="an image takes 9 positions"):
        model(input_ids=inputs["input_ids"][:, 3:], semantic=inputs["semantic"], pixel=inputs["pixel"])
    with pytest.raises(ValueError, match="encode the images with the model's own tokenizer"):
        model(**{**inputs, "pixel": inputs["pixel"] + 60000})


def test_a_folder_with_another_tokenizer_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(saved, folder)
    vision = tiny_vision()
    with torch.no_grad():
        next(vision.parameters()).add_(1)
    vision.save_pretrained(folder / "vision_tokenizer")
    with pytest.raises(ValueError, match=r"reads codes of tokenizer .{12}, its vision_tokenizer is .{12}"):
        open_mllm(str(folder))
    shutil.rmtree(folder / "vision_tokenizer")
    with pytest.raises(ValueError, match="has no vision_tokenizer: fetch the whole folder"):
        open_mllm(str(folder))
