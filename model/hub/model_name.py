"""What a saved model may be called: a local folder, or a repository of the Hugging Face hub. Told without PyTorch, so at once."""

from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def local_folder(model: str) -> Path | None:
    """Return the local folder that is named, or None for a name that a hub repository may have; raises ValueError for any other."""
    if (folder := Path(model)).is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"{model} is a file: name its folder, which DualTokenizer.save_pretrained wrote")
    try:
        validate_repo_id(model)
        named = model.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise ValueError(
            f"{model}: no such folder: name a folder that save_pretrained wrote, or a hub repository such as owner/name"
        )
    return None


def require_files(folder: Path) -> None:
    """Raise ValueError unless a folder has the files of a saved model."""
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} has no {missing[0]}: name a folder that DualTokenizer.save_pretrained wrote"
        )
