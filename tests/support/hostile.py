"""Hostile files, the same in every run: mutations of small valid files, polyglots, playlists and bombs."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import small
from PIL import Image

IMAGES = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "PPM": ".ppm"}
SUFFIXES = (
    *IMAGES.values(),
    ".mp4",
    ".mkv",
    ".avi",
    ".wav",
    ".flac",
    ".ogg",
    ".npz",
    ".tar",
    ".parquet",
    ".csv",
    ".json",
)
RECORDS = (".parquet", ".csv", ".jsonl", ".tar")
"""Of the files that hold a data set."""
MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"RIFF\xff\xff\xff\xffWEBP", b"BM")
MAGIC += (
    b"\0\0\0\x18ftypmp42",
    b"\x1aE\xdf\xa3",
    b"RIFF\xff\xff\xff\x7fWAVEfmt ",
    b"fLaC",
    b"OggS",
    b"PAR1",
    b"PK\3\4",
)


def valid_files(folder: Path) -> dict[str, bytes]:
    """Return small files that can be read, by suffix; `folder` is for those that need one to be written."""
    import pyarrow as pa
    import pyarrow.parquet

    photo, made = small.picture(), {}
    for kind, suffix in IMAGES.items():
        made[suffix] = encoded(photo, kind)
    for suffix in (".mp4", ".mkv", ".avi"):
        made[suffix] = small.write_clip(folder / f"clip{suffix}", 8).read_bytes()
    made[".wav"] = small.write_sound(folder / "sound.wav", seconds=0.1).read_bytes()
    made[".flac"] = _flac(folder / "sound.flac")
    buffer = io.BytesIO()
    np.savez(buffer, pixels=np.zeros((4, 4)))
    made[".npz"] = buffer.getvalue()
    samples = [(f"{index:03}", {"png": made[".png"], "cls": str(index % 3)}) for index in range(3)]
    made[".tar"] = small.write_shard(folder / "shard.tar", samples).read_bytes()
    rows = [{"image": {"bytes": made[".png"], "path": f"{index}.png"}, "label": "cat"} for index in range(3)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    made[".parquet"] = (folder / "rows.parquet").read_bytes()
    made[".csv"] = b"file_name,label\na.png,cat\nb.png,dog\n"
    made[".json"] = json.dumps([{"file_name": "a.png", "label": "cat"}]).encode()
    made[".jsonl"] = b'{"file_name": "a.png", "label": "cat"}\n{"file_name": "b.png", "label": "dog"}\n'
    return made


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _flac(path: Path) -> bytes:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


# Mutations: each takes the content, the random generator and another valid file.


def _cut(content, random, other):
    return content[: random.integers(len(content))]


def _behead(content, random, other):
    return content[random.integers(1, 64) :]


def _flip(content, random, other):
    changed = bytearray(content)
    for place in random.integers(len(content), size=random.integers(1, 30)):
        changed[place] ^= int(random.integers(1, 256))
    return bytes(changed)


def _flip_head(content, random, other):
    return _flip(content[:64], random, other) + content[64:]


def _lengths(content, random, other):
    """Set a field of four bytes, as lengths and sizes are, to its largest or another extreme value."""
    place = int(random.integers(max(1, min(len(content) - 4, 400))))
    value = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")[random.integers(4)]
    return content[:place] + value + content[place + 4 :]


def _erase(content, random, other):
    place = random.integers(len(content))
    return content[:place] + bytes(int(random.integers(1, 200))) + content[place + 200 :]


def _insert(content, random, other):
    place = random.integers(len(content))
    return content[:place] + random.bytes(int(random.integers(1, 500))) + content[place:]


def _repeat(content, random, other):
    place = random.integers(len(content))
    return content[:place] + content[place : place + 300] * int(random.integers(2, 40)) + content[place:]


def _join(content, random, other):
    return content + other


def _splice(content, random, other):
    return content[: len(content) // 2] + other[len(other) // 2 :]


def _disguise(content, random, other):
    return MAGIC[random.integers(len(MAGIC))] + content


def _noise(content, random, other):
    return MAGIC[random.integers(len(MAGIC))] + random.bytes(int(random.integers(0, 3000)))


def _rename(content, random, other):
    return other


MUTATIONS: tuple[Callable[..., bytes], ...] = (
    _cut, _behead, _flip, _flip_head, _lengths, _erase, _insert, _repeat, _join, _splice, _disguise, _noise, _rename,
)  # fmt: skip


def mutants(valid: dict[str, bytes], count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of mutated files."""
    random, suffixes = np.random.default_rng(seed), list(valid)
    for number in range(count):
        mutate, suffix = MUTATIONS[number % len(MUTATIONS)], suffixes[random.integers(len(suffixes))]
        other = valid[suffixes[random.integers(len(suffixes))]]
        yield f"{number:04}-{mutate.__name__.strip('_')}{suffix}", mutate(valid[suffix], random, other)


