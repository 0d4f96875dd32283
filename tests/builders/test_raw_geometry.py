"""What raw files tell of geometry: slice numbers of the scanner, position, directions; and pixels that users state."""

from pathlib import Path

import numpy as np
import pytest

from msm.builders.raw import RawVolume, read_raw
from msm.builders.raw.volume import with_pixels
from msm.builders.scans.scan import Options, prepare_scan
from tests.builders.test_raw_readers import header, image_lines, oversampled, random_kspace, write_ismrmrd
from tests.helpers.checks import message_of

AXES = {"read_dir": (0.0, 0.6, 0.8), "phase_dir": (1.0, 0.0, 0.0), "slice_dir": (0.0, 0.8, -0.6)}


def lines_of(numbers: tuple[int, ...], **fields) -> list:
    wide, _ = oversampled(slices=len(numbers))
    found = []
    for place, number in enumerate(numbers):
        for values, more, counters in image_lines(wide[place : place + 1], range(10), **fields):
            found.append((values, {**more, "position": (1.0, 2.0, 5.0 * number)}, {**counters, "slice": number}))
    return found


def test_ismrmrd_tells_slice_numbers_position_and_directions(tmp_path):
    volume = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines_of((3, 7), **AXES), header(24, 10)))
    assert volume.header["slices"] == [3, 7]
    np.testing.assert_allclose(volume.header["position_mm"], [(1, 2, 15), (1, 2, 35)])
    np.testing.assert_allclose(volume.header["directions"], list(AXES.values()), atol=1e-6)
    scan = prepare_scan(volume, Options(size=0, maps="lowres", acceleration=1, acs_lines=0, slices="1:", centre="0,0"))
    assert scan.facts["slices"] == [7] and scan.facts["places"] == [1] and scan.facts["shape"] == [12, 10]


def test_directions_that_are_empty_or_none_are_not_told(tmp_path):
    for fields in ({}, {**AXES, "phase_dir": (0.0, 0.6, 0.8)}):
        volume = read_raw(write_ismrmrd(tmp_path / "scan.h5", lines_of((0, 1), **fields), header(24, 10)))
        assert not {"slices", "position_mm", "directions"} & set(volume.header)


@pytest.mark.parametrize(
    ("stated", "fov"),
    [
        ({"pixel_mm": "0.5"}, (8.0, 6.0, 4)),
        ({"pixel_mm": "0.5,2,3"}, (8.0, 24.0, 3.0)),
        ({"fov_mm": "230,180"}, (230.0, 180.0, 4)),
        ({}, (16, 16, 4)),
    ],
)
def test_pixels_that_the_user_states_go_first(stated, fov):
    raw = RawVolume(random_kspace(1, 2, 16, 12), np.ones((1, 1, 12), bool), header={"fov_mm": (16, 16, 4)})
    assert with_pixels(Path("a.npy"), raw, **stated).header["fov_mm"] == fov


@pytest.mark.parametrize("text", ["a", "1,2,3,4", "0", "-1,2", ""])
def test_pixels_that_are_none_are_refused(text):
    raw = RawVolume(random_kspace(1, 2, 16, 12), np.ones((1, 1, 12), bool))
    given = {"pixel_mm": text} if text else {"pixel_mm": "1", "fov_mm": "1"}
    assert "mm" in message_of(lambda: with_pixels(Path("a.npy"), raw, **given))


def test_without_a_field_of_view_pixels_of_the_file_are_square():
    raw = RawVolume(random_kspace(1, 2, 16, 12), np.ones((1, 1, 12), bool))
    scan = prepare_scan(raw, Options(size=12, maps="lowres", acceleration=1, acs_lines=0, centre="0,0"))
    assert scan.facts["shape"] == [12, 12] and scan.facts["aspect"] == pytest.approx(16 / 12)
