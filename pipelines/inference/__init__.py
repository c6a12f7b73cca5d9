"""Inference: trained networks on a device, fed with images in bounded memory.

May import `pipelines.{errors, config, core, images}`, `infra` and `model`. Brings torch; the networks run on
the accelerator that the recipe gives, weights and images are read from local disk or an object store, and a
hub's model is fetched over the network. What PyTorch does to the whole process is set by `prepare_process`,
which no network calls.
"""

from dualtoken.pipelines.inference.adaptive_batch import AdaptiveBatchEncoder, AdaptiveBatchTeacher
from dualtoken.pipelines.inference.image_stream import ImageBatch, ImageStream, Undecodable
from dualtoken.pipelines.inference.networks import (
    StreamCodes,
    TeacherRunner,
    TokenizerRunner,
    open_teacher,
    open_tokenizer,
    prepare_process,
)

__all__ = [
    "AdaptiveBatchEncoder",
    "AdaptiveBatchTeacher",
    "ImageBatch",
    "ImageStream",
    "StreamCodes",
    "TeacherRunner",
    "TokenizerRunner",
    "Undecodable",
    "open_teacher",
    "open_tokenizer",
    "prepare_process",
]
