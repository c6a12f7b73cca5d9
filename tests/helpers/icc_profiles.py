"""ICC profiles of well-known colour spaces, written from their numbers (ICC.1:2001-04)."""

import itertools
import struct


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def profile(
    space: bytes, tags: dict[bytes, bytes], *, device: bytes = b"mntr", connection: bytes = b"XYZ "
) -> bytes:
    """Return an ICC profile of version 2 with given tags."""
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), **tags}
    offset = 128 + 4 + 12 * len(tags)
    table = struct.pack(">I", len(tags))
    content = b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", offset + len(content), len(tag))
        content += tag
    size = offset + len(content)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, device, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + content


def rgb_profile(gamma: float, red: tuple, green: tuple, blue: tuple) -> bytes:
    primaries = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    curves = {name: curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return profile(b"RGB ", primaries | curves)


ADOBE = rgb_profile(
    2.2, (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
)
PROPHOTO = rgb_profile(1.8, (0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03134, 0.00009, 0.82491))
# Its primaries; a plain power in place of its curve.
DISPLAY_P3 = rgb_profile(
    2.2, (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
)


def _ink_table() -> bytes:
    """Return a `lut8` from inks to Lab: darker with each ink and tinted, unlike what 1 - CMYK gives."""
    identity = bytes(range(256))
    colours = b""
    for cyan, magenta, yellow, key in itertools.product((0, 1), repeat=4):
        lightness = 240 * (1 - 0.45 * cyan) * (1 - 0.5 * magenta) * (1 - 0.08 * yellow) * (1 - 0.85 * key)
        green_red = 128 + (70 * magenta - 35 * cyan) * (1 - key)
        blue_yellow = 128 + (85 * yellow - 45 * cyan - 5 * magenta) * (1 - key)
        colours += bytes([round(lightness), round(green_red), round(blue_yellow)])
    head = b"mft1\0\0\0\0" + struct.pack(">4B", 4, 3, 2, 0)
    unit_matrix = struct.pack(">9i", *(65536 * (place % 4 == 0) for place in range(9)))
    return head + unit_matrix + identity * 4 + colours + identity * 3


INKS = profile(b"CMYK", {b"A2B0": _ink_table()}, device=b"prtr", connection=b"Lab ")
"""A printing press's profile."""
