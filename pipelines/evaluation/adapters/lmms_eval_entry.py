"""The entry point by which lmms-eval finds `dualtoken` among its models; imports no torch.

It is in the group `lmms_eval.models` of this project's pyproject.toml.
"""

from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]


def manifest() -> ModelManifest:
    """Return the model's name in lmms-eval, and its class."""
    return ModelManifest(
        model_id="dualtoken",
        simple_class_path="dualtoken.pipelines.evaluation.adapters.lmms_eval_model.DualToken",
    )
