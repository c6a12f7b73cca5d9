"""Chooses sets and protocols of an evaluation file by name; imports neither torch nor ray."""

from collections.abc import Mapping, Sequence
from typing import Any

from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.config.mistakes import closest
from dualtoken.pipelines.errors import UserError


def selected(config: EvaluationConfig, sets: Sequence[str], protocols: Sequence[str]) -> EvaluationConfig:
    """Return a configuration with the named sets and protocols alone; all of them where none is named.

    Raises `UserError` for names that it does not have.
    """
    chosen_sets = {name: config.sets[name] for name in _known("--set", sets, config.sets)}
    chosen_protocols = {
        name: config.protocols[name] for name in _known("--protocol", protocols, config.protocols)
    }
    return config.model_copy(update={"sets": chosen_sets, "protocols": chosen_protocols})


def _known(option: str, names: Sequence[str], known: Mapping[str, Any]) -> Sequence[str]:
    for name in names:
        if name not in known:
            match = closest(name, list(known))
            hint = f"did you mean {match}? Else " if match else ""
            raise UserError(f"{option} {name} is not there: {hint}take one of {', '.join(known)}")
    return list(dict.fromkeys(names)) or list(known)
