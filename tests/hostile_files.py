"""Pictures as somebody with bad intentions sends them: damaged, lying about themselves, or of every odd kind."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from PIL import Image

from tests.init_images import file_of, hole, picture

SIZE = (80, 64)
_PNG = b"\x89PNG\r\n\x1a\n"
# Colours of a PNG's pixel by its type, and the depths that the type may have.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
# More than a reader of texts puts up with.
_UNPACKED = 4 << 20
_PACKED = zlib.compress(bytes(_UNPACKED))
_SIDES = (0, 1, 65_535, 2**31 - 1, 2**32 - 1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def _png(head: tuple[int, ...], pixels: bytes, *between: bytes) -> bytes:
    """Width, height, bits and colour type in front, then its chunks and what is compressed as its pixels."""
    start = _chunk(b"IHDR", struct.pack(">IIBBBBB", *head, 0, 0, 0))
    end = _chunk(b"IDAT", zlib.compress(pixels)) + _chunk(b"IEND", b"")
    return _PNG + start + b"".join(between) + end


def _rows(random: Random, colour: int, depth: int) -> bytes:
    width, height = SIZE
    row = -(-width * _CHANNELS[colour] * depth // 8)
    return b"".join(b"\0" + random.randbytes(row) for _ in range(height))


def odd_png(random: Random) -> bytes:
    """Any type and depth, with a palette and transparent colours of any length."""
    colour = random.choice(list(_CHANNELS))
    depth = random.choice(_DEPTHS[colour])
    chunks = []
    if colour == 3 or not random.randrange(4):
        chunks.append(_chunk(b"PLTE", random.randbytes(random.choice((3, 6, 48, 768, 7, 900)))))
    if random.randrange(2):
        chunks.append(_chunk(b"tRNS", random.randbytes(random.choice((0, 1, 2, 6, 256, 300)))))
    return _png((*SIZE, depth, colour), _rows(random, colour, depth), *chunks)


def deflate_bomb(random: Random) -> bytes:
    """Megabytes in a few bytes, as pixels that were not promised, a text, or a profile of colours."""
    rows = _rows(random, 2, 8)
    if not random.randrange(4):
        return _png((*SIZE, 8, 2), rows + bytes(_UNPACKED))
    kind = random.choice((b"zTXta\0\0", b"iTXta\0\1\0\0\0", b"iCCPa\0\0"))
    return _png((*SIZE, 8, 2), rows, _chunk(kind[:4], kind[4:] + _PACKED))


def lying_size(random: Random) -> bytes:
    """A side that is none, or too long for any memory, in a PNG, a JPEG or a WebP."""
    width, height = random.choice((*_SIDES, 80)), random.choice(_SIDES)
    match random.randrange(3):
        case 0:
            return _png((width, height, 8, 2), _rows(random, 2, 8))
        case 1:
            file = bytearray(file_of(picture(SIZE), "JPEG"))
            at = file.index(b"\xff\xc0") + 5
            file[at : at + 4] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
        case _:
            file = bytearray(file_of(picture(SIZE), "WEBP"))
            at = file.index(b"\x9d\x01\x2a") + 3
            file[at : at + 4] = struct.pack("<HH", height & 0x3FFF, width & 0x3FFF)
    return bytes(file)


def odd_mode(random: Random) -> bytes:
    """A sound picture of a kind that few programs write."""
    image = picture(SIZE, random.randrange(9))
    wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    made: tuple[Callable[[], bytes], ...] = (
        lambda: file_of(image.convert("CMYK"), "JPEG"),
        lambda: file_of(image.convert("L"), "JPEG"),
        lambda: file_of(image.quantize(random.randint(2, 256)), transparency=random.randrange(256)),
        lambda: file_of(image.convert("1")),
        lambda: file_of(image.convert("LA")),
        lambda: file_of(wide, transparency=random.randrange(65_536)),
        lambda: file_of(image, transparency=(1, 2, 3)),
        lambda: file_of(image, save_all=True, append_images=[picture(SIZE)] * 3),
        lambda: file_of(image, "WEBP", save_all=True, append_images=[picture(SIZE)] * 3),
        lambda: file_of(image.resize((random.choice((1, 300)), random.choice((1, 200))))),
        lambda: file_of(hole(SIZE)),
    )
    return random.choice(made)()


def noted(random: Random) -> bytes:
    """Turned by its camera, by one that cannot be, or with notes that are none."""
    kind = random.choice(("PNG", "JPEG", "WEBP"))
    exif = Image.Exif()
    exif[0x0112] = random.choice((*range(10), 65_535))
    notes = random.choice((exif.tobytes(), b"Exif\0\0" + random.randbytes(40), exif.tobytes()[:-9]))
    return file_of(picture(SIZE), kind, exif=notes)


def other_kind(random: Random) -> bytes:
    """No picture, or one of a kind that is not read."""
    kind = random.choice(("GIF", "BMP", "TIFF", "PPM", "ICO", "EPS", "PDF", "", "", ""))
    if kind:
        return file_of(picture(SIZE), kind)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    noise = random.randbytes(random.randrange(400))
    starts = (_PNG, b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\xffWEBPVP8L", b"")
    return random.choice((svg, b"", pickle.dumps(picture), random.choice(starts) + noise))


def mutant(random: Random) -> bytes:
    """One of the others cut off, with other bytes in it, or with a part of it again."""
    file = bytearray(random.choice((odd_png, odd_mode, odd_mode, noted))(random))
    at = random.randrange(len(file))
    match random.randrange(4):
        case 0:
            del file[at:]
        case 1:
            file[at:at] = file[at : at + random.randint(1, 400)]
        case 2:
            file[8 : 8 + random.randint(1, 40)] = random.randbytes(random.randint(1, 40))
        case _:
            for _ in range(random.randint(1, 12)):
                file[random.randrange(len(file))] = random.randrange(256)
    return bytes(file)


KINDS = (odd_png, deflate_bomb, lying_size, odd_mode, noted, other_kind, mutant, mutant, mutant)


def pictures(count: int, random: Random) -> Iterator[bytes]:
    """So many files, of each kind in turn."""
    for number in range(count):
        yield KINDS[number % len(KINDS)](random)


def opens(file: bytes) -> bool:
    """Whether it is a whole picture by its own account, and so may cost a drawing."""
    try:
        Image.open(io.BytesIO(file)).load()
    except Exception:
        return False
    return True
