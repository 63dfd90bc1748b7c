"""Files of the digit sets."""

import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m3ae.data.sources._digit_files import (
    UnreadableRecordingError,
    decode_runs,
    load_recording,
    mfcc,
    read_cdb,
    stretch_frames,
)
from tests.data.digit_files import cdb, write_cdb, write_wav


def images() -> list[tuple[int, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (5, 4), (4, 9), (64, 54)]
    drawn = [(label, np.where(rng.random(size) < 0.4, 255, 0).astype(np.uint8)) for label, size in enumerate(sizes)]
    return [*drawn, (7, np.zeros((3, 5), np.uint8)), (9, np.full((3, 5), 255, np.uint8))]


def test_images_of_all_sizes_are_read_back(tmp_path: Path) -> None:
    found = read_cdb(write_cdb(tmp_path / "a.cdb", images()))
    assert [label for label, _ in found] == [label for label, _ in images()]
    for (_, image), (_, expected) in zip(found, images(), strict=True):
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, expected)


def test_runs_start_with_background_in_every_row() -> None:
    runs = np.array([1, 2, 0, 3, 3, 0, 1, 1, 1], np.uint8)  # .## / ### / ... / #.#
    expected = [[0, 255, 255], [255, 255, 255], [0, 0, 0], [255, 0, 255]]
    assert decode_runs(runs, 3, 4).tolist() == expected


@pytest.mark.parametrize("runs", [[1, 2], [1, 2, 3, 1], [1, 3, 2], []])
def test_runs_that_make_no_rows_are_refused(runs: list[int]) -> None:
    with pytest.raises(ValueError, match="its runs do not make 2 rows of 3 pixels"):
        decode_runs(np.array(runs, np.uint8), 3, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "has 5 bytes, expected a header of 1024: download it again"),
        (cdb(images())[:-1], r"truncated or damaged at image 6 of 6 \(buffer is smaller.*download it again"),
        (cdb(images())[:1027], r"truncated or damaged at image 1 of 6"),
        (cdb(images()[:1]).replace(b"\xff\0\1", b"\xfe\0\1"), r"at image 1 of 1 \(it starts with 254, expected 255"),
        (cdb(images(), image_type=1), "holds grey images or images of one size, expected black-and-white ones"),
        (cdb(images(), side=32), "holds grey images or images of one size"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.cdb").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.cdb .*{message}"):
        read_cdb(tmp_path / "a.cdb")


@pytest.mark.real_data
def test_the_published_test_file(shared: Path) -> None:
    path = shared / "data" / "digits" / "farsi" / "Test 20000.cdb"
    found = read_cdb(path)
    assert np.bincount([label for label, _ in found]).tolist() == [2000] * 10
    assert max(image.shape for _, image in found)[0] == 64 and max(image.shape[1] for _, image in found) == 54
    record = path.read_bytes()[1024:]
    label, width, height, num_runs = struct.unpack_from("<xBBBH", record)
    runs, rows = iter(record[6 : 6 + num_runs]), []
    for _ in range(height):  # as the published reader does
        row: list[int] = []
        ink = False
        while len(row) < width:
            row += [255 * ink] * next(runs)
            ink = not ink
        rows.append(row)
    assert label == 0 and found[0][1].tolist() == rows


RATE = 8000


def noise(seconds: float, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE))


def defining_sums(signal: NDArray[np.float64], num_coefficients: int) -> NDArray[np.float64]:
    """Compute the coefficients from the formulas, at 8 kHz: 200 samples a frame, 80 a hop, 256 a transform."""
    starts = range(0, len(signal) - 199, 80)
    n = np.arange(200)
    window = 0.54 - 0.46 * np.cos(2 * np.pi * n / 199)
    frames = np.stack([signal[start : start + 200] for start in starts]) * window
    waves = np.exp(-2j * np.pi * np.outer(n, np.arange(129)) / 256)
    power = np.abs(frames @ waves) ** 2
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 28) / 2595) - 1)
    hertz = np.arange(129) * 8000 / 256
    bands = [np.interp(hertz, edges[b : b + 3], [0, 1, 0], left=0, right=0) for b in range(26)]
    log_power = np.log(np.maximum(power @ np.array(bands).T, 1e-10))
    k, m = np.arange(num_coefficients), np.arange(26)
    basis = np.sqrt(np.where(k == 0, 1, 2) / 26) * np.cos(np.pi * np.outer(m + 0.5, k) / 26)
    return log_power @ basis


