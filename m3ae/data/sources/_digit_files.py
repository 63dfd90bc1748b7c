"""Files of the digit sets: images of Hoda and of MNIST's format, and recordings as cepstral coefficients.

Shapes: T frames, K coefficients, N samples.
"""

import gzip
import struct
import wave
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from m3ae.data.tables import plain_or_gzipped

# Hoda: a header, then each record has its mark, label, width, height and number of runs, and its runs.
HEADER_BYTES = 1024
SIZES = struct.Struct("<4xBBI")  # behind the date: height and width if all images have equal sizes, number of records
IMAGE_TYPE = 522  # position of a byte: 0 = black and white, 1 = grey
RECORD = struct.Struct("<BBBBH")
MARK = 0xFF

WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.01
NUM_MEL_BANDS = 26
SMALLEST_POWER = 1e-10  # of a mel band: digital silence would have no logarithm


def read_cdb(path: Path) -> list[tuple[int, NDArray[np.uint8]]]:
    """Read labels and images (H, W), ink 255, from a `.cdb` file of black-and-white images that differ in size.

    Raises:
        ValueError: The file is damaged or incomplete, or of another kind.
    """
    content = path.read_bytes()
    if len(content) < HEADER_BYTES:
        raise ValueError(f"{path} has {len(content)} bytes, expected a header of {HEADER_BYTES}: download it again")
    height, width, count = SIZES.unpack_from(content)
    if height or width or content[IMAGE_TYPE]:
        raise ValueError(
            f"{path} holds grey images or images of one size, expected black-and-white ones of different sizes, as in "
            "the published Hoda sets"
        )
    images, start = [], HEADER_BYTES
    for number in range(count):
        try:
            mark, label, width, height, num_runs = RECORD.unpack_from(content, start)
            if mark != MARK:
                raise ValueError(f"it starts with {mark}, expected {MARK}")
            runs = np.frombuffer(content, np.uint8, num_runs, start + RECORD.size)
            images.append((label, decode_runs(runs, width, height)))
        except (struct.error, ValueError) as error:
            raise ValueError(
                f"{path} is truncated or damaged at image {number + 1:,} of {count:,} ({error}): download it again"
            ) from error
        start += RECORD.size + num_runs
    return images


def decode_runs(runs: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return the image (H, W) of some run lengths; every row starts with a run of background, which may be empty."""
    starts = np.cumsum(runs, dtype=np.int64) - runs
    row = starts // max(width, 1)
    first = np.searchsorted(row, np.arange(height))  # run that starts each row
    if runs.sum() != width * height or not np.array_equal(starts[first], np.arange(height) * width):
        raise ValueError(f"its runs do not make {height} rows of {width} pixels")
    is_ink = (np.arange(len(runs)) - first[row]) % 2 == 1
    return np.repeat(np.where(is_ink, 255, 0).astype(np.uint8), runs).reshape(height, width)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array from a file in the format of MNIST, plain or gzipped.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged or holds something else than bytes.
    """
    path = plain_or_gzipped(path)
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): download it again") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < (start := 4 + 4 * content[3]):
        raise ValueError(f"{path} is no idx file of bytes: expected one of Kannada-MNIST")
    shape = np.frombuffer(content, ">u4", content[3], 4).tolist()
    if len(content) - start != prod(shape):
        raise ValueError(f"{path} has {len(content) - start:,} of {prod(shape):,} values: download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


class UnreadableRecordingError(ValueError):
    """A recording that cannot be used: a short fixed `reason`, and a `detail` that names the file."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def load_recording(path: Path, sampling_rate: int) -> NDArray[np.float64]:
    """Read a WAV file of one channel in 16 bits as amplitudes (N,) in [−1, 1).

    Raises:
        UnreadableRecordingError: The file is missing, truncated, no such WAV file, or shorter than one frame.
    """
    try:
        with wave.open(str(path)) as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            length, content = file.getnframes(), file.readframes(file.getnframes())
    except (OSError, EOFError, RuntimeError, wave.Error) as error:  # RuntimeError: a chunk that leaves the file
        raise UnreadableRecordingError("not a WAV file", f"{path.name}: {str(error) or 'ends early'}") from error
    reason, problem = "", ""
    if form != (expected := (1, 16, sampling_rate)):
        reason = "recording in another format"
        problem = f"channels, bits, samples a second are {form}, expected {expected}"
    elif len(content) != 2 * length:
        reason, problem = "recording truncated", f"{len(content) // 2} of {length} samples are there"
    elif length < WINDOW_SECONDS * sampling_rate:
        reason = "recording too short"
        problem = f"{length} samples, expected at least {WINDOW_SECONDS * 1000:.0f} ms"
    if reason:
        raise UnreadableRecordingError(reason, f"{path.name}: {problem}")
    return np.frombuffer(content, "<i2") / 2**15


def mfcc(signal: NDArray[np.float64], sampling_rate: int, num_coefficients: int) -> NDArray[np.float32]:
    """Return mel-frequency cepstral coefficients (T, K), T = 1 + ⌊(seconds − 0.025) / 0.01⌋ (Davis, Mermelstein 1980).

    Frames of 25 ms every 10 ms, without pre-emphasis, dither or padding, are weighted by a Hamming window and filled
    up with zeros to the next power of two. Their power spectrum |X|² is summed in 26 triangular bands, equally wide on
    HTK's mel scale 2595 log₁₀(1 + f / 700) from 0 to half the sampling rate. The coefficients c₀ … c_(K−1) are the
    orthonormal DCT-II of the natural logarithm of these sums, which are at least 1e-10; there is no lifter.

    Args:
        signal: Amplitudes (N,), at least one frame.
        sampling_rate: The number of samples a second.
        num_coefficients: K, at most 26.
    """
    frame_length, hop_length = (round(seconds * sampling_rate) for seconds in (WINDOW_SECONDS, HOP_SECONDS))
    fft_length = 1 << (frame_length - 1).bit_length()
    log_powers = spectrogram(
        signal,
        window_function(frame_length, "hamming", periodic=False),
        frame_length,
        hop_length,
        fft_length,
        power=2.0,
        center=False,
        mel_filters=mel_filter_bank(1 + fft_length // 2, NUM_MEL_BANDS, 0, sampling_rate / 2, sampling_rate),
        mel_floor=SMALLEST_POWER,
        log_mel="log",
    )  # (bands, T)
    return np.asarray(dct(log_powers.T, norm="ortho")[:, :num_coefficients], dtype=np.float32)


def stretch_frames(frames: NDArray[np.float32], num_frames: int) -> NDArray[np.float32]:
    """Stretch or squeeze (T, K) in time to `num_frames` frames: linear time normalisation.

    Frame k is interpolated linearly at position k (T − 1) / (num_frames − 1); first and last frame stay as they are.
    """
    positions = np.linspace(0, len(frames) - 1, num_frames)
    before = np.floor(positions).astype(int)
    after = np.minimum(before + 1, len(frames) - 1)
    share = (positions - before).astype(np.float32)[:, None]
    return np.asarray(frames[before] * (1 - share) + frames[after] * share, dtype=np.float32)
