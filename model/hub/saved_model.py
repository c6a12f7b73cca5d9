"""Reads and writes saved models: a local folder, or a repository of the Hugging Face hub.

A folder holds config.json (our own: format, version, shape, transform), model.safetensors, and README.md, the
model card.
"""

# ruff: noqa: PYI019  (the type checker of our tests knows no Self in single methods)

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from huggingface_hub import HfApi, ModelCard, ModelHubMixin, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualtoken.model.hub.json_files import read_json
from dualtoken.model.hub.model_name import CONFIG, WEIGHTS, local_folder, require_files

CARD = "README.md"
"""File with the model card."""
FILES = (CONFIG, WEIGHTS, CARD)
"""Files of a saved model."""
FORMAT = "dualtoken"
"""Format of a saved folder."""
FORMAT_VERSION = 1
"""Version of the format. Folders of version 1 may lack `transform` and the card, which came later."""
PYTORCH = {"format": "pt"}
"""Metadata that other readers of safetensors look for in a file of PyTorch's weights."""
_CARD_FINGERPRINT = re.compile(r"^\* Fingerprint: `([0-9a-f]{64})`", re.MULTILINE)
"""Line of the card that names the fingerprint of its folder."""
_PATIENCE = 10
"""Time to wait for the hub's first answer, seconds; its own client tries for half a minute before it says
there is no network."""
_READ_BYTES = 2**20
"""Bytes that a fingerprint reads at a time."""

Model = TypeVar("Model", bound="HubModel")


class HubModel(ModelHubMixin, ABC):
    """Adds `from_pretrained`, `save_pretrained` and `push_to_hub` to a network.

    A subclass implements `_save_pretrained` (to a folder), `_from_folder` and `_card`.
    """

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  (no unknown options)
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        device: str | torch.device = "cpu",
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> Model:
        """Return the model of a folder or hub repository, ready for inference.

        Raises ValueError if there is no such model, or it is something else. HF_HUB_OFFLINE=1 looks only at
        the cache.
        """
        return cls._from_pretrained(
            model_id=str(pretrained_model_name_or_path),
            device=device,
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )

    @classmethod
    def _from_pretrained(
        cls: type[Model],
        *,
        model_id: str,
        device: str | torch.device = "cpu",
        **source: Any,  # noqa: ANN401
    ) -> Model:
        return cls._from_folder(find_folder(model_id, **source), torch.device(device))

    @classmethod
    @abstractmethod
    def _from_folder(cls: type[Model], folder: Path, device: torch.device) -> Model:
        """Return the model of a folder that `_save_pretrained` wrote."""

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        config: Any = None,  # noqa: ANN401
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,  # noqa: ANN401
    ) -> str | None:
        """Write config.json, model.safetensors and README.md into a folder, made if missing.

        The same model gives the same bytes. `push_to_hub=True` uploads them too, to `repo_id` or a repository
        of the folder's name, and returns the URL of the commit.
        """
        assert config is None, "the model's own config is saved"
        assert not model_card_kwargs, "the card says what the model says"
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self._save_pretrained(folder)
        (folder / CARD).write_text(self._card(fingerprint(folder)), encoding="utf-8")
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs)

    def generate_model_card(self, *_arguments: Any, **_options: Any) -> ModelCard:  # noqa: ANN401
        """Return the card without its fingerprint, which only a saved folder has."""
        return ModelCard(self._card(None))

    @abstractmethod
    def _card(self, fingerprint: str | None) -> str:
        """Return the model card; `fingerprint` is that of a saved folder."""


