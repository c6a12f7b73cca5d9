"""Imports of torchvision, timm, open_clip and torchmetrics that work everywhere, and in half the time.

Two things stand in their way. torchvision's Python part fails where its compiled part cannot load, such as a CUDA-built wheel
on a CPU build of torch ("operator torchvision::nms does not exist"): we use none of its operators, so declaring that they exist
is enough. And torchvision and timm name torch's compiler while they are imported, which loads all of it: 7 s that every
command and every worker would pay, compiling or not.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)
# A Library withdraws its operators when it is collected, so it lives as long as the process.
_declared: torch.library.Library | None = None


@contextmanager
def vision_imports() -> Iterator[None]:
    """Within it, import torchvision, timm, open_clip or torchmetrics; nested and repeated use is fine.

    What is imported does not differ, but for two optional parts: timm's NaFlex tower is compiled where it asks not to be, and
    timm's training log to wandb is left out. The compiler loads at its first use.
    """
    declare_missing_ops()
    stubs: dict[str, ModuleType | None] = {}
    if "torch._dynamo" not in sys.modules:
        stubs["torch._dynamo"] = _Compiler("torch._dynamo", disable=lambda method, *_, **__: method)
        stubs["torch._dynamo.utils"] = _Compiler(
            "torch._dynamo.utils", is_compile_supported=_is_compile_supported
        )
    if "wandb" not in sys.modules:
        stubs["wandb"] = None  # an import of it raises ImportError
    sys.modules.update(stubs)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]


class _Compiler(ModuleType):
    """Stands for a module of the compiler while others are imported, and gives way to it when they ask for more than names."""

    def __init__(self, name: str, **attributes: Callable[..., Any]) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401  (a module's attributes are of any type)
        is_import_of_another_part = attribute == "__path__" and self.__name__ == "torch._dynamo"
        if (
            attribute.startswith("__") and not is_import_of_another_part
        ):  # `inspect` looks at every module there is
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            for name in ("torch._dynamo", "torch._dynamo.utils"):
                sys.modules.pop(name, None)
        return getattr(importlib.import_module(self.__name__), attribute)


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


def declare_missing_ops() -> None:
    """Declare the operators that torchvision's compiled part would bring; changes nothing where that part loads."""
    global _declared  # noqa: PLW0603
    spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if (
        spec is None
        or spec.origin is None
        or hasattr(torch.ops.torchvision, "nms")
        or _compiled_part_loads(Path(spec.origin).parent)
    ):
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
