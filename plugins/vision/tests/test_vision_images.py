"""Image files to pixels, against references made by hand and by Pillow's parts."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import models

from headstart_vision import images, progress, resizing
from headstart_vision.images import ImageError

LIMIT = 10_000
GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOUR = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
ALPHA = np.array([[0, 64, 128, 255]] * 3, dtype=np.uint8)


def decoded(path):
    """Pixels (height, width, 3) as int, and the size that the header promises."""
    pixels = images.decode(path, LIMIT)
    assert pixels.dtype == torch.uint8 and pixels.is_contiguous()
    size = tuple(pixels.shape[1:])
    assert images.verify(path, LIMIT).size == size
    return pixels.permute(1, 2, 0).numpy().astype(int)


@pytest.fixture
def saved(tmp_path):
    def save(image, name="image.png", **options):
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return save


def on_white(colour, alpha):
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def repeated(grey):
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


# Colour modes


def test_rgb_is_unchanged(saved):
    assert (decoded(saved(COLOUR)) == COLOUR).all()


def test_grey_is_repeated(saved):
    assert (decoded(saved(GREY)) == repeated(GREY)).all()


def test_rgba_is_laid_on_white(saved):
    path = saved(np.dstack([COLOUR, ALPHA]))
    assert np.abs(decoded(path) - on_white(COLOUR, ALPHA)).max() <= 1


def test_grey_with_alpha_is_laid_on_white(saved):
    path = saved(Image.fromarray(np.dstack([GREY, ALPHA]), "LA"))
    assert np.abs(decoded(path) - on_white(repeated(GREY), ALPHA)).max() <= 1


def palette_image():
    image = Image.fromarray(np.array([[0, 1, 2, 1]] * 3, dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    return image


PALETTE = np.array([[[10, 20, 30], [200, 100, 50], [7, 8, 9], [200, 100, 50]]] * 3)


@pytest.mark.parametrize("name", ["image.png", "image.gif", "image.bmp"])
def test_palette_is_looked_up(saved, name):
    assert (decoded(saved(palette_image(), name)) == PALETTE).all()


def test_transparent_palette_entry_is_white(saved):
    expected = PALETTE.copy()
    expected[:, 2] = 255
    assert (decoded(saved(palette_image(), transparency=2)) == expected).all()


def test_transparent_colour_is_white(saved):
    path = saved(COLOUR, transparency=tuple(int(v) for v in COLOUR[1, 2]))
    expected = COLOUR.copy()
    expected[1, 2] = 255
    assert (decoded(path) == expected).all()


def test_one_bit_is_black_and_white(saved):
    bits = GREY > 100
    assert (decoded(saved(bits)) == repeated(bits * 255)).all()


def write_png(path, width, height, depth, colour, rows):
    """A PNG written by hand, so that no version of Pillow has its say."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def sixteen_bit_png(path, values):
    """Grey (height, width) or colour (height, width, 3)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    height, width = values.shape[:2]
    return write_png(path, width, height, 16, 2 if values.ndim == 3 else 0, rows)


SIXTEEN = np.array(
    [[0, 1, 128, 129], [256, 257, 1000, 32768], [65278, 65279, 65534, 65535]]
)


def test_sixteen_bits_are_scaled_by_their_full_range(tmp_path, saved):
    expected = repeated(np.rint(SIXTEEN * 255 / 65535))
    assert (decoded(sixteen_bit_png(tmp_path / "a.png", SIXTEEN)) == expected).all()
    tiff = saved(SIXTEEN.astype(np.uint16), "b.tif")
    assert (decoded(tiff) == expected).all()
    pgm = tmp_path / "c.pgm"
    pgm.write_bytes(b"P5 4 3 65535\n" + SIXTEEN.astype(">u2").tobytes())
    assert (decoded(pgm) == expected).all()


def test_big_endian_tiff_of_sixteen_bits(tmp_path):
    """Tags and pixels written by hand: Pillow writes little-endian alone."""
    tags = [
        (256, 3, 4), (257, 3, 3), (258, 3, 16), (259, 3, 1), (262, 3, 1),
        (273, 4, 8), (277, 3, 1), (278, 3, 3), (279, 4, 24),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack(">HHI", tag, kind, 1)
        + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in tags
    )
    path = tmp_path / "a.tif"
    path.write_bytes(
        b"MM\0*" + struct.pack(">I", 32) + SIXTEEN.astype(">u2").tobytes()
        + struct.pack(">H", len(tags)) + entries + b"\0\0\0\0"
    )  # fmt: skip
    expected = repeated(np.rint(SIXTEEN * 255 / 65535))
    assert (decoded(path) == expected).all()


def test_sixteen_bit_colour_keeps_its_range(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (3, 4, 3))
    path = sixteen_bit_png(tmp_path / "a.png", values)
    assert np.abs(decoded(path) - values / 257).max() <= 1


def test_cmyk_is_the_right_way_round(saved):
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:, :, 0] = 255  # cyan, all of it
    ink[:, :, 3] = 51  # and a fifth of black
    cyan = np.array([0, 204, 204])
    tiff = saved(Image.fromarray(ink, "CMYK"), "a.tif")
    assert np.abs(decoded(tiff) - cyan).max() <= 1
    # Pillow writes CMYK as Adobe does: inverted, with its marker.
    jpeg = saved(Image.fromarray(ink, "CMYK"), "a.jpg", quality=100)
    assert b"Adobe" in jpeg.read_bytes()
    assert np.abs(decoded(jpeg) - cyan).max() <= 3


def test_other_colour_spaces(saved):
    image = Image.fromarray(np.tile(np.uint8([[[76, 85, 255]]]), (16, 16, 1)), "YCbCr")
    # ITU-R BT.601: Y 76, Cb 85, Cr 255 is red.
    assert np.abs(decoded(saved(image, "a.jpg", quality=100)) - [254, 0, 0]).max() <= 3


def test_floats_within_one_are_shares_of_white(saved):
    shares = np.linspace(0.2, 0.8, 12, dtype=np.float32).reshape(3, 4)
    assert (decoded(saved(shares, "a.tif")) == repeated(np.rint(shares * 255))).all()


def test_other_floats_and_integers_are_stretched(saved):
    values = np.linspace(-40, 600, 12).reshape(3, 4)
    expected = repeated(np.rint((values + 40) / 640 * 255))
    path = saved(values.astype(np.float32), "a.tif")
    assert np.abs(decoded(path) - expected).max() <= 1
    whole = np.arange(12, dtype=np.int32).reshape(3, 4) * 100_000
    expected = repeated(np.rint(np.arange(12).reshape(3, 4) / 11 * 255))
    assert (decoded(saved(whole, "b.tif")) == expected).all()
    flat = np.full((3, 4), 7.0, dtype=np.float32)
    assert (decoded(saved(flat, "c.tif")) == 0).all()


def test_values_that_are_no_numbers_are_refused(saved):
    values = np.ones((3, 4), dtype=np.float32)
    values[1, 1] = np.nan
    with pytest.raises(ImageError, match="no numbers"):
        images.verify(saved(values, "a.tif"), LIMIT)


def test_first_frame_is_taken(saved):
    other = Image.fromarray(255 - COLOUR)
    for name, tolerance in (("a.tif", 0), ("a.webp", 0), ("a.png", 0)):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(COLOUR, name, save_all=True, append_images=[other], **options)
        assert np.abs(decoded(path) - COLOUR).max() <= tolerance


# EXIF orientation

# Where the stored corner pixels of [[1, 2], [3, 4]]-like images must end up: the
# picture as it should look, made from the stored one with NumPy alone.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def with_orientation(number):
    exif = Image.Exif()
    exif[images.ORIENTATION] = number
    return exif


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_orientation_is_applied(saved, number, name):
    options = {"lossless": True} if name == "a.webp" else {}
    path = saved(COLOUR, name, exif=with_orientation(number), **options)
    assert (decoded(path) == UPRIGHT[number](COLOUR)).all()


@pytest.mark.parametrize("number", UPRIGHT)
def test_orientation_of_jpeg(saved, number):
    blocks = np.kron(COLOUR[:2, :3], np.ones((16, 16, 1), dtype=np.uint8))
    options = {"quality": 100, "subsampling": 0}
    plain = decoded(saved(blocks, "plain.jpg", **options))
    turned = saved(blocks, "a.jpg", exif=with_orientation(number), **options)
    assert (decoded(turned) == UPRIGHT[number](plain)).all()


def test_orientation_of_sixteen_bits(saved):
    path = saved(SIXTEEN.astype(np.uint16), "a.png", exif=with_orientation(6))
    expected = np.rot90(repeated(np.rint(SIXTEEN * 255 / 65535)), -1)
    assert (decoded(path) == expected).all()


def test_orientation_behind_the_pixels_of_a_png(saved):
    path = saved(COLOUR, exif=with_orientation(6))
    raw = path.read_bytes()
    start = raw.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(raw[start : start + 4], "big")
    end = raw.index(b"IEND") - 4
    assert stop <= end
    path.write_bytes(raw[:start] + raw[stop:end] + raw[start:stop] + raw[end:])
    assert (decoded(path) == UPRIGHT[6](COLOUR)).all()


def test_nonsense_orientation_is_ignored(saved):
    path = saved(COLOUR, exif=with_orientation(9))
    assert (decoded(path) == COLOUR).all()


# What is refused


def refusal(path, limit=LIMIT, look=images.verify):
    with pytest.raises(ImageError) as caught:
        look(path, limit)
    return caught.value


def test_zero_bytes(tmp_path):
    (tmp_path / "a.png").touch()
    assert "empty" in refusal(tmp_path / "a.png").what


def test_missing_file_names_the_nearest(saved, tmp_path):
    saved(COLOUR, "kitten.png")
    assert "kitten.png" in refusal(tmp_path / "kiten.png").fix
    assert "kitten.png" in refusal(tmp_path / "kitten.jpg").fix
    assert "no folder" in refusal(tmp_path / "none" / "a.png").why


def test_folder_is_no_image(tmp_path):
    assert "folder" in refusal(tmp_path).what


@pytest.mark.parametrize("content", [b"GIF8 or so", b"<svg/>", b"%!PS-Adobe-3.0 EPSF"])
def test_unknown_formats(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content * 20)
    assert "not an image" in refusal(path).what


def test_formats_that_run_programs_are_not_opened(tmp_path):
    path = tmp_path / "a.eps"
    Image.fromarray(COLOUR).save(path)
    assert "not an image" in refusal(path).what


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.gif", "a.webp", "a.ppm"]
)
def test_truncated_files(saved, name):
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(noise, name)
    raw = path.read_bytes()
    images.verify(path, LIMIT)
    path.write_bytes(raw[: int(len(raw) * 0.7)])
    refused = refusal(path)
    assert "cut short" in refused.what or "damaged" in refused.what
    assert refused.why
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif", "a.webp"])
def test_damaged_files_have_no_other_error(saved, name):
    noise = np.random.default_rng(3).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    path = saved(noise, name)
    raw = path.read_bytes()
    generator = np.random.default_rng(4)
    for _ in range(60):
        broken = bytearray(raw)
        for place in generator.integers(0, len(raw), 4):
            broken[place] = generator.integers(0, 256)
        path.write_bytes(broken)
        for look in (images.verify, images.decode):
            try:
                look(path, LIMIT)
            except ImageError as error:
                assert error.what


@pytest.mark.parametrize("look", [images.verify, images.decode])
@pytest.mark.parametrize("side", [101, 12_000, 60_000])
def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch, look, side):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    # A valid header of a huge image, with hardly any data behind it.
    path = write_png(tmp_path / "a.png", side, side, 8, 2, b"\0" * 1000)
    refused = refusal(path, LIMIT, look)
    assert "too large" in refused.what and f"{side:,}" in refused.what
    assert "data.max_pixels" in refused.fix


def test_limit_is_ours_and_not_pillows(saved, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert images.verify(saved(COLOUR), LIMIT).size == (3, 4)
    assert Image.MAX_IMAGE_PIXELS == 4
    assert images.verify(saved(COLOUR), 12).size == (3, 4)
    assert "too large" in refusal(saved(COLOUR), 11).what


def test_error_survives_a_worker_process():
    error = pickle.loads(pickle.dumps(ImageError("what", "why", "fix")))
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")


# Many files


def test_inspect_keeps_the_order(saved, tmp_path):
    paths = [saved(COLOUR, f"{i}.png", compress_level=i) for i in range(8)]
    paths[3].write_bytes(b"")
    looks = images.inspect(paths, LIMIT)
    assert [isinstance(look, ImageError) for look in looks] == [
        i == 3 for i in range(8)
    ]
    import hashlib

    for path, look in zip(paths, looks, strict=True):
        if path != paths[3]:
            assert look.digest == hashlib.sha256(path.read_bytes()).hexdigest()
            assert (look.format, look.mode) == ("PNG", "RGB")


def test_bar_is_for_what_takes_long(monkeypatch):
    from rich.progress import Progress

    started = []
    monkeypatch.setattr(Progress, "start", lambda bar: started.append(bar.tasks))
    now = iter([0.0, 0.5, 1.9, 2.5, 2.55, 3.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=now.__next__))
    with progress.track(5, "checking") as done:
        for expected in (0, 0, 1, 1, 2):
            done()
            assert len(started) == expected


# Pictures in memory


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (COLOUR, COLOUR),
        (GREY, repeated(GREY)),
        (GREY[..., None], repeated(GREY)),
        (torch.from_numpy(COLOUR).permute(2, 0, 1), COLOUR),
        (torch.from_numpy(GREY)[None], repeated(GREY)),
        (Image.fromarray(COLOUR), COLOUR),
        (GREY > 100, repeated((GREY > 100) * 255)),
        (COLOUR / 255, COLOUR),
        (SIXTEEN.astype(np.uint16), repeated(np.rint(SIXTEEN * 255 / 65535))),
    ],
)
def test_arrays_and_tensors(value, expected):
    found = images.to_array(value, LIMIT)
    assert found.dtype == np.uint8 and (found == expected).all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "int"),
        (np.zeros(5, np.uint8), "shape is 5"),
        (np.zeros((2, 2, 7), np.uint8), "shape is 2x2x7"),
        (np.zeros((0, 2, 3), np.uint8), "without pixels"),
        (np.full((2, 2), 1.5), "outside 0 to 1"),
        (np.full((2, 2), np.nan), "outside 0 to 1"),
        (np.zeros((2, 2), np.int64), "int64"),
        (np.zeros((101, 100), np.uint8), "too large"),
    ],
)
def test_what_is_no_picture(value, reason):
    with pytest.raises(ImageError, match=reason):
        images.to_array(value, LIMIT)


# To the network's size


@pytest.mark.parametrize(
    ("weights", "size"),
    [
        (models.MobileNet_V2_Weights.IMAGENET1K_V1, (300, 260)),
        (models.EfficientNet_B0_Weights.IMAGENET1K_V1, (240, 410)),
        (models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1, (100, 90)),
    ],
)
def test_resize_and_crop_equal_torchvisions_preset(weights, size):
    preset = weights.transforms()
    image = torch.randint(
        0,
        256,
        (3, *size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    found = resizing.resize_crop(
        image,
        {
            "size": preset.crop_size[0],
            "resize": preset.resize_size[0],
            "interpolation": preset.interpolation.value,
            "antialias": True,
        },
    )
    mean, std = (torch.tensor(v)[:, None, None] for v in (preset.mean, preset.std))
    expected = preset(Image.fromarray(image.permute(1, 2, 0).numpy())) * std + mean
    apart = (found - (expected * 255).round()).abs()
    assert found.dtype == torch.uint8 and found.shape == expected.shape
    assert apart.max() <= 2 and (apart > 0).float().mean() < 0.02


def test_other_size_resizes_along():
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[:, 25:75, 25:75] = 255  # white in the middle half
    found = resizing.resize_crop(image, {"size": 224, "resize": 448}, size=64)
    # Resized to 128, so the middle 64 is the white half alone.
    assert found.shape == (3, 64, 64) and (found[:, 2:-2, 2:-2] == 255).all()


def test_tiny_images_are_not_cropped():
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    image[:, 0, 0] = 255
    found = resizing.resize_crop(image, {"size": 56, "resize": 64})
    assert found.shape == (3, 56, 56) and found[0, 0, 0] > 200


def test_stacked_images_are_filled_up():
    one = torch.full((3, 20, 50), 7, dtype=torch.uint8)
    other = torch.full((3, 33, 10), 9, dtype=torch.uint8)
    pixels, sizes = resizing.stack_images([one, other])
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 3, 64, 64)
    assert sizes.dtype == torch.int64 and sizes.tolist() == [[20, 50], [33, 10]]
    assert (pixels[0, :, :20, :50] == 7).all() and (pixels[1, :, :33, :10] == 9).all()
    assert int(pixels.sum()) == 7 * 3 * 20 * 50 + 9 * 3 * 33 * 10


def test_thumbnail_is_a_small_jpeg():
    picture = torch.full((3, 100, 400), 90, dtype=torch.uint8)
    head, _, body = images.thumbnail(picture, 80).partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(body)))
    assert image.size == (80, 20)
    assert np.abs(np.array(image).astype(int) - 90).max() <= 2
    # A thumbnail is never larger than its picture.
    body = images.thumbnail(picture[:, :28, :28]).partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(body))).size == (28, 28)


def test_paths_may_be_strings(saved):
    path = saved(COLOUR)
    assert images.verify(str(path), LIMIT).size == (3, 4)
    assert torch.equal(
        images.decode(str(path), LIMIT), images.decode(Path(path), LIMIT)
    )


def test_near_names_are_told_for_the_first_missing_files_alone(tmp_path, monkeypatch):
    Image.fromarray(COLOUR).save(tmp_path / "garden.png")
    monkeypatch.setattr(images, "HINTS", 2)
    names = ["gardn.png", "garden.jpg", "gardem.png", "garden.png"]
    looks = images.inspect([tmp_path / name for name in names], LIMIT)
    assert [look.fix for look in looks[:2]] == ["did you mean 'garden.png'?"] * 2
    assert looks[2].what == looks[0].what and "did you mean" not in looks[2].fix
    assert looks[3].size == (3, 4)


def test_another_number_is_no_near_name(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "frame_12.png")
    assert "did you mean" not in refusal(tmp_path / "frame_13.png").fix
    assert "'frame_12.png'" in refusal(tmp_path / "frame_12.jpg").fix