def lures(bait: Path, port: int) -> Iterator[tuple[str, bytes]]:
    """Yield files that name another file, or an address on which somebody listens, in the ways of many formats."""
    names = [bait.name, str(bait), bait.as_uri(), f"http://127.0.0.1:{port}/a.mp4", f"tcp://127.0.0.1:{port}"]
    names += [f"udp://127.0.0.1:{port}", f"concat:{bait}", f"subfile,,start,0,end,9,,:{bait}"]
    forms = {
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:5,\n{}\n#EXT-X-ENDLIST\n",
        "m3u": "#EXTM3U\n#EXTINF:5,\n{}\n",
        "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1" bandwidth="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="{}"/></svg>',
        "xxe": '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "{}">]><a>&b;</a>',
        "pls": "[playlist]\nFile1={}\nNumberOfEntries=1\n",
        "asx": '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    }
    suffixes = (".m3u8", ".mp4", ".png", ".wav", ".mkv", ".jpg")
    for number, (name, form) in enumerate((name, form) for name in names for form in forms.items()):
        yield f"lure-{form[0]}-{number}{suffixes[number % len(suffixes)]}", form[1].format(name).encode()
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    yield from ((f"lure-sdp{suffix}", sdp.encode()) for suffix in (".sdp", ".mp4", ".wav"))
    eps = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({bait}) run\nshowpage\n"
    yield from ((f"lure-eps{suffix}", eps.encode()) for suffix in (".eps", ".png"))


class Opens:
    """A pickle that opens a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path),)


def bombs(bait: Path) -> Iterator[tuple[str, bytes]]:
    """Yield files that are, or claim to be, very large once they are decoded, and pickles."""
    yield "bomb.png", encoded(Image.new("1", (9000, 9000)))
    yield "bomb-thin.png", encoded(Image.new("1", (30_000, 1)))
    yield "bomb.gif", encoded(Image.new("P", (9000, 9000)), "GIF")
    yield "bomb.tif", encoded(Image.new("1", (9000, 9000)), "TIFF", compression="group4")
    for side in (60_000, 2**31 - 1):
        head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        body = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        yield f"bomb-claims-{side}.png", MAGIC[0] + body
    yield "bomb-claims.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b",\0\0\0\0"
    yield "bomb-claims.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6)
    yield "bomb-claims.ppm", b"P6 60000 60000 255\n" + bytes(1000)
    yield "bomb-claims-plain.ppm", b"P3 5000 5000 255\n" + b"1 " * 1000
    yield (
        "bomb-claims.wav",
        b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\1\0\xff\xff\1\0\0\0" + b"\xff" * 6 + b"data\xff\xff\xff\xff",
    )
    yield "bomb.gz.png", gzip.compress(bytes(10**7))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pixels.npy", bytes(10**7))
    yield "bomb.npz", packed.getvalue()
    yield "bomb.json", b"[" * 100_000
    yield "bomb.jsonl", b'{"a":' * 100_000
    for suffix in (".png", ".npz", ".parquet"):
        yield f"pickle{suffix}", pickle.dumps(Opens(bait))
    yield from ((f"plain{number}{suffix}", content) for number, (suffix, content) in enumerate(_plain()))


def _plain() -> Iterator[tuple[str, bytes]]:
    for content in (b"", b"\0", bytes(10_000), b"hello " * 1000, "\ufeff\u202e\0".encode(), b"\xff" * 999):
        yield from ((suffix, content) for suffix in (".png", ".mp4", ".wav"))


def hostile_files(folder: Path, count: int, bait: Path, port: int) -> list[Path]:
    """Write `count` files into a folder, at least half of them mutants, and return their paths."""
    sources = folder.parent / f"{folder.name}-sources"
    sources.mkdir()
    fixed = [*lures(bait, port), *bombs(bait)]
    wanted = max(count - len(fixed), count // 2)
    fixed = [fixed[index] for index in np.linspace(0, len(fixed) - 1, count - wanted).astype(int)]
    chosen = [*fixed, *mutants(valid_files(sources), wanted)]
    for name, content in chosen:
        (folder / name).write_bytes(content)
    return [folder / name for name, _ in chosen]
