"""Pictures of a folder: which files are found, how they are divided, decoded, cropped and shrunk."""

import hashlib
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from msm.builders.pictures.folder import Division, Folder, divide, example_ids, find_pictures, read_picture
from msm.infra.errors import UserError
from tests.helpers.checks import message_of


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(*shape: int, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype))


# --- decoding


def test_a_picture_of_the_right_size_is_kept_exactly():
    image = picture(16, 16, 3)
    found = read_picture(encoded(image), 16)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(image))


@pytest.mark.parametrize(("height", "width"), [(16, 27), (28, 16)])
def test_the_central_square_is_taken(height, width):
    image = picture(height, width, 3)
    top, left = (height - 16) // 2, (width - 16) // 2
    np.testing.assert_array_equal(read_picture(encoded(image), 16), np.asarray(image)[top : top + 16, left : left + 16])


def test_a_size_of_rows_and_columns_takes_the_central_part_of_that_aspect():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 60, 3), np.uint8))
    np.testing.assert_array_equal(read_picture(encoded(image), (24, 40)), np.asarray(image)[:, 10:50])
    assert read_picture(encoded(image), (12, 20)).shape == (12, 20, 3)
    assert "is 60 x 24 pixels, less than 16x64" in message_of(read_picture, encoded(image), (16, 64))


