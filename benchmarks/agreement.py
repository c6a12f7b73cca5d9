"""How often codes agree between ways to run the tower: `python -m benchmarks.agreement MODEL IMAGE...`.

Per stream and depth, the share of codes that are those of float32 on the CPU in one batch of 32: with a bfloat16 tower,
image by image, and on a GPU where there is one. A depth quantises what the depths before it left, so that one other choice
changes most of the later ones.
"""

import sys

import torch

from dualtoken.model.precision import Precision, forbid_tf32, tower_precision
from dualtoken.model.tokenizer.dual_tokenizer import Codes, DualTokenizer
from dualtoken.model.vision.image_files import ImageFileError, find_images, open_image


def encode(
    tokenizer: DualTokenizer, images: torch.Tensor, batch_size: int, precision: Precision = "float32"
) -> Codes:
    """Return the codes of images on the CPU, computed where the tokenizer is."""
    device = next(tokenizer.parameters()).device
    with tower_precision(device, precision):
        parts = [tokenizer.encode(batch.to(device)) for batch in images.split(batch_size)]
    return Codes(*(torch.cat([getattr(part, name).cpu() for part in parts]) for name in Codes._fields))


def row(name: str, codes: Codes, reference: Codes) -> str:
    """Return a line of the table: semantic depths, then pixel depths, in percent."""
    shares = [
        (ours == theirs).double().flatten(0, 2).mean(dim=0)
        for ours, theirs in zip(codes, reference, strict=True)
    ]
    return f"{name:24}" + " |".join(
        "".join(f"{100 * share:7.2f}" for share in stream.tolist()) for stream in shares
    )


def main(arguments: list[str]) -> int:
    """Print the table."""
    if len(arguments) < 2:
        print("usage: python -m benchmarks.agreement MODEL IMAGE...", file=sys.stderr)
        return 2
    tokenizer, pictures = DualTokenizer.from_pretrained(arguments[0]), []
    for found in find_images(arguments[1:]):
        try:
            if isinstance(found, ImageFileError):
                raise found
            pictures.append(open_image(found))
        except ImageFileError as problem:
            print(problem, file=sys.stderr)
    if not pictures:
        return 2
    images = tokenizer.transform(pictures)
    reference = encode(tokenizer, images, 32)
    print(f"{len(images)} images; % of codes as with float32, CPU, batch 32; semantic depths | pixel depths")
    print(row("batch 1", encode(tokenizer, images, 1), reference))
    print(row("bfloat16 tower", encode(tokenizer, images, 32, "bfloat16"), reference))
    if torch.cuda.is_available():
        forbid_tf32()
        tokenizer.to("cuda")
        print(row("GPU float32", encode(tokenizer, images, 32), reference))
        print(row("GPU float32, batch 1", encode(tokenizer, images, 1), reference))
        print(row("GPU bfloat16 tower", encode(tokenizer, images, 32, "bfloat16"), reference))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
