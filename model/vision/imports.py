"""Imports of torchvision, timm, open_clip and torchmetrics that work everywhere, and in half the time.

Two obstacles are removed here, and nowhere else.

1. torchvision's Python part fails where its compiled part cannot load, such as a CUDA-built wheel on a CPU
   build of torch ("operator torchvision::nms does not exist"). We use none of its operators, so declaring
   that they exist is enough.
2. torchvision and timm name torch's compiler while they are imported, which loads all of it: 7 s that every
   command and every worker would pay, compiling or not. Stand-ins in `sys.modules` give the names, and give
   way to the compiler itself at its first use.

tests/model/test_packaging.py imports in every order, and checks when the compiler loads.
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

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""Operators that torchvision looks up while it is imported."""
_declared: torch.library.Library | None = None
"""Library of the declared operators. It withdraws them when it is collected, so it lives as long as the
process."""


@contextmanager
def vision_imports() -> Iterator[None]:
    """Import torchvision, timm, open_clip or torchmetrics within this context.

    Nested and repeated use is fine. What is imported does not differ, but for two optional parts: timm's
    NaFlex tower is compiled where it asks not to be, and timm's training log to wandb is left out. The
    compiler loads at its first use.
    """
    declare_missing_ops()
    stubs: dict[str, ModuleType | None] = {}
    if "torch._dynamo" not in sys.modules:
        stubs["torch._dynamo"] = _Compiler("torch._dynamo", disable=lambda method, *_, **__: method)
        stubs["torch._dynamo.utils"] = _Compiler(
            "torch._dynamo.utils", is_compile_supported=_is_compile_supported
        )
    if "wandb" not in sys.modules:
        # An import of it then raises ImportError.
        stubs["wandb"] = None
    sys.modules.update(stubs)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]


class _Compiler(ModuleType):
    """A stand-in for a module of the compiler while others are imported.

    It gives way when they ask for more than names.
    """

    def __init__(self, name: str, **attributes: Callable[..., Any]) -> None:
        super().__init__(name)
        self.__dict__.update(attributes)

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401  (a module's attributes are of any type)
        is_import_of_another_part = attribute == "__path__" and self.__name__ == "torch._dynamo"
        # `inspect` looks at the special attributes of every module there is: that is no use of the compiler.
        if attribute.startswith("__") and not is_import_of_another_part:
            raise AttributeError(attribute)
        if sys.modules.get(self.__name__) is self:
            for name in ("torch._dynamo", "torch._dynamo.utils"):
                sys.modules.pop(name, None)
        return getattr(importlib.import_module(self.__name__), attribute)


def _is_compile_supported(device_type: str) -> bool:
    return importlib.import_module("torch._dynamo.utils").is_compile_supported(device_type)


def declare_missing_ops() -> None:
    """Declare the operators of torchvision's compiled part; changes nothing where that part loads."""
    global _declared  # noqa: PLW0603
    if "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    if hasattr(torch.ops.torchvision, "nms") or _compiled_part_loads(Path(spec.origin).parent):
        return
    _declared = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _declared.define(schema)


def _compiled_part_loads(folder: Path) -> bool:
    """Load torchvision's extension; loading it again, as torchvision will, does nothing."""
    libraries = [*sorted(folder.glob("_C*.so")), *sorted(folder.glob("_C*.pyd"))]
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        return False
    return bool(libraries)
