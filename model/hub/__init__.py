"""Saved models: local folders, and repositories of the Hugging Face hub.

May import no other room of `model` but `config`. It reads and writes the disk, and touches the network where
a hub repository is named.

This face is free of torch, so that a command can refuse a name at once; `saved_model` needs torch and is
imported by its name.
"""

from dualtoken.model.hub.model_name import CONFIG, WEIGHTS, local_folder, require_files

__all__ = ["CONFIG", "WEIGHTS", "local_folder", "require_files"]
