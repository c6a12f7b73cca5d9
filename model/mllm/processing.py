"""Between people and the model: texts to ids, images to codes, and codes back to images.

B texts of T ids, N positions of an image, D depths, S by S pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from dualtoken.model.hub.model_name import VISION_FOLDER
from dualtoken.model.hub.saved_model import find_folder
from dualtoken.model.mllm.generation import pad_prompts
from dualtoken.model.mllm.text_tokenizer import IMAGE, load_text_tokenizer, text_markers
from dualtoken.model.tokenizer.dual_tokenizer import Codes, DualTokenizer
from dualtoken.model.vision.imports import vision_imports

with vision_imports():
    from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin


Pictures = Image.Image | Sequence[Image.Image]
Message = Mapping[str, Any]
"""A turn of a chat, as transformers has it: `{"role": "user", "content": [{"type": "image"}, ...]}`."""


class DualTokenProcessor(ProcessorMixin):
    """Text tokenizer, vision tokenizer and chat template of a model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vision: DualTokenizer | None = None,
        chat_template: str | None = None,
    ) -> None:
        assert tokenizer is not None, "a processor has a text tokenizer"
        super().__init__(tokenizer, chat_template=chat_template or tokenizer.chat_template)
        self.vision = vision
        self.markers = text_markers(tokenizer)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: str | Sequence[str] | None = None,
        images: Pictures | None = None,
        return_tensors: str | None = "pt",
        **_options: Any,  # noqa: ANN401  (transformers' own, such as padding, which is always on)
    ) -> BatchFeature:
        """Return `input_ids` and `attention_mask`, padded on the left, and the images' codes.

        Texts have `<|image_pad|>` where an image goes, as the chat template puts it; the images are those of
        all texts in order. Raises ValueError where there are more or fewer.
        """
        assert return_tensors == "pt", "tensors are PyTorch's"
        assert text is not None, "a prompt has text, if only the markers of the chat template"
        texts = [text] if isinstance(text, str) else list(text)
        pictures = _pictures(images)
        num_places = sum(one.count(IMAGE) for one in texts)
        if num_places != len(pictures):
            raise ValueError(f"{len(pictures)} images for {num_places} places in the text: pass one for each")
        prompts = pad_prompts([self.prompt_ids(one) for one in texts], self.markers.end)
        values: dict[str, Tensor] = {"input_ids": prompts.ids, "attention_mask": prompts.is_text.long()}
        if pictures:
            codes = self.encode_images(pictures)
            values["semantic"] = codes.semantic.flatten(1, 2)
            values["pixel"] = codes.pixel.flatten(1, 2)
        return BatchFeature(values)

    def prompt_ids(self, text: str) -> list[int]:
        """Return a text's ids, with a position for each token of its images."""
        assert self.tokenizer is not None
        ids: list[int] = []
        positions = [self.markers.image] * self._image_positions()
        for token in self.tokenizer.encode(text, add_special_tokens=False):
            ids += positions if token == self.markers.image else [token]
        return ids

    def _image_positions(self) -> int:
        return self._require_vision().config.grid_size ** 2

    def _require_vision(self) -> DualTokenizer:
        assert self.vision is not None, "open the processor with its vision tokenizer"
        return self.vision

    def encode_images(self, images: Pictures) -> Codes:
        """Return both streams' codes of pictures, (B, H, W, D)."""
        vision = self._require_vision()
        device = next(vision.parameters()).device
        return vision.encode(vision.transform(_pictures(images)).to(device))

    def decode_images(self, pixel: Int[Tensor, "B N D"]) -> list[Image.Image]:
        """Return the pictures that drawn pixel codes stand for."""
        return [Image.fromarray(levels.numpy()) for levels in self.decode_levels(pixel).permute(0, 2, 3, 1)]

    def decode_levels(self, pixel: Int[Tensor, "B N D"]) -> UInt8[Tensor, "B 3 S S"]:
        """Return the same as levels 0 to 255, on the CPU."""
        vision = self._require_vision()
        side = vision.config.grid_size
        device = next(vision.parameters()).device
        decoded = vision.decode(pixel.to(device).unflatten(1, (side, side)))
        return vision.transform.to_uint8(decoded).cpu()

    def drawing_prompt(self, caption: str) -> list[int]:
        """Return the ids after which the model draws a caption's image."""
        assert self.tokenizer is not None
        caption_ids = self.tokenizer.encode(caption, add_special_tokens=False)
        return [*caption_ids, self.markers.image_start]

    def drawing_inputs(self, captions: Sequence[str]) -> BatchFeature:
        """Return `input_ids` and `attention_mask` after which the model draws an image for each caption."""
        prompts = pad_prompts([self.drawing_prompt(caption) for caption in captions], self.markers.end)
        return BatchFeature({"input_ids": prompts.ids, "attention_mask": prompts.is_text.long()})

    def chat_prompt(self, question: str | None) -> str:
        """Return the text that asks a question about one image; None asks for a description."""
        content: list[dict[str, str]] = [{"type": "image"}]
        if question is not None:
            content.append({"type": "text", "text": question})
        messages = [{"role": "user", "content": content}]
        return str(self.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def to_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Return what processor_config.json holds: the vision tokenizer has a folder of its own."""
        values = super().to_dict(*arguments, **options)
        for name in ("vision", "markers"):
            values.pop(name, None)
        return values

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | Path,
        **options: Any,  # noqa: ANN401
    ) -> "DualTokenProcessor":
        """Open the tokenizers of a model's folder or hub repository.

        Raises ValueError where one of them is missing.
        """
        known = {name: options[name] for name in ("revision", "token", "cache_dir") if name in options}
        folder = find_folder(str(pretrained_model_name_or_path), **known)
        tokenizer = load_text_tokenizer(folder)
        vision_folder = folder / VISION_FOLDER
        if not vision_folder.is_dir():
            raise ValueError(f"{folder} has no {VISION_FOLDER}: fetch the whole folder of the model")
        return cls(tokenizer, DualTokenizer.from_pretrained(vision_folder))


def _pictures(images: Pictures | None) -> list[Image.Image]:
    if images is None:
        return []
    return [images] if isinstance(images, Image.Image) else list(images)
