import math
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from omnihuman_infer.media.picture import BACKGROUND, fit_size, load_picture, resize
from omnihuman_infer.request import RequestError

from .files import write_picture, write_wav

# Of damaged metadata, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(30_000, 30_000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match=r"^image: .* pixels, the limit"):
        load_picture(png_header(tmp_path / "bomb.png", *size))


def test_filters_of_warnings_are_left_alone_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They belong to the process: to change and restore them in two threads at once leaves them changed."""
    path = write_picture(tmp_path / "a.png")
    entered, may_go = ([threading.Event() for _ in range(2)] for _ in range(2))
    opened = Image.open

    def in_turn(*args: object, **settings: object) -> Image.Image:
        number = int(threading.current_thread().name)
        entered[number].set()
        may_go[number].wait(10)
        return opened(*args, **settings)

    monkeypatch.setattr(Image, "open", in_turn)
    before = list(warnings.filters)
    threads = [threading.Thread(target=load_picture, args=(path,), name=str(number)) for number in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        assert entered[number].wait(10)
    for number, thread in enumerate(threads):
        may_go[number].set()
        thread.join()
    after, warnings.filters[:] = list(warnings.filters), before
    assert after == before


def test_a_program_that_makes_errors_of_warnings_gets_answers_too(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 48))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture.save(tmp_path / "a.jpg", exif=exif.tobytes()[:-6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RequestError, match=r"^image: .* damaged or truncated .Corrupt EXIF"):
            load_picture(tmp_path / "a.jpg")
        for side in (9_500, 14_000):
            with pytest.raises(RequestError, match=r"^image: .* pixels, the limit"):
                load_picture(png_header(tmp_path / "bomb.png", side, side))


def test_truncated_disguised_and_tiny(tmp_path: Path) -> None:
    whole = write_picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"^image: .* damaged or truncated"):
        load_picture(tmp_path / "half.png")
    write_wav(tmp_path / "sound.png", np.zeros(1000))
    with pytest.raises(RequestError, match=r"^image: .* is not a PNG, JPEG or WEBP"):
        load_picture(tmp_path / "sound.png")
    # A format that Pillow reads, but that is not on the list.
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png", "BMP")
    with pytest.raises(RequestError, match=r"^image: .* is not a PNG, JPEG or WEBP"):
        load_picture(tmp_path / "b.png")
    Image.new("RGB", (4, 400)).save(tmp_path / "line.png")
    with pytest.raises(RequestError, match=r"^image: .* needs at least 16"):
        load_picture(tmp_path / "line.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_truncated_at_every_length_gives_one_line(tmp_path: Path, kind: str) -> None:
    Image.effect_noise((64, 48), 80).convert("RGB").save(tmp_path / f"a.{kind}")
    whole = (tmp_path / f"a.{kind}").read_bytes()
    path = tmp_path / f"cut.{kind}"
    for length in range(1, len(whole) - 16, max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(RequestError, match=r"^image: ") as caught:
            load_picture(path)
        assert "\n" not in str(caught.value)


def test_turned_by_exif(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 30), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_picture(tmp_path / "a.jpg").size == (30, 60)


def turned_picture() -> tuple[Image.Image, Image.Exif]:
    """A picture held sideways, with the metadata that a camera writes."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation], exif[ExifTags.Base.XResolution] = "Maker", 6, 72.0
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return Image.effect_noise((40, 24), 80).convert("RGB"), exif


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_damaged_metadata_spoils_no_picture(tmp_path: Path, kind: str) -> None:
    image, exif = turned_picture()
    path, numbers = tmp_path / f"a.{kind}", np.random.default_rng(0)
    whole = exif.tobytes()
    # Behind the marks by which a reader knows the block.
    begin = whole.index(b"MM\0*") + 4
    sizes = set()
    for _ in range(250):
        damaged = bytearray(whole)
        for place in numbers.integers(begin, len(whole), size=numbers.integers(1, 4)):
            damaged[place] = numbers.choice([0, 1, 255, numbers.integers(256)])
        image.save(path, exif=bytes(damaged))
        sizes.add(load_picture(path).size)
    assert sizes == {(24, 40), (40, 24)}


