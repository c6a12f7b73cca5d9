"""The recipe: one YAML file, one frozen model, that configures a whole run; imports neither torch nor ray."""

from typing import Annotated

from pydantic import Field, model_validator

from dualtoken.model.config.base import in_fingerprint_unless_default, not_in_fingerprint
from dualtoken.model.config.tokenizer import TokenizerConfig
from dualtoken.pipelines.config.corpora import CorpusConfig, HeldoutCorpus, HeldoutFraction, Name
from dualtoken.pipelines.config.download import DownloadConfig
from dualtoken.pipelines.config.evaluation import MeasureConfig
from dualtoken.pipelines.config.examine import ExamineConfig
from dualtoken.pipelines.config.filter import FilterConfig
from dualtoken.pipelines.config.load import LoadConfig
from dualtoken.pipelines.config.mllm import MllmStageConfig
from dualtoken.pipelines.config.pretokenize import PretokenizeConfig
from dualtoken.pipelines.config.reader import ReaderConfig
from dualtoken.pipelines.config.report import ReportConfig
from dualtoken.pipelines.config.run import RunConfig
from dualtoken.pipelines.config.teacher import LocalTeacher, OpenClipTeacher, TargetsConfig, TrainedTeacher
from dualtoken.pipelines.config.train import TrainConfig


class Recipe(RunConfig):
    """Configuration of a whole run."""

    corpora: Annotated[dict[Name, CorpusConfig], Field(min_length=1)]
    """Image-text datasets by name."""
    heldout: Annotated[HeldoutCorpus | HeldoutFraction, Field(discriminator="kind")]
    """Samples that training never sees and the report is made from."""
    download: DownloadConfig = DownloadConfig()
    teacher: Annotated[TrainedTeacher | OpenClipTeacher | LocalTeacher, Field(discriminator="kind")]
    filter: FilterConfig = FilterConfig()
    targets: TargetsConfig = TargetsConfig()
    tokenizer: TokenizerConfig
    train: TrainConfig = TrainConfig()
    pretokenize: PretokenizeConfig = PretokenizeConfig()
    mllm: MllmStageConfig | None = None
    """Training of the unified model; without it a run ends with the tokens."""
    examine: ExamineConfig = ExamineConfig()
    measure: MeasureConfig | None = in_fingerprint_unless_default(default=None)
    """Evaluation of the run's tokenizer; without it the report has its own figures alone."""
    report: ReportConfig = ReportConfig()
    load: LoadConfig = not_in_fingerprint(default=LoadConfig())
    reader: ReaderConfig = in_fingerprint_unless_default(default=ReaderConfig())

    @property
    def training_corpora(self) -> tuple[str, ...]:
        """Corpora that teacher and tokenizer learn from, in order of name."""
        names = sorted(self.corpora)
        if isinstance(self.heldout, HeldoutCorpus) and self.heldout.corpus in names:
            names.remove(self.heldout.corpus)
        return tuple(names)

    @property
    def heldout_corpora(self) -> tuple[str, ...]:
        """Corpora that held-out samples come from."""
        if isinstance(self.heldout, HeldoutCorpus):
            return (self.heldout.corpus,)
        return tuple(self.corpora)

    @property
    def heldout_fraction(self) -> float:
        """Fraction of each corpus that is held out, by the samples' keys; 0 where a whole corpus is."""
        return self.heldout.fraction if isinstance(self.heldout, HeldoutFraction) else 0.0

    @model_validator(mode="after")
    def _heldout_is_a_corpus(self) -> "Recipe":
        if isinstance(self.heldout, HeldoutCorpus) and self.heldout.corpus not in self.corpora:
            raise ValueError(
                f"heldout.corpus={self.heldout.corpus} is no corpus: "
                f"set it to one of {', '.join(self.corpora)}"
            )
        if not self.training_corpora:
            raise ValueError(
                "heldout.corpus holds out the only corpus: add a second one, or hold out a fraction"
            )
        return self

    @model_validator(mode="after")
    def _loads_its_corpora(self) -> "Recipe":
        readable = self.corpora.keys() & (self.load.corpora or self.training_corpora)
        unknown = sorted(self.load.named() - readable)
        if unknown:
            raise ValueError(
                f"load names {unknown[0]}: set load.corpora to some of {', '.join(self.corpora)}, "
                "and weights or epochs of these"
            )
        return self

    @model_validator(mode="after")
    def _captions_are_of_corpora(self) -> "Recipe":
        unknown = sorted(self.pretokenize.captions_of.keys() - self.corpora.keys())
        if unknown:
            raise ValueError(
                f"pretokenize.captions_of.{unknown[0]} is of no corpus: name one of {', '.join(self.corpora)}"
            )
        return self

    @model_validator(mode="after")
    def _stage_fits_tokenizer(self) -> "Recipe":
        if self.train.stage == 2 and self.tokenizer.shared_codebook:
            raise ValueError(
                "train.stage=2 leaves the pixel stream as it is, "
                "tokenizer.shared_codebook=true has one for both: set stage=1"
            )
        return self

    @model_validator(mode="after")
    def _teacher_sees_the_crops(self) -> "Recipe":
        if not (self.train.random_crop and self.targets.read_by_training):
            return self
        if self.targets.mode is None:
            key, fix = "targets.dense=true", "set it to false"
        else:
            key, fix = f"targets.mode={self.targets.mode}", "set it to online"
        raise ValueError(
            f"train.random_crop crops anew each time, {key} says what the teacher saw once: {fix}"
        )

    @model_validator(mode="after")
    def _stored_targets_serve_the_losses(self) -> "Recipe":
        if self.targets.mode == "pooled" and self.train.losses.semantic > 0:
            raise ValueError(
                f"train.losses.semantic={self.train.losses.semantic:g} compares tokens, "
                "targets.mode=pooled stores none: set it to dense_int8, dense_float16 or online"
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits_tokenizer(self) -> "Recipe":
        if not isinstance(self.teacher, TrainedTeacher):
            return self
        if self.teacher.tower != self.tokenizer.tower:
            raise ValueError(
                "teacher.tower differs from tokenizer.tower: "
                "make them equal, the tokenizer starts from the teacher"
            )
        if self.teacher.image_size != self.tokenizer.image_size:
            raise ValueError(
                f"teacher.image_size={self.teacher.image_size}, "
                f"tokenizer.image_size={self.tokenizer.image_size}: make them equal"
            )
        return self