def test_shrinking_does_not_alias():
    """Stripes finer than the small image's pixels become grey; a picture taken every fourth pixel would be black."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, 1::2] = 254
    small = read_picture(encoded(Image.fromarray(stripes)), 16)
    assert np.all(np.abs(small[:, 2:-2].astype(int) - 127) <= 2)
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(np.full((64, 64, 3), 77, np.uint8))), 16), 77)


def test_grey_and_palette_become_three_channels():
    grey = picture(16, 16)
    found = read_picture(encoded(grey), 16)
    np.testing.assert_array_equal(found, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    palette = picture(16, 16, 3).quantize(8)
    np.testing.assert_array_equal(read_picture(encoded(palette), 16), np.asarray(palette.convert("RGB")))
    jpeg = encoded(grey, "JPEG", quality=90)
    with Image.open(io.BytesIO(jpeg)) as image:
        np.testing.assert_array_equal(read_picture(jpeg, 16)[..., 1], np.asarray(image))


def test_opaque_alpha_is_dropped_and_transparency_refused():
    pixels = np.asarray(picture(16, 16, 4)).copy()
    pixels[..., 3] = 255
    np.testing.assert_array_equal(read_picture(encoded(Image.fromarray(pixels)), 16), pixels[..., :3])
    pixels[5, 5, 3] = 254
    assert "has transparent pixels" in message_of(read_picture, encoded(Image.fromarray(pixels)), 16)
    palette = encoded(picture(16, 16, 3).quantize(8), transparency=0)
    assert "has transparent pixels" in message_of(read_picture, palette, 16)


def test_pictures_are_turned_as_exif_says():
    image = picture(16, 16, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    found = read_picture(encoded(image, exif=exif), 16)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


def test_other_modes_and_small_pictures_are_refused():
    assert "mode I;16: convert it" in message_of(read_picture, encoded(picture(16, 16, dtype=np.uint16)), 16)
    assert "mode CMYK" in message_of(read_picture, encoded(picture(16, 16, 4).convert("CMYK"), "JPEG"), 16)
    assert "is 20 x 15 pixels, less than 16" in message_of(read_picture, encoded(picture(15, 20, 3)), 16)
    assert "neither PNG nor JPEG" in message_of(read_picture, encoded(picture(16, 16, 3), "BMP"), 16)


# --- finding and dividing


def test_files_are_found_recursively_and_sorted(tmp_path):
    for name in ("b.PNG", "a.jpeg", "deep/er/c.jpg", ".hidden/d.png", "deep/.e.png", "f.txt", "g.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert find_pictures(tmp_path) == ["a.jpeg", "b.PNG", "deep/er/c.jpg"]
    assert "no .png, .jpg, .jpeg file" in message_of(find_pictures, tmp_path / ".hidden" / "none")


def names(count: int) -> list[str]:
    return [f"{i:05d}.png" for i in range(count)]


def test_seventy_thousand_files_are_divided_as_ffhq():
    everything = names(70_000)
    splits = divide(everything, Division())
    assert splits["test"] == everything[:100] and splits["train"] == everything[1000:]
    assert splits["validation"] == everything[100:200]
    assert len(divide(everything, Division(counts={"test": 5}))["test"]) == 5


def test_other_folders_are_divided_by_fractions_and_counts():
    splits = divide(names(400), Division())
    assert {split: len(chosen) for split, chosen in splits.items()} == {"train": 340, "validation": 20, "test": 40}
    assert sorted(name for chosen in splits.values() for name in chosen) == names(400)
    assert splits == divide(names(400), Division()) and all(chosen == sorted(chosen) for chosen in splits.values())
    assert splits["test"] != names(40)  # not the first ones: folders are often sorted by what they show
    counted = divide(names(400), Division(counts={"test": 7, "validation": 0}))
    assert {split: len(chosen) for split, chosen in counted.items()} == {"train": 393, "validation": 0, "test": 7}
    assert len(divide(names(50_000), Division())["test"]) == 1000
    assert [len(chosen) for chosen in divide(names(3), Division()).values()] == [1, 1, 1]
    for count in (1, 2):
        assert "no file is left for the train split" in message_of(
            divide, names(count), Division(counts={"test": count})
        )
    assert "--test_count is 9, but only 4 files" in message_of(divide, names(4), Division(counts={"test": 9}))


def test_a_new_file_leaves_the_others_in_their_split():
    division = Division(counts={"test": 10, "validation": 5})
    before, after = divide(names(100), division), divide([*names(100), "x.png"], division)
    assert len(set(before["test"]) & set(after["test"])) >= 9


def test_lists_decide(tmp_path):
    everything = names(10)
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("\n".join(everything[4:9]) + "\n\n")
    test.write_text("00003.png\n00001.png\n")
    both = divide(everything, Division({"train": train, "test": test}))
    assert both["train"] == everything[4:9] and both["test"] == ["00001.png", "00003.png"]
    assert len(both["validation"]) == 1 and set(both["validation"]) < {"00000.png", "00002.png", "00009.png"}
    rest = divide(everything, Division({"test": test}, {"validation": 0}))
    assert rest["train"] == [name for name in everything if name not in both["test"]] and not rest["validation"]
    whole = divide(everything[1:2] + everything[3:9], Division({"train": train, "test": test}))
    assert whole["validation"] == []


def test_wrong_lists_are_refused(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("00001.png\n../00002.png\nelsewhere.png\n")
    message = message_of(divide, names(5), Division({"test": listed}))
    assert "names '../00002.png' and 1 more, which the folder lacks" in message
    listed.write_text("00001.png\n")
    overlap = Division({"test": listed, "train": listed})
    assert "'00001.png' more than once" in message_of(divide, names(5), overlap)
    assert "cannot be read" in message_of(divide, names(5), Division({"test": tmp_path / "none"}))


# --- reading all


def test_bad_files_are_told_and_the_rest_is_done(pictures, tmp_path):
    folder, outside = tmp_path / "mixed", tmp_path / "secret.png"
    shutil.copytree(pictures, folder)
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "cut.png").write_bytes((folder / "02.png").read_bytes()[:150])
    (folder / "small.png").write_bytes(encoded(picture(8, 8, 3)))
    outside.write_bytes(encoded(picture(40, 40, 3)))
    (folder / "link.png").symlink_to(outside)
    (folder / ".real.png").write_bytes(encoded(picture(41, 41, 3)))
    (folder / "inside.png").symlink_to(folder / ".real.png")
    found = Folder(folder, Division(counts={"test": 2, "validation": 2}))
    splits = found.read(32, tmp_path)
    assert set(found.problems) == {"broken.png", "cut.png", "small.png", "link.png"}
    assert "leads out of the folder" in found.problems["link.png"] and str(tmp_path) not in str(found.problems)
    read = {p.name: p for split in splits.values() for p in (split[i] for i in range(len(split)))}
    assert set(read) == set(found.names) - set(found.problems) and len(read) == 12
    np.testing.assert_array_equal(read["inside.png"].pixels, read_picture((folder / ".real.png").read_bytes(), 32))
    assert {name: p.example_id for name, p in read.items()}.items() < example_ids(found.names).items()
    assert found.describe()["left_out"] == found.problems


def test_pictures_of_one_colour_are_left_out(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "some")
    Image.new("RGB", (40, 40), (9, 9, 9)).save(tmp_path / "some" / "blank.png")
    found = Folder(tmp_path / "some", Division(counts={"test": 2, "validation": 2}))
    splits = found.read(32, tmp_path)
    assert found.problems == {"blank.png": "has one colour throughout: no content"}
    assert sum(map(len, splits.values())) == 11


def test_the_same_picture_under_two_names_is_taken_once(pictures, tmp_path):
    """Copies, and other files of the same pixels, whichever splits they are in: the first path stays."""
    folder, last = tmp_path / "twice", tmp_path / "last.txt"
    shutil.copytree(pictures, folder)
    for name in ("01.png", "zz.png"):
        shutil.copy(folder / "02.png", folder / name)
    with Image.open(folder / "04.png") as image:
        image.save(folder / "other.png", compress_level=0)
    assert (folder / "other.png").read_bytes() != (folder / "04.png").read_bytes()
    last.write_text("zz.png\nother.png\n00.jpg\n")
    found = Folder(folder, Division({"test": last}))
    splits = found.read(32, tmp_path)
    assert found.problems == {
        "02.png": "same picture as 01.png",
        "zz.png": "same picture as 01.png",
        "other.png": "same picture as 04.png",
    }
    assert [p.name for p in (splits["test"][i] for i in range(len(splits["test"])))] == ["00.jpg"]
    assert sum(map(len, splits.values())) == 11


def test_ids_belong_to_the_path_alone():
    many = names(2000)
    ids = example_ids(many)
    assert len(set(ids.values())) == 2000 and all(0 <= number < 2**31 for number in ids.values())
    assert ids["00007.png"] == int(hashlib.sha256(b"00007.png").hexdigest()[:8], 16) // 2
    after = example_ids(["0.png", *many[5:], "new/00007.png"])
    assert all(after[name] == ids[name] for name in many[5:])


def test_paths_that_share_an_id_are_told_apart_whatever_their_order(monkeypatch):
    """Hashes of two words: the second path with the first word 0 takes its second; one that finds none is told."""
    words = {b"a": [0, 2], b"b": [0, 4], b"c": [0, 0], b"d": [0, 0]}

    class Narrow:
        def __init__(self, data: bytes):
            self._words = words[data]

        def digest(self) -> bytes:
            return b"".join(word.to_bytes(4, "big") for word in self._words)

    monkeypatch.setattr(hashlib, "sha256", Narrow)
    assert example_ids(["a", "b"]) == example_ids(["b", "a"]) == {"a": 0, "b": 2}
    assert "'d' finds no free id" in message_of(example_ids, ["c", "d"])


def test_a_split_without_any_good_file_is_an_error(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match="no file of the train split can be used"):
        Folder(tmp_path, Division()).read(32, tmp_path)
    assert "is not a folder" in message_of(Folder, tmp_path / "none", Division())
