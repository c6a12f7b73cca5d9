"""Pictures to tensors and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from dualtoken.model.vision.transform import Transform, normalize, to_tensor, to_uint8


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(levels.squeeze(), mode)


def test_a_picture_of_the_right_size_keeps_its_levels() -> None:
    picture = noise(8, 8)
    assert np.array_equal(to_tensor([picture], 8)[0].permute(1, 2, 0).numpy(), np.asarray(picture))


def test_all_levels_survive_the_way_to_floats_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16)
    assert torch.equal(to_uint8(normalize(levels)), levels)
    assert (normalize(levels).min().item(), normalize(levels).max().item()) == (-1.0, 1.0)


def test_levels_round_and_clamp() -> None:
    values = torch.tensor([-3.0, -1.0, 0.5 / 127.5 - 1 + 1e-4, 0.0, 3.0]).repeat(3, 5, 1)
    assert to_uint8(values)[0, 0].tolist() == [0, 0, 1, 128, 255]


def test_transparency_shows_white() -> None:
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert (to_tensor([clear], 4) == 255).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert to_tensor([palette], 4)[0, :, 0, 0].tolist() == [10, 20, 30]
    palette.info["transparency"] = 1
    assert (to_tensor([palette], 4) == 255).all()


@pytest.mark.parametrize("size", [(40, 16), (16, 40)])
def test_the_shortest_side_is_resized_and_the_centre_kept(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "black")
    left = size[0] // 2 - 4
    top = size[1] // 2 - 4
    picture.paste((255, 255, 255), (left, top, left + 8, top + 8))
    (levels,) = to_tensor([picture], 8)
    assert levels.shape == (3, 8, 8)
    assert levels[:, 3:5, 3:5].min() > 250
    assert levels[:, 0].max() < 30
    assert torch.equal(levels, levels.flip(1).flip(2))


def test_grey_pictures_become_colour() -> None:
    assert to_tensor([noise(8, 8, "L")], 8).shape == (1, 3, 8, 8)


def test_no_pictures_is_an_error() -> None:
    with pytest.raises(ValueError, match="images is empty"):
        to_tensor([], 8)


def test_the_default_transform_is_the_plain_functions_to_the_bit() -> None:
    transform = Transform(image_size=16)
    pictures = [noise(40, 25), noise(16, 16)]
    levels = to_tensor(pictures, 16)
    assert torch.equal(transform.levels(pictures), levels)
    assert torch.equal(transform(pictures), normalize(levels))
    drawn = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 3 - 1.5
    assert torch.equal(transform.to_uint8(drawn), to_uint8(drawn))


def test_a_transform_undoes_its_own_mean_and_deviation() -> None:
    transform = Transform(image_size=16, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(3, 16, 16)
    assert torch.equal(transform.to_uint8(transform.normalize(levels)), levels)
    assert transform.normalize(levels)[0, 0, 0].item() == pytest.approx(-0.48 / 0.27)


def test_squashing_keeps_the_borders() -> None:
    picture = Image.new("RGB", (40, 16), "black")
    picture.paste((255, 255, 255), (0, 0, 10, 16))
    (levels,) = Transform(image_size=8, fit="squash", interpolation="box").levels([picture])
    assert levels[0, 0].tolist() == [255, 255, 0, 0, 0, 0, 0, 0]


def test_a_long_and_narrow_picture_is_not_enlarged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # Resized whole it would be 384 by 7,680,000.
    (levels,) = Transform(image_size=384).levels([Image.new("RGB", (1, 20_000), "red")])
    assert levels[:, 200, 200].tolist() == [255, 0, 0]
    picture = noise(12, 90)
    transform = Transform(image_size=16)
    whole = transform.levels([picture]).int()
    monkeypatch.setattr("dualtoken.model.vision.transform._RESIZED_WHOLE", 0)
    centre = transform.levels([picture]).int()
    # Noise differs a little at the edges: resizing does not see beyond the part that it resizes.
    assert (centre - whole).abs().float().mean() < 2


def test_a_transform_says_what_it_does() -> None:
    assert (
        str(Transform(image_size=384)) == "RGB over white, shorter side to 384 bicubic, centre crop, [-1, 1]"
    )
    clip = Transform(
        image_size=224,
        fit="squash",
        interpolation="bilinear",
        mean=(0.48, 0.46, 0.41),
        std=(0.27, 0.26, 0.28),
    )
    assert (
        str(clip)
        == "RGB over white, both sides to 224 bilinear, mean [0.48, 0.46, 0.41], deviation [0.27, 0.26, 0.28]"
    )
