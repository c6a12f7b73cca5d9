"""`dualtoken` as a model of lmms-eval: `lmms-eval --model dualtoken --model_args pretrained=FOLDER`.

Written for lmms-eval 0.7, whose tasks of images with one turn it answers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
from lmms_eval.api.instance import GenerationResult, Instance  # pyright: ignore[reportMissingImports]
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import Image

from dualtoken.pipelines.evaluation.adapters.answering import Likelihood, Prompt, answers, likelihood
from dualtoken.pipelines.inference.unified import open_model

_SAMPLING = ("temperature", "top_p", "top_k", "num_beams")
"""Settings of a task's generation that are passed on, beside `until` and `max_new_tokens`."""


class DualToken(lmms):
    """A saved unified model."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        **others: Any,  # noqa: ANN401
    ) -> None:
        """Open a folder or hub repository.

        Raises ValueError for arguments of `--model_args` that this model does not have.
        """
        super().__init__()
        unknown = sorted(others.keys() - {"max_batch_size"})
        if unknown:
            raise ValueError(
                f"--model_args: dualtoken has no {unknown[0]}: leave it out; it takes pretrained, batch_size "
                "and device"
            )
        self.accelerator = Accelerator()
        self._rank = self.accelerator.local_process_index
        self._world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        if device is not None and self._world_size == 1:
            self.device = torch.device(device)
        self.batch_size = _whole_number(batch_size)
        self.opened = open_model(pretrained, self.device)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return the answer to each request, batches of those that ask for the same kind of generation."""
        by_settings: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            settings = json.dumps(request.args[1], sort_keys=True, default=str)
            by_settings.setdefault(settings, []).append(place)
        found = [""] * len(requests)
        for places in by_settings.values():
            prompts: list[Prompt] = []
            for place in places:
                text, _, doc_to_visual, doc_id, task, split = requests[place].args
                prompts.append(Prompt(text, self._images(doc_to_visual, doc_id, task, split)))
            settings = requests[places[0]].args[1]
            until = settings.get("until", ())
            texts = answers(
                self.opened,
                prompts,
                self.batch_size,
                until=(until,) if isinstance(until, str) else until,
                **_generation(settings),
            )
            for place, text in zip(places, texts, strict=True):
                found[place] = text
                self.cache_hook.add_partial("generate_until", (requests[place].args[0], settings), text)
        return found

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return of each continuation its negative log-likelihood, and whether it is the likeliest.

        Negative, since lmms-eval chooses the least: its models return losses. The pair stands where a text
        would, since lmms-eval 0.7 makes a text of a bare pair, and its metrics then find no number in it.
        """
        found: list[GenerationResult] = []
        for request in requests:
            scored = self._likelihood(*request.args)
            found.append(GenerationResult(text=(-scored.log_probability, scored.is_likeliest)))
        return found

    def _likelihood(
        self,
        text: str,
        target: str | Callable[[Any], str],
        doc_to_visual: Callable[[Any], Any] | None = None,
        doc_id: int = 0,
        task: str = "",
        split: str = "",
    ) -> Likelihood:
        if doc_to_visual is None:
            # What a choice is worth by itself, without any question.
            assert isinstance(target, str)
            return likelihood(self.opened, Prompt(text), target)
        continuation = target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])
        images = self._images(doc_to_visual, doc_id, task, split)
        return likelihood(self.opened, Prompt(text, images), continuation)

    def _images(
        self, doc_to_visual: Callable[[Any], Any], doc_id: int, task: str, split: str
    ) -> tuple[Image.Image, ...]:
        """Return a document's images; raises ValueError for sounds and films."""
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or ()
        for visual in visuals:
            if not isinstance(visual, Image.Image):
                raise ValueError(  # noqa: TRY004  (a user's mistake)
                    f"{task}: document {doc_id} has a {type(visual).__name__}, and dualtoken reads images: "
                    "leave the task out"
                )
        return tuple(visuals)

    def clean(self) -> None:
        """Let the model go, once all is answered: a judge of the answers needs its memory."""
        del self.opened
        super().clean()

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Raise NotImplementedError: tasks of several rounds are not answered."""
        raise NotImplementedError(f"dualtoken answers tasks of one round: leave {requests[0].task_name} out")


def _generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's settings as transformers takes them; it samples where there is a temperature."""
    options: dict[str, Any] = {}
    if settings.get("max_new_tokens"):
        options["max_new_tokens"] = int(settings["max_new_tokens"])
    does_sample = bool(settings.get("do_sample", True) and settings.get("temperature"))
    options["do_sample"] = does_sample
    for name in _SAMPLING:
        if settings.get(name) is not None and (does_sample or name == "num_beams"):
            options[name] = settings[name]
    return options


def _whole_number(batch_size: int | str) -> int:
    try:
        return int(batch_size)
    except ValueError:
        raise ValueError(f"batch_size={batch_size}: give a whole number") from None