def find_folder(
    model: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return the local folder of a model: the one of that name, or a hub repository's in the cache.

    A repository is fetched if need be.

    Raises ValueError, at once where there is no network.
    """
    local = local_folder(model)
    if local is not None:
        return local
    cached_only = local_files_only or constants.is_offline_mode()
    why = "the hub is not asked (offline)"
    if not cached_only:
        unreachable = _unreachable(model, revision, token)
        if unreachable is not None:
            cached_only = True
            why = f"the hub cannot be reached ({unreachable})"
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=cached_only,
            allow_patterns=list(FILES),
        )
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{model}: no such folder, not in the hub's cache, and {why}: name a folder of save_pretrained"
        ) from error
    return Path(folder)


def _unreachable(model: str, revision: str | None, token: str | bool | None) -> str | None:
    """Ask the hub once; return why there was no answer, or None. Raises ValueError if the answer is no."""
    try:
        HfApi(token=token).model_info(model, revision=revision, timeout=_PATIENCE)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        version = f" at {revision}" if revision else ""
        raise ValueError(
            f"{model}{version}: no such folder, and the hub shows no such repository: check name and token"
        ) from error
    except Exception as error:  # noqa: BLE001  (any error of any client; the cache still serves)
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def fingerprint(folder: str | Path) -> str:
    """Return the SHA-256 of config.json followed by model.safetensors.

    It is that of `cat config.json model.safetensors | sha256sum`.
    """
    digest = hashlib.sha256((Path(folder) / CONFIG).read_bytes())
    with (Path(folder) / WEIGHTS).open("rb") as file:
        block = file.read(_READ_BYTES)
        while block:
            digest.update(block)
            block = file.read(_READ_BYTES)
    return digest.hexdigest()


@contextmanager
def of_one_save(folder: Path) -> Iterator[None]:
    """Require that a folder's files are those which its card was written with.

    Raises ValueError with both fingerprints, after what the block itself raises; a folder whose card names no
    fingerprint passes.
    """
    difference = _difference_from_card(folder)
    try:
        yield
    except ValueError as error:
        if difference is None:
            raise
        raise ValueError(f"{error}; {difference}") from error
    if difference is not None:
        raise ValueError(f"{folder}: {difference}")


def _difference_from_card(folder: Path) -> str | None:
    """Describe how a folder's fingerprint differs from the one that its card names, or return None."""
    card = folder / CARD
    if not card.is_file():
        return None
    named = _CARD_FINGERPRINT.search(card.read_text(encoding="utf-8", errors="replace"))
    if named is None:
        return None
    found = fingerprint(folder)
    if named[1] == found:
        return None
    return (
        f"{CONFIG} and {WEIGHTS} have fingerprint {found}, {CARD} was saved with {named[1]}: "
        "one of the files was damaged or exchanged; fetch the folder again, or, if you changed it yourself, "
        f"take {CARD} away and call save_pretrained, which writes a new one"
    )


class SavedConfig(NamedTuple):
    """Values of config.json, not yet validated."""

    config: dict[str, Any]
    """Shape of the network."""
    transform: dict[str, Any] | None
    """Transform of its images; None in folders from before transforms were saved."""


def read_safetensors(file: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a file of safetensors; raises ValueError for any other file."""
    try:
        return load_file(file, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{file} is no file of safetensors, or a damaged one: {error}") from None


def write_safetensors(
    tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] = PYTORCH
) -> None:
    """Write a file of safetensors, with the permissions of any new file."""
    # safetensors' own writer makes a file that its owner alone may read.
    file.touch()
    mode = file.stat().st_mode
    save_file(dict(tensors), file, dict(metadata))
    file.chmod(mode)


def read_config(folder: Path) -> SavedConfig:
    """Read config.json. Raises ValueError unless the folder is one of ours."""
    require_files(folder)
    saved = read_json(folder / CONFIG)
    found = (saved.get("format"), saved.get("format_version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise ValueError(
            f"{folder}/{CONFIG} has format and format_version {found}: this reads {(FORMAT, FORMAT_VERSION)}"
        )
    unknown = saved.keys() - {"format", "format_version", *SavedConfig._fields}
    if unknown or "config" not in saved:
        keys = ", ".join(sorted(unknown)) or "no config"
        raise ValueError(
            f"{folder}/{CONFIG} has {keys}: name a folder that DualTokenizer.save_pretrained wrote"
        )
    return SavedConfig(saved["config"], saved.get("transform"))


def write_folder(folder: Path, saved: SavedConfig, state: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors; the same values give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_safetensors(tensors, folder / WEIGHTS)
    values = {"format": FORMAT, "format_version": FORMAT_VERSION, **saved._asdict()}
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