def test_a_turn_counts_whatever_stands_beside_it(tmp_path: Path) -> None:
    image, exif = turned_picture()
    # Text where a fraction belongs, which Pillow cannot write again.
    damaged = exif.tobytes().replace(struct.pack(">HHI", 0x011A, 5, 1), struct.pack(">HHI", 0x011A, 2, 1))
    image.save(tmp_path / "a.jpg", exif=damaged)
    assert load_picture(tmp_path / "a.jpg").size == (24, 40)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_damaged_bytes_give_a_picture_or_one_line(tmp_path: Path, kind: str) -> None:
    image, exif = turned_picture()
    image.save(tmp_path / f"whole.{kind}", exif=exif)
    whole, numbers = (tmp_path / f"whole.{kind}").read_bytes(), np.random.default_rng(0)
    path, refused = tmp_path / f"a.{kind}", list[str]()
    for _ in range(250):
        damaged = bytearray(whole)
        for place in numbers.integers(0, len(whole), size=numbers.integers(1, 4)):
            damaged[place] = numbers.integers(256)
        path.write_bytes(damaged)
        try:
            assert load_picture(path).mode == "RGB"
        except RequestError as error:
            refused.append(str(error))
    assert refused
    assert not any("\n" in message for message in refused)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_turn_is_the_one_of_pillow(tmp_path: Path, orientation: int) -> None:
    image, exif = turned_picture()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        want = ImageOps.exif_transpose(stored)
    assert np.array_equal(load_picture(tmp_path / "a.png"), want)


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 200, "png", (200, 200, 200)),
        ("LA", (200, 0), "png", BACKGROUND),
        ("RGBA", (10, 20, 30, 255), "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "webp", BACKGROUND),
        ("1", 1, "png", (255, 255, 255)),
        ("P", 0, "png", (0, 0, 0)),
        ("I;16", 65535, "png", (255, 255, 255)),
        ("I;16", 32896, "png", (128, 128, 128)),
        ("CMYK", (0, 0, 0, 0), "jpg", (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object, kind: str, expected: object) -> None:
    path = tmp_path / f"a.{kind}"
    Image.new(mode, (32, 32), colour).save(path, **({"lossless": True} if kind == "webp" else {}))
    picture = load_picture(path)
    assert picture.mode == "RGB"
    assert picture.getpixel((16, 16)) == expected


sides = st.integers(16, 9000)


@given(width=sides, height=sides, area=st.sampled_from([4096, 16384, 399_360]), multiple=st.sampled_from([8, 16, 32]))
def test_fitted_size(width: int, height: int, area: int, multiple: int) -> None:
    fit = fit_size(width, height, area=area, max_aspect=2.0, size_multiple=multiple)
    assert fit.width % multiple == 0
    assert fit.height % multiple == 0
    assert 3 / 4 - 1e-9 <= fit.width * fit.height / area <= 4 / 3 + 1e-9
    assert max(fit.width / fit.height, fit.height / fit.width) <= 2.0
    left, top, right, bottom = fit.box
    # The cut has the video's aspect, lies in the picture, is centred, and leaves one pair of sides whole.
    assert math.isclose((right - left) / (bottom - top), fit.width / fit.height, rel_tol=1e-9)
    assert left >= 0
    assert top >= 0
    assert right <= width
    assert bottom <= height
    assert math.isclose(left, width - right, abs_tol=1e-6)
    assert math.isclose(top, height - bottom, abs_tol=1e-6)
    assert min(left, top) <= 1e-6
    # Turning the picture turns the size.
    turned = fit_size(height, width, area=area, max_aspect=2.0, size_multiple=multiple)
    assert {fit.width, fit.height} == {turned.width, turned.height}


# 480p and 720p as the converters set them, and a small model.
SETTINGS = {"480p": (480 * 832, 16 / 9, 32), "720p": (720 * 1280, 16 / 9, 16), "tiny": (64 * 64, 2.0, 16)}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_cut_of_any_picture_lies_inside_it(name: str) -> None:
    area, max_aspect, multiple = SETTINGS[name]
    for width, height in np.random.default_rng(0).integers(16, 9000, size=(300, 2)).tolist():
        fit = fit_size(width, height, area=area, max_aspect=max_aspect, size_multiple=multiple)
        left, top, right, bottom = fit.box
        assert 0 <= left < right <= width, (width, height)
        assert 0 <= top < bottom <= height, (width, height)


# A phone's photo, upright and turned, among all others.
@example(width=3024, height=4032, setting="480p")
@example(width=4032, height=3024, setting="480p")
@given(width=st.integers(16, 4200), height=st.integers(16, 4200), setting=st.sampled_from(sorted(SETTINGS)))
def test_pillow_takes_the_cut_of_any_picture(width: int, height: int, setting: str) -> None:
    area, max_aspect, multiple = SETTINGS[setting]
    fit = fit_size(width, height, area=area, max_aspect=max_aspect, size_multiple=multiple)
    # The nearest pixel is cheap, and Pillow checks the box before it looks at the filter.
    cut = Image.new("L", (width, height)).resize((fit.width, fit.height), Image.Resampling.NEAREST, box=fit.box)
    assert cut.size == (fit.width, fit.height)


def test_fitted_size_keeps_known_aspects() -> None:
    def size(width: int, height: int) -> tuple[int, int]:
        fit = fit_size(width, height, area=480 * 832, max_aspect=3.0, size_multiple=16)
        return fit.width, fit.height

    assert size(1000, 1000) == (624, 624) or size(1000, 1000) == (640, 640)
    wide = size(1920, 1080)
    assert abs(wide[0] / wide[1] / (16 / 9) - 1) < 0.02
    assert size(1080, 1920) == wide[::-1]
    # Beyond the largest aspect the picture is cut.
    panorama = size(10_000, 500)
    assert panorama[0] / panorama[1] <= 3.0


def test_small_models_get_a_size_too() -> None:
    fit = fit_size(640, 480, area=100, max_aspect=2.0, size_multiple=16)
    assert (fit.width, fit.height) == (16, 16)


def test_points_follow_the_cut() -> None:
    fit = fit_size(200, 100, area=64 * 64, max_aspect=1.0, size_multiple=16)
    assert (fit.width, fit.height, fit.box) == (64, 64, (50.0, 0.0, 150.0, 100.0))
    assert fit.to_video(0.5, 0.5, 200, 100) == (0.5, 0.5)
    assert fit.to_video(0.25, 0.0, 200, 100) == (0.0, 0.0)
    assert fit.to_video(0.0, 1.0, 200, 100) == (-0.5, 1.0)


def test_resize_cuts_and_scales() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 50:150] = 255
    fit = fit_size(200, 100, area=64 * 64, max_aspect=1.0, size_multiple=16)
    video = resize(Image.fromarray(pixels), fit)
    assert video.shape == (64, 64, 3)
    # Lanczos reads a little past the cut: only the outermost pixels may show it.
    assert video[:, 2:-2].min() >= 250
