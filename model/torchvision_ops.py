"""Makes `import torchvision` work where its compiled part cannot load, such as a CUDA-built wheel on a CPU build of torch.

timm, open_clip and torchmetrics import torchvision, whose Python part then fails with "operator torchvision::nms does not
exist". We use none of those operators, so declaring that they exist is enough.
"""

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))
# A Library withdraws its operators when it is collected, so it lives as long as the process.
_declared: torch.library.Library | None = None


def declare_missing_ops() -> None:
    """Declare the operators that torchvision's compiled part would bring; changes nothing where that part loads.

    Call it in every process before the first import of torchvision, timm, open_clip or torchmetrics.
    """
    global _declared  # noqa: PLW0603
    spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms") or _compiled_part_loads(Path(spec.origin).parent):
        return
    _declared = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _declared.define(schema)


def _compiled_part_loads(folder: Path) -> bool:
    """Load torchvision's extension; loading it again, as torchvision will, does nothing."""
    libraries = [path for pattern in ("_C*.so", "_C*.pyd") for path in sorted(folder.glob(pattern))]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)
