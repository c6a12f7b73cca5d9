"""Draws images: both streams' codes, position by position, with classifier-free guidance.

The prompts run through the trunk once, beside the unconditional one that caption dropout has trained. Then
each of N positions takes a step of the trunk and D steps of the heads, on a GPU as one CUDA graph. Both
halves read the same codes. An image depends on its prompt, the seed and its number, not on what else is in
its batch.

B prompts of T ids, N positions of an image, S streams, D depths, H channels of the trunk, R = B rows, or 2 B
with the unconditional half behind the other.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dualtoken.model.mllm.depth_heads import DecodingHeads, DepthHead
from dualtoken.model.mllm.modeling import UnifiedModel
from dualtoken.model.mllm.recorded_step import Record, RecordedStep, recording_on
from dualtoken.model.mllm.sampling import (
    ALL_CODES,
    Sampling,
    check_guidance_scale,
    check_unread_share,
    guided,
    image_noise,
    sample,
    unread_positions,
)
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import StaticCache

Told = Callable[[int], None]
"""Hears of each position that is drawn."""


class PaddedPrompts(NamedTuple):
    """Prompts of unlike length, padded on the left."""

    ids: Int[Tensor, "R T"]
    is_text: Bool[Tensor, "R T"]
    """False for padding."""


def pad_prompts(prompts: Sequence[Sequence[int]], padding: int = 0, length: int = 0) -> PaddedPrompts:
    """Return prompts side by side, as long as the longest or as `length`; each has one id at least."""
    longest = max(length, *map(len, prompts))
    ids = torch.full((len(prompts), longest), padding)
    is_text = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        is_text[row, longest - len(prompt) :] = True
    return PaddedPrompts(ids, is_text)


@torch.no_grad()
def draw_codes(
    model: UnifiedModel,
    prompts: Sequence[Sequence[int]],
    noise: Float[Tensor, "B N S D"],
    *,
    unconditional: Sequence[int],
    guidance_scale: float = 1.0,
    sampling: Sampling = ALL_CODES,
    unread: Bool[Tensor, "B N"] | None = None,
    prompt_length: int = 0,
    told: Told = lambda _: None,
    record: Record | None = None,
) -> dict[str, Int[Tensor, "B N D"]]:
    """Return the codes of an image for each prompt, by stream.

    A prompt ends with the mark of an image's start; `unconditional` is the prompt without a caption. Scale 1
    draws without guidance. Of positions that are `unread` the model sees that they are there, and not their
    codes. Prompts are padded to the longest, or to `prompt_length` where that is more: in batches of one size
    and length, an image is the same to the last bit whatever is drawn beside it. `record` records a
    position's step; by default a GPU's graphs do.
    """
    sampling.check()
    check_guidance_scale(guidance_scale)
    is_guided = guidance_scale != 1
    rows = [*prompts, *[unconditional] * len(prompts)] if is_guided else list(prompts)
    padded = pad_prompts(rows, model.config.image_start_id, prompt_length)
    drawing = _Drawing(model, padded, guidance_scale, sampling)
    step = RecordedStep(drawing.step, record or recording_on(model.device))
    on_device = noise.to(model.device)
    is_unread = torch.zeros(noise.shape[:2], dtype=torch.bool) if unread is None else unread
    is_unread = is_unread.to(model.device)
    drawn = [drawing.next_codes(on_device[:, 0])]
    told(0)
    for position in range(1, model.config.image_positions):
        drawn.append(step(drawn[-1], is_unread[:, position - 1], on_device[:, position]))
        told(position)
    codes = torch.stack(drawn, dim=2)  # (S, B, N, D)
    return dict(zip(model.config.targets, codes, strict=True))


def generate_images(
    model: UnifiedModel,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"] | None = None,
    *,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    unread_share: float | None = None,
    shared_noise: bool | None = None,
    seed: int = 0,
) -> dict[str, Int[Tensor, "B N D"]]:
    """Return the codes of an image for each prompt, which a processor's `decode_images` turns into pictures.

    Row n has noise n of the seed. Settings that are left out are those of the model's configuration,
    `config.drawing`, where `DrawingConfig` says what each does.

    Raises ValueError for prompts that do not end with the mark of an image's start, and for settings out of
    range.
    """
    config = model.config
    if not bool((input_ids[:, -1] == config.image_start_id).all()):
        raise ValueError(
            f"a prompt does not end with id {config.image_start_id}, where an image starts: "
            "make it with the processor's drawing_prompt, and pad on the left"
        )
    is_text = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    prompts = [row[own].tolist() for row, own in zip(input_ids, is_text, strict=True)]
    drawing = config.drawing_config.changed(
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        unread_share=unread_share,
        shared_noise=shared_noise,
    )
    numbers = range(len(prompts))
    noise, unread = noise_of_images(model, seed, numbers, drawing.unread_share, shared=drawing.shared_noise)
    return draw_codes(
        model,
        prompts,
        noise,
        unconditional=[config.image_start_id],
        guidance_scale=drawing.guidance_scale,
        sampling=Sampling(drawing.temperature, drawing.top_k, drawing.top_p),
        unread=unread,
    )


class NoiseOfImages(NamedTuple):
    """All that is random in drawings."""

    codes: Float[Tensor, "B N S D"]
    """What codes are sampled by, in [0, 1)."""
    unread: Bool[Tensor, "B N"]
    """Positions whose codes are not read."""


def noise_of_images(
    model: UnifiedModel,
    seed: int,
    numbers: Iterable[int],
    unread_share: float = 0.0,
    *,
    shared: bool = False,
) -> NoiseOfImages:
    """Return the noise of a seed's images by their numbers: it depends on nothing else.

    `shared` is `DrawingConfig.shared_noise`.

    Raises ValueError for a share out of range.
    """
    check_unread_share(unread_share)
    config = model.config
    codes: list[Tensor] = []
    unread: list[Tensor] = []
    shape = (config.image_positions, len(config.targets), config.depth)
    for number in numbers:
        codes.append(image_noise(seed, number, *shape, shared=shared))
        unread.append(unread_positions(seed, number, config.image_positions, unread_share))
    return NoiseOfImages(torch.stack(codes), torch.stack(unread))


class _Drawing:
    """Images that are being drawn: the trunk's cache, and its state before the next position."""

    def __init__(
        self, model: UnifiedModel, prompts: PaddedPrompts, guidance_scale: float, sampling: Sampling
    ) -> None:
        self._model = model
        self._guidance_scale = guidance_scale
        self._is_guided = guidance_scale != 1
        self._sampling = sampling
        device = model.device
        config = model.config
        heads: dict[str, DepthHead] = {}
        tables: list[Tensor] = []
        for stream in config.targets:
            heads[stream] = model.head(stream)
            tables.append(model.model.code_vectors(stream).table)
        self._heads = DecodingHeads(heads)
        self._tables = tables
        self._code_width = max(table.shape[-1] for table in tables)

        is_text = prompts.is_text.to(device)
        num_ids = is_text.shape[1]
        # The last position is drawn, and never read.
        num_slots = num_ids + config.image_positions - 1
        slots = torch.arange(num_slots, device=device)
        self._is_seen = F.pad(is_text, (0, config.image_positions - 1), value=True)[:, None, None]
        self._slots = slots
        self._text_lengths = is_text.sum(dim=1)
        # Counts on the device: a recorded step can't read them from Python.
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._num_read = torch.full((1,), num_ids, device=device)
        self._cache = StaticCache(config=config.text_config, max_cache_len=num_slots)
        embedded = model.get_input_embeddings()(prompts.ids.to(device))
        places = (is_text.cumsum(dim=1) - 1).clamp(min=0)
        causal = slots[None, :] <= slots[:num_ids, None]
        # A row of padding sees itself: a softmax over nothing has no value.
        itself = slots[None, :] == slots[:num_ids, None]
        self._hidden = self._run_trunk(embedded, places, (self._is_seen & causal) | itself)

    def _run_trunk(
        self, embedded: Float[Tensor, "R _ H"], places: Int[Tensor, "R _"], mask: Bool[Tensor, "R 1 _ _"]
    ) -> Float[Tensor, "R H"]:
        """Read positions into the cache, and return the state of the last one."""
        output = self._model.model.language_model(
            inputs_embeds=embedded,
            position_ids=places,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def step(
        self, codes: Int[Tensor, "S B D"], unread: Bool[Tensor, "B"], noise: Float[Tensor, "B S D"]
    ) -> Int[Tensor, "S B D"]:
        """Read the codes of the last position, where they are not `unread`, and draw those of the next."""
        self._read_codes(codes, unread)
        return self.next_codes(noise)

    def next_codes(self, noise: Float[Tensor, "B S D"]) -> Int[Tensor, "S B D"]:
        """Draw the codes of the next position, depth by depth."""
        num_streams = len(self._tables)
        logits = self._heads.first_logits(self._hidden)
        codes: list[Tensor] = []
        sums: Tensor | None = None
        for place in range(self._heads.depth):
            if place:
                assert sums is not None
                both = torch.cat([sums, sums], dim=1) if self._is_guided else sums
                logits = self._heads.next_logits(both, place)
            if self._is_guided:
                conditional, unconditional = logits.chunk(2, dim=1)
                chosen_from = guided(conditional, unconditional, self._guidance_scale)
            else:
                chosen_from = logits
            own_noise = noise[:, :, place].T.flatten()
            chosen = sample(chosen_from.flatten(0, 1), own_noise, self._sampling).view(num_streams, -1)
            codes.append(chosen)
            vectors = self._vectors(chosen, place)
            sums = vectors if sums is None else sums + vectors
        return torch.stack(codes, dim=2)

    def _vectors(self, chosen: Int[Tensor, "S B"], place: int) -> Float[Tensor, "S B C"]:
        """Return the vectors of one depth's codes; those of a narrower stream end in zeros."""
        vectors: list[Tensor] = []
        for table, codes in zip(self._tables, chosen, strict=True):
            own = table[place if len(table) > 1 else 0][codes]
            vectors.append(F.pad(own, (0, self._code_width - own.shape[-1])))
        return torch.stack(vectors)

    def _read_codes(self, codes: Int[Tensor, "S B D"], unread: Bool[Tensor, "B"]) -> None:
        """Read the codes drawn at the position that is next to be read."""
        config = self._model.config
        core = self._model.model
        by_stream = dict(zip(config.targets, codes, strict=True))
        sums = core.code_sums({stream: by_stream[stream] for stream in config.inputs}, unread)
        embedded = core.embed_codes(sums, self._position.expand(codes.shape[1]))
        if self._is_guided:
            embedded = torch.cat([embedded, embedded])
        mask = self._is_seen & (self._slots <= self._num_read)
        embeddings = self._model.get_input_embeddings()
        assert isinstance(embeddings.weight, Tensor)
        embedded = embedded.to(embeddings.weight.dtype)[:, None]
        self._hidden = self._run_trunk(embedded, (self._text_lengths + self._position)[:, None], mask)
        self._position.add_(1)
        self._num_read.add_(1)
