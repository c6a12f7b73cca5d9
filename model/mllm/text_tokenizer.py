"""The text tokenizer: a byte-level BPE trained on a corpus, or a pretrained model's own; and its markers.

Both have the same markers of images, which are in Qwen2.5's vocabulary as it is, so that no embedding table
changes its size. Text can never spell a marker: special ids are split off before any text is read.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dualtoken.model.config.mllm import NamedTrunk, TrunkShape
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

IMAGE_START = "<|vision_start|>"
IMAGE_END = "<|vision_end|>"
IMAGE = "<|image_pad|>"
END = "<|endoftext|>"
_USER = "<|user|>"
_ASSISTANT = "<|assistant|>"
_TURN_END = "<|im_end|>"
_SPECIAL = (END, IMAGE_START, IMAGE_END, IMAGE, _USER, _ASSISTANT, _TURN_END)
_SMALL_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}<|assistant|>{%- endif -%}
{%- if message['content'] is string -%}
{%- if message['role'] == 'user' -%}<|user|>{%- endif -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{%- if message['role'] == 'user' -%}<|user|>{%- endif -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}<|im_end|>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
_CHATML_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}<|im_end|>\n<|im_start|>assistant\n{%- endif -%}
{%- if message['content'] is string -%}
{%- if message['role'] == 'user' -%}<|im_start|>user\n{%- endif -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{%- if message['role'] == 'user' -%}<|im_start|>user\n{%- endif -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}<|im_end|>\n{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_end|>\n<|im_start|>assistant\n{%- endif -%}"""


class TextMarkers(NamedTuple):
    """Ids that stand around images, turns and documents."""

    image: int
    image_start: int
    image_end: int
    end: int
    user: tuple[int, ...]
    assistant: tuple[int, ...]
    turn_end: tuple[int, ...]


def train_text_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with so many entries; it reads any text, and `texts` in few ids.

    The same texts in the same order give the same tokenizer.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=END, additional_special_tokens=list(_SPECIAL[1:])
    )
    tokenizer.chat_template = _SMALL_TEMPLATE
    return tokenizer


def load_text_tokenizer(folder: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub repository, without any code of its own.

    Raises ValueError where there is none, and where its vocabulary lacks the markers of images.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no text tokenizer: {' '.join(str(error).split())}") from None
    known = tokenizer.get_vocab()
    missing = [name for name in (IMAGE_START, IMAGE_END, IMAGE) if name not in known]
    if missing:
        raise ValueError(
            f"the vocabulary of {folder} lacks {', '.join(missing)}: "
            "name a trunk with markers of images, such as Qwen2.5's"
        )
    if _ASSISTANT not in known:
        tokenizer.chat_template = _CHATML_TEMPLATE
    return tokenizer


def text_markers(tokenizer: PreTrainedTokenizerBase) -> TextMarkers:
    """Return the ids of a tokenizer's markers."""
    known = tokenizer.get_vocab()
    end = known.get(END, tokenizer.eos_token_id)
    assert isinstance(end, int), "a text tokenizer has an end of text"
    if _ASSISTANT in known:
        user, assistant, turn_end = _USER, _ASSISTANT, _TURN_END
    else:
        user, assistant = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        turn_end = "<|im_end|>\n"
    return TextMarkers(
        image=known[IMAGE],
        image_start=known[IMAGE_START],
        image_end=known[IMAGE_END],
        end=end,
        user=_ids(tokenizer, user),
        assistant=_ids(tokenizer, assistant),
        turn_end=_ids(tokenizer, turn_end),
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def build_text_tokenizer(trunk: TrunkShape | NamedTrunk, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return a named trunk's tokenizer, or one trained on texts."""
    if isinstance(trunk, NamedTrunk):
        return load_text_tokenizer(trunk.model, trunk.revision)
    return train_text_tokenizer(texts, trunk.vocabulary)
