"""Trains a small language model on a finished run's images and captions; a script to start yours from.

    python examples/train_mllm.py scenes --out mllm                           # one process, CPU or GPU
    torchrun --nproc_per_node 8 examples/train_mllm.py scenes --out mllm      # eight, data-parallel

Stop or kill it at any time and run the same command again, with any number of processes: it goes on from its
last checkpoint with the batches that an uninterrupted run would have taken.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dualtoken import Markers, PackedBatch, PackedLoader, PackPlan, iterate, load_plan, load_recipe

MARKERS = Markers(padding=0, start=1, end=2, image_start=3, image_end=4)
FIRST_BYTE = 5
TEXT_VOCABULARY = FIRST_BYTE + 256
NUM_HEADS = 4


def tokenize(caption: str) -> np.ndarray:
    """Return a caption's UTF-8 bytes as ids: put your text tokenizer here."""
    return np.frombuffer(caption.encode()[:200], np.uint8).astype(np.int64) + FIRST_BYTE


class MultimodalModel(nn.Module):
    """A decoder that reads text and both streams' codes, and predicts what comes next of either."""

    def __init__(self, num_codes: dict[str, int], depth: int, capacity: int, width: int = 128) -> None:
        super().__init__()
        self.text = nn.Embedding(TEXT_VOCABULARY, width)
        self.codes = nn.ModuleDict()
        self.code_heads = nn.ModuleDict()
        for stream, size in num_codes.items():
            # A table for each depth; an image position is the sum of its codes' vectors.
            self.codes[stream] = nn.ModuleList(nn.Embedding(size, width) for _ in range(depth))
            self.code_heads[stream] = nn.Linear(width, depth * size)
        self.places = nn.Embedding(capacity, width)
        layer = nn.TransformerEncoderLayer(
            width, NUM_HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.text_head = nn.Linear(width, TEXT_VOCABULARY)

    def forward(self, batch: PackedBatch, device: torch.device) -> Tensor:
        """Return the mean loss of all next positions: of a text's id, or of an image position's codes."""
        text = batch.text.to(device)
        visual = batch.visual.to(device)
        ids = {name: codes.long() for name, codes in batch.ids(device)._asdict().items()}
        document = document_numbers(batch).to(device)

        hidden = self.text(text) + self.places(torch.arange(text.shape[1], device=device))
        image = hidden[visual]
        for name, tables in self.codes.items():
            for depth, table in enumerate(tables.children()):
                image = image + table(ids[name][:, depth])
        hidden = hidden.masked_scatter(visual[..., None], image)
        hidden = self.layers(hidden, mask=self._may_not_attend(document))

        # Position t predicts position t + 1 of the same document; padding has no document.
        continues = (document[:, :-1] == document[:, 1:]) & (document[:, 1:] >= 0)
        next_is_text = continues & ~visual[:, 1:]
        logits = self.text_head(hidden[:, :-1][next_is_text])
        loss = F.cross_entropy(logits, text[:, 1:][next_is_text], reduction="sum")
        next_is_image = continues & visual[:, 1:]  # every image position: an image never begins a document
        for name, head in self.code_heads.items():
            depth = ids[name].shape[1]
            logits = head(hidden[:, :-1][next_is_image]).view(-1, head.out_features // depth)
            loss = loss + F.cross_entropy(logits, ids[name].flatten(), reduction="sum") / depth
        return loss / continues.sum().clamp(min=1)

    def _may_not_attend(self, document: Tensor) -> Tensor:
        """Return what each position must not see: other documents, and what comes later."""
        length = document.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=document.device).triu(1)
        other = document[:, :, None] != document[:, None, :]
        return (later | other).repeat_interleave(NUM_HEADS, 0)  # once for each head


def document_numbers(batch: PackedBatch) -> Tensor:
    """Return the number of each position's document, (B, T); -1 for padding."""
    numbers = torch.arange(len(batch.segments)).masked_fill(batch.segments < 0, -1)
    return numbers.repeat_interleave(batch.cu_seqlens.diff().long()).view_as(batch.text)


def save(path: Path, state: dict[str, object]) -> None:
    """Write a checkpoint beside its place and move it there, so that a kill leaves the old one whole."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def train(arguments: argparse.Namespace, rank: int, world_size: int, device: torch.device) -> None:
    """Train one process's share of the run."""
    plan = load_plan(load_recipe(arguments.recipe, arguments.set))
    plan = replace(plan, epochs=(arguments.epochs,) * len(plan.datasets), weights=None)
    packing = PackPlan(
        load=plan, capacity=arguments.capacity, tokenize=tokenize, markers=MARKERS, caption_dropout=0.1
    )
    loader = PackedLoader(packing, arguments.batch_size // world_size, rank=rank, world_size=world_size)

    torch.manual_seed(0)
    dataset = plan.datasets[0]
    model = MultimodalModel(dataset.num_codes, dataset.shape[-1], arguments.capacity).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkpoint = arguments.out / "checkpoint.pt"
    steps_done = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        steps_done = state["step"]
    parallel = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model

    for step, batch in enumerate(iterate(loader, num_workers=arguments.workers), start=steps_done + 1):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = parallel(batch, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step}: loss {loss.item():.6f}, {batch}", flush=True)
        if rank == 0 and step % arguments.checkpoint_every == 0:
            # The state after the batch that was trained on last: the loader itself may be ahead of it.
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save(checkpoint, {**states, "loader": loader.state_dict(batch), "step": step})
    if rank == 0:
        save(arguments.out / "model.pt", model.state_dict())


def main() -> None:
    """Read the arguments, and join the other processes where torchrun started several."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "recipe", help="the recipe whose tokens are finished: a file, or a shipped one's name"
    )
    parser.add_argument("--set", action="append", default=[], help="its overrides, such as root=/mnt/run")
    parser.add_argument("--out", type=Path, required=True, help="the folder for checkpoints")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over each corpus")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences a step, over all processes")
    parser.add_argument("--capacity", type=int, default=512, help="positions of a sequence")
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    parser.add_argument("--workers", type=int, default=0, help="processes that load, for each that trains")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(arguments, rank, world_size, device)
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
