"""Reads the texts of samples' documents, and turns them into ids.

N documents.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.loader.document_kinds import ANSWER, DESCRIBE, Kinds
from dualtoken.pipelines.loader.documents import PackPlan
from dualtoken.pipelines.loader.layout import DocumentText
from dualtoken.pipelines.loader.quarantine import Mask
from dualtoken.pipelines.loader.sample_reader import SampleLocations, SampleReader
from dualtoken.pipelines.loader.turns import Turn, choose_turns, parse_turns
from dualtoken.pipelines.tokens.caption_cache import CAPTION
from dualtoken.pipelines.tokens.mapped_shards import Rows

ReadTexts = Callable[[SampleLocations, str], tuple[SampleLocations, list[str]]]
"""Reads a column's texts of samples; returns those samples that could be read, too."""
DocumentTexts = dict[int, DocumentText]
"""Documents' texts by sample."""


class DocumentTextReader:
    """Reads captions and turns, whichever a sample's document has, as ids."""

    def __init__(self, plan: PackPlan, reader: SampleReader) -> None:
        """Raise `UserError` where datasets lack the column of turns that the plan asks for."""
        self._plan = plan
        self._reader = reader
        self._no_ids = np.empty(0, np.int64)
        self._caption_is_turn = bool(plan.markers.assistant or plan.markers.turn_end)
        if plan.asks_questions:
            reader.require_text(plan.turns_column)

    def read_or_stop(self, locations: SampleLocations) -> DocumentTexts:
        """Return the texts of all samples; raises as `SampleReader.texts_or_stop`."""
        return self._read(locations, self._reader.texts_or_stop)

    def read_available(self, locations: SampleLocations) -> DocumentTexts:
        """Return the texts of samples; those in quarantine are left out."""
        return self._read(locations, self._reader.texts_available)

    def _read(self, locations: SampleLocations, read: ReadTexts) -> DocumentTexts:
        kinds = self._plan.document_kinds(locations.samples)
        is_answer = kinds == ANSWER
        if not is_answer.any():
            return self._read_captions(locations, kinds, read)

        answers, has_turns = self._read_answers(locations.select(is_answer), read)
        # Samples without turns are described.
        kinds[is_answer] = np.where(has_turns, ANSWER, DESCRIBE)
        captioned = kinds != ANSWER
        return answers | self._read_captions(locations.select(captioned), kinds[captioned], read)

    # Answers.

    def _read_answers(self, locations: SampleLocations, read: ReadTexts) -> tuple[DocumentTexts, Mask]:
        """Return the texts of the samples that have turns, and which samples are not known to have none."""
        available, texts = read(locations, self._plan.turns_column)
        turns: list[list[Turn]] = []
        for source, row, text in zip(available.sources.tolist(), available.rows.tolist(), texts, strict=True):
            turns.append(self._parse_turns(source, row, text))
        chosen = choose_turns(self._plan.load.seed, available.samples, turns, self._plan.max_turns)

        answers: DocumentTexts = {}
        without_turns: list[int] = []
        for sample, sample_turns in zip(available.samples.tolist(), chosen, strict=True):
            if sample_turns:
                answers[sample] = self._answer_text(sample_turns)
            else:
                without_turns.append(sample)
        return answers, ~np.isin(locations.samples, without_turns)

    def _parse_turns(self, source: int, row: int, text: str) -> list[Turn]:
        try:
            return parse_turns(text)
        except ValueError as error:
            raise UserError(
                f"{self._reader.row_name(source, row)}: {self._plan.questions_column} holds {error}: "
                'correct it in the corpus, to a list of objects with "question" and "answer", or null'
            ) from None

    def _answer_text(self, turns: Sequence[Turn]) -> DocumentText:
        """Lay out turns one after the other; the answers and the ends of turns are predicted."""
        markers = self._plan.markers
        ids: list[Rows] = []
        targets: list[Mask] = []
        lengths: list[int] = []
        for turn in turns:
            prompt = self._joined(markers.user, self._tokenize(turn.question), markers.assistant)
            answer = self._joined((), self._tokenize(turn.answer), markers.turn_end)
            ids += [prompt, answer]
            targets += [np.zeros(len(prompt), bool), np.ones(len(answer), bool)]
            lengths.append(len(prompt) + len(answer))
        firsts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
        return DocumentText(ANSWER, np.concatenate(ids), np.concatenate(targets), firsts)

    # Captions.

    def _read_captions(self, locations: SampleLocations, kinds: Kinds, read: ReadTexts) -> DocumentTexts:
        available, captions = read(locations, CAPTION)
        if len(available.samples) < len(locations.samples):
            kinds = kinds[np.isin(locations.samples, available.samples)]
        is_dropped = self._plan.captions_dropped(available.samples, kinds)
        texts: DocumentTexts = {}
        for sample, kind, dropped, caption in zip(
            available.samples.tolist(), kinds.tolist(), is_dropped.tolist(), captions, strict=True
        ):
            ids = self._no_ids if dropped else self._tokenize(caption)
            if kind == DESCRIBE and self._caption_is_turn:
                texts[sample] = self._description(ids)
            else:
                texts[sample] = DocumentText(kind, ids)
        return texts

    def _description(self, caption: Rows) -> DocumentText:
        """Return a caption as an assistant's turn, which is predicted but for the marker before it."""
        markers = self._plan.markers
        ids = self._joined(markers.assistant, caption, markers.turn_end)
        return DocumentText(DESCRIBE, ids, np.arange(len(ids)) >= len(markers.assistant))

    # Ids.

    def _tokenize(self, text: str) -> Rows:
        if not text:
            return self._no_ids
        return np.asarray(self._plan.tokenize(text), np.int64)

    def _joined(self, before: Sequence[int], ids: Rows, after: Sequence[int]) -> Rows:
        return np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)])
