"""A teacher's folder as it comes from outside: which of its files are taken, and what they may say.

Its own Python files are never taken, and no key of its JSON makes another library run or fetch any.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dualtoken.model.config.base import ConfigT, validated
from dualtoken.model.config.open_clip_folder import (
    ModelConfig,
    PreprocessConfig,
    TextTowerConfig,
    text_models,
)
from dualtoken.model.hub.json_files import read_json
from dualtoken.model.vision.imports import vision_imports
from dualtoken.model.vision.siglip_tower import config_of_name

with vision_imports():
    import timm
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
"""Files of text tokenisers beside TOKENIZER_CONFIG: words, merges and models of sentencepiece."""
_TOKENIZER_KEYS = frozenset(
    {
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "additional_special_tokens_ids",
        "bos_token",
        "bos_token_id",
        "clean_up_tokenization_spaces",
        "cls_token",
        "cls_token_id",
        "do_basic_tokenize",
        "do_lower_case",
        "eos_token",
        "eos_token_id",
        "errors",
        "extra_ids",
        "extra_special_tokens",
        "keep_accents",
        "legacy",
        "legacy_behaviour",
        "mask_token",
        "mask_token_id",
        "max_length",
        "model_input_names",
        "model_max_length",
        "never_split",
        "pad_to_multiple_of",
        "pad_token",
        "pad_token_id",
        "pad_token_type_id",
        "padding_side",
        "remove_space",
        "sep_token",
        "sep_token_id",
        "sp_model_kwargs",
        "spaces_between_special_tokens",
        "split_special_tokens",
        "src_lang",
        "stride",
        "strip_accents",
        "tgt_lang",
        "tokenize_chinese_chars",
        "tokenizer_class",
        "trim_offsets",
        "truncation_side",
        "truncation_strategy",
        "unk_token",
        "unk_token_id",
        "use_default_system_prompt",
    }
)
"""Keys of TOKENIZER_CONFIG that transformers gets to see."""
_DROPPED_KEYS = frozenset(
    {
        "backend",
        "chat_template",
        "is_local",
        "local_files_only",
        "name_or_path",
        "processor_class",
        "special_tokens_map_file",
        "tokenizer_file",
        "transformers_version",
        "vocab_file",
    }
)
"""Keys that transformers writes, and that say nothing of texts: places of files, and processors."""
_NOT_READ = "no key that is read here; take it out if the model does without it"


class FolderConfig(NamedTuple):
    """The checked values of an open_clip_config.json."""

    model: ModelConfig
    preprocess: PreprocessConfig


def read_open_clip_config(folder: Path) -> FolderConfig:
    """Read a folder's open_clip_config.json.

    Raises ValueError, one line, for a key or value that is not known to be harmless, and for a network whose
    weights the folder's file cannot hold.
    """
    file = folder / CONFIG_FILE
    values = read_json(file)
    unknown = values.keys() - {"model_cfg", "preprocess_cfg"}
    if unknown:
        raise ValueError(f"{file}: {min(unknown)}: {_NOT_READ}")
    model = _validated(ModelConfig, values.get("model_cfg"), f"{file}: model_cfg")
    preprocess = _validated(PreprocessConfig, values.get("preprocess_cfg", {}), f"{file}: preprocess_cfg")
    _require_known_networks(model, file)
    _require_room_for_weights(model, folder)
    return FolderConfig(model, preprocess)


def _validated(kind: type[ConfigT], values: object, place: str) -> ConfigT:
    try:
        return validated(kind, values, place)
    except ValueError as error:
        raise ValueError(str(error).replace("Extra inputs are not permitted", _NOT_READ)) from None


def _require_known_networks(model: ModelConfig, file: Path) -> None:
    """Refuse names of networks that would be fetched, or that nobody here knows."""
    tower = model.vision_cfg.timm_model_name
    if tower and config_of_name(tower) is None and not timm.is_model(tower):
        raise ValueError(f"{file}: model_cfg.vision_cfg.timm_model_name={tower} is no model that timm knows")
    text = model.text_cfg.hf_model_name
    if text is not None and text not in text_models():
        raise ValueError(
            f"{file}: model_cfg.text_cfg.hf_model_name={text} would be fetched, and is none of those that "
            "open_clip's own models have"
        )


def _require_room_for_weights(model: ModelConfig, folder: Path) -> None:
    """Refuse sizes before anything of these sizes is made: each weight takes a byte of the file at least."""
    file_bytes = (folder / WEIGHTS_FILE).stat().st_size
    for key, count in _least_weights(model):
        if count > file_bytes:
            raise ValueError(
                f"{folder / CONFIG_FILE}: model_cfg.{key} asks for {count:,} weights or more, and "
                f"{WEIGHTS_FILE} has {file_bytes:,} bytes: they do not belong together"
            )


def _least_weights(model: ModelConfig) -> Iterator[tuple[str, int]]:
    """Yield numbers of weights that parts of the network have at least, with the keys that say so."""
    text = model.text_cfg
    if text.hf_model_name is None:
        width = text.width or 1
        yield "text_cfg.width", 4 * width**2 * (text.layers or 1)
        yield "text_cfg.vocab_size", width * (text.vocab_size or 1)
        yield "text_cfg.context_length", width * (text.context_length or 1)
        yield "embed_dim", model.embed_dim * (1 if text.proj_type == "none" else width)
    vision = model.vision_cfg
    tower = config_of_name(vision.timm_model_name or "")
    if tower is not None:
        yield "vision_cfg.timm_model_name", tower.width * max(4 * tower.width, tower.mlp_width) * tower.depth
    elif vision.timm_model_name is None:
        width = vision.width or 1
        layers = vision.layers if isinstance(vision.layers, int) else 1
        yield "vision_cfg.width", width**2 * layers
        sides = vision.image_size if isinstance(vision.image_size, list) else [vision.image_size or 1] * 2
        patch = vision.patch_size or 1
        yield "vision_cfg.image_size", width * (sides[0] // patch) * (sides[1] // patch)


def check_tokenizer_config(file: Path) -> dict[str, Any]:
    """Return what transformers may read of a folder's TOKENIZER_CONFIG.

    Raises ValueError, one line, for a key that is not known to be harmless.
    """
    values = read_json(file)
    for key in values:
        if key not in _TOKENIZER_KEYS | _DROPPED_KEYS:
            raise ValueError(f"{file}: {key}: {_NOT_READ}")
    name = values.get("tokenizer_class")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_]+", name)):
        raise ValueError(f"{file}: tokenizer_class={name!r} is no name of a class of transformers")
    return {key: value for key, value in values.items() if key in _TOKENIZER_KEYS}


def text_tokenizer(folder: Path, text: TextTowerConfig) -> Any:  # noqa: ANN401  (they share no type)
    """Return the text tokeniser of a folder: open_clip's own, or that of the files beside the weights."""
    options: dict[str, Any] = {}
    if text.context_length is not None:
        options["context_length"] = text.context_length
    if text.tokenizer_kwargs is not None:
        options |= text.tokenizer_kwargs.model_dump(exclude_none=True)
    if not text.hf_tokenizer_name:
        return SimpleTokenizer(**options)
    with tempfile.TemporaryDirectory(prefix="dualtoken-text-") as known:
        copy_tokenizer_files(folder, Path(known))
        kept = check_tokenizer_config(folder / TOKENIZER_CONFIG)
        (Path(known) / TOKENIZER_CONFIG).write_text(json.dumps(kept), encoding="utf-8")
        return HFTokenizer(
            known,
            tokenizer_mode=text.tokenizer_mode,
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )


def copy_teacher_files(source: Path, target: Path) -> None:
    """Copy the files of a teacher's folder that are known, and no other."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(source / name, target / name)
    if (source / TOKENIZER_CONFIG).is_file():
        copy_tokenizer_files(source, target)


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copy the files of a text tokeniser that are known.

    Raises ValueError for a source without TOKENIZER_CONFIG, and for one that asks for more.
    """
    if not (source / TOKENIZER_CONFIG).is_file():
        raise ValueError(
            f"{source} has no {TOKENIZER_CONFIG}: put the text tokeniser's files beside the weights"
        )
    check_tokenizer_config(source / TOKENIZER_CONFIG)
    for name in (TOKENIZER_CONFIG, *_TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
