"""How often codes agree between ways to run the tower: `python -m benchmarks.agreement MODEL IMAGE...`.

Per stream and depth, the share of codes that are those of float32 on the CPU in one batch of 32: with a
bfloat16 tower, image by image, and on a GPU where there is one. A depth quantises what the depths before it
left, so that one other choice changes most of the later ones.
"""

import sys

import torch
from PIL import Image

from dualtoken.model.precision import Precision, forbid_tf32, tower_precision
from dualtoken.model.tokenizer.dual_tokenizer import Codes, DualTokenizer
from dualtoken.model.vision.image_files import ImageFileError, find_images, open_image


def encode(
    tokenizer: DualTokenizer, images: torch.Tensor, batch_size: int, precision: Precision = "float32"
) -> Codes:
    """Return the codes of images on the CPU, computed where the tokenizer is."""
    device = next(tokenizer.parameters()).device
    pixel: list[torch.Tensor] = []
    semantic: list[torch.Tensor] = []
    with tower_precision(device, precision):
        for batch in images.split(batch_size):
            codes = tokenizer.encode(batch.to(device))
            pixel.append(codes.pixel.cpu())
            semantic.append(codes.semantic.cpu())
    return Codes(pixel=torch.cat(pixel), semantic=torch.cat(semantic))


def row(name: str, codes: Codes, reference: Codes) -> str:
    """Return a line of the table: the streams in the order of `Codes`, with a percentage for each depth."""
    streams = [agreeing_percent(found, expected) for found, expected in zip(codes, reference, strict=True)]
    return f"{name:24}" + " |".join(streams)


def agreeing_percent(codes: torch.Tensor, reference: torch.Tensor) -> str:
    """Return how many codes of (B, H, W, D) agree, for each depth in percent."""
    shares = (codes == reference).double().flatten(0, 2).mean(dim=0)
    return "".join(f"{100 * share:7.2f}" for share in shares.tolist())


def open_all(paths: list[str]) -> list[Image.Image]:
    """Open images; say on standard error which cannot be opened."""
    opened: list[Image.Image] = []
    for found in find_images(paths):
        try:
            if isinstance(found, ImageFileError):
                raise found
            opened.append(open_image(found))
        except ImageFileError as problem:
            print(problem, file=sys.stderr)
    return opened


def main(arguments: list[str]) -> int:
    """Print the table."""
    if len(arguments) < 2:
        print("usage: python -m benchmarks.agreement MODEL IMAGE...", file=sys.stderr)
        return 2
    tokenizer = DualTokenizer.from_pretrained(arguments[0])
    pictures = open_all(arguments[1:])
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
