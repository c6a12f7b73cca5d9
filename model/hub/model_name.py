"""Names of saved models: a local folder, or a repository of the Hugging Face hub.

Imports no PyTorch, so that a command can refuse a name at once.
"""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

CONFIG = "config.json"
"""File with the model's format, version, shape and transform."""
WEIGHTS = "model.safetensors"
"""File with the model's weights."""
VISION_FOLDER = "vision_tokenizer"
"""Folder of the vision tokenizer in that of a unified model."""


def local_folder(model: str) -> Path | None:
    """Return the local folder of that name, or None for a name that a hub repository may have.

    Raises ValueError for any other name.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{model} is a file: name its folder, which DualTokenizer.save_pretrained wrote")
    if not _may_be_repository(model):
        raise ValueError(
            f"{model}: no such folder: name a folder that save_pretrained wrote, "
            "or a hub repository such as owner/name"
        )
    return None


def _may_be_repository(model: str) -> bool:
    """Tell whether a name has the form `owner/name`; the hub is not asked."""
    try:
        validate_repo_id(model)
    except HFValidationError:
        return False
    return model.count("/") == 1


def require_files(folder: Path) -> None:
    """Raise ValueError unless a folder has the files of a saved model."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} has no {name}: name a folder that DualTokenizer.save_pretrained wrote"
            )