def test_coefficients_are_those_of_the_formulas() -> None:
    signal = noise(0.3) * np.hanning(2400)
    found = mfcc(signal, RATE, 13)
    assert (found.dtype, found.shape) == (np.float32, (28, 13))
    np.testing.assert_allclose(found, defining_sums(signal, 13), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("samples", "frames"), [(200, 1), (279, 1), (280, 2), (8000, 98)])
def test_number_of_frames(samples: int, frames: int) -> None:
    assert mfcc(noise(samples / RATE), RATE, 5).shape == (frames, 5)


def test_loudness_is_in_the_first_coefficient_alone() -> None:
    soft, loud = (mfcc(factor * noise(0.2), RATE, 13) for factor in (0.1, 0.5))
    change = np.zeros(13)
    change[0] = np.sqrt(26) * 2 * np.log(5)
    np.testing.assert_allclose(loud - soft, np.tile(change, (len(loud), 1)), atol=2e-4)


def test_silence_has_the_smallest_power() -> None:
    found = mfcc(np.zeros(400), RATE, 13)
    expected = np.zeros((3, 13))
    expected[:, 0] = np.sqrt(26) * np.log(1e-10)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_frames_are_stretched_and_squeezed_linearly() -> None:
    ramp = np.stack([np.arange(7.0), 10 - 2 * np.arange(7.0)], axis=1).astype(np.float32)
    for number in (3, 7, 20):
        places = np.arange(number) * 6 / (number - 1)
        np.testing.assert_allclose(
            stretch_frames(ramp, number), np.stack([places, 10 - 2 * places], axis=1), atol=1e-5
        )
    assert stretch_frames(ramp, 20).dtype == np.float32
    np.testing.assert_array_equal(stretch_frames(ramp[:1], 4), np.tile(ramp[:1], (4, 1)))


def test_a_recording_is_read_as_amplitudes(tmp_path: Path) -> None:
    signal = np.array([-1.0, 0.0, 0.5, 32767 / 32768] * 60)
    np.testing.assert_array_equal(load_recording(write_wav(tmp_path / "a.wav", signal), RATE), signal)


def test_a_recording_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    good = write_wav(tmp_path / "good.wav", noise(0.1)).read_bytes()

    def reason(content: bytes) -> tuple[str, str]:
        (tmp_path / "bad.wav").write_bytes(content)
        with pytest.raises(UnreadableRecordingError) as error:
            load_recording(tmp_path / "bad.wav", RATE)
        return error.value.reason, error.value.detail

    assert reason(b"") == ("not a WAV file", "bad.wav: ends early")
    assert reason(b"text instead of sound") == ("not a WAV file", "bad.wav: file does not start with RIFF id")
    assert reason(good[:-100]) == ("recording truncated", "bad.wav: 750 of 800 samples are there")
    short = write_wav(tmp_path / "short.wav", noise(0.024)).read_bytes()
    assert reason(short) == ("recording too short", "bad.wav: 192 samples, expected at least 25 ms")
    stereo = write_wav(tmp_path / "stereo.wav", noise(0.1), rate=16000, channels=2).read_bytes()
    assert reason(stereo) == (
        "recording in another format",
        "bad.wav: channels, bits, samples a second are (2, 16, 16000), expected (1, 16, 8000)",
    )
    with pytest.raises(UnreadableRecordingError, match=r"not a WAV file: none.wav"):
        load_recording(tmp_path / "none.wav", RATE)


@pytest.mark.real_data
def test_a_real_recording(shared: Path) -> None:
    signal = load_recording(shared / "data" / "digits" / "spoken" / "3_theo_7.wav", RATE)
    np.testing.assert_allclose(mfcc(signal, RATE, 13), defining_sums(signal, 13), rtol=0, atol=1e-3)
