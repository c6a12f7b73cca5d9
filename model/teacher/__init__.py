"""Teachers: frozen image and text models that a tokenizer learns from, and the training of a small one.

May import the rooms of `model` below it: `config`, `precision`, `optimizer`, `hub`, `vision`, `quantize`,
`tokenizer`. It computes on the device that the model is on, and reads and writes folders on local disk. Only
`export_open_clip` may touch the network, where the weights come from open_clip's hub.
"""

from dualtoken.model.teacher.targets import TeacherTargets
from dualtoken.model.teacher.teacher import (
    Teacher,
    TeacherOutput,
    build_teacher,
    export_open_clip,
    load_teacher,
    save_teacher,
    tokenize,
)
from dualtoken.model.teacher.training import TeacherMetrics, TeacherTrainer

__all__ = [
    "Teacher",
    "TeacherMetrics",
    "TeacherOutput",
    "TeacherTargets",
    "TeacherTrainer",
    "build_teacher",
    "export_open_clip",
    "load_teacher",
    "save_teacher",
    "tokenize",
]
