"""Recordings of single words as mel-frequency cepstral coefficients (Davis and Mermelstein 1980) of fixed size.

Shapes: T frames, K coefficients, N samples.
"""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

WINDOW_SECONDS = 0.025
HOP_SECONDS = 0.01
NUM_MEL_BANDS = 26
SMALLEST_POWER = 1e-10  # of a mel band, so that digital silence has a logarithm


class UnreadableRecordingError(ValueError):
    """A recording that cannot be used.

    Attributes:
        reason: a short fixed phrase, so that equal reasons can be counted.
        detail: which file, and what is wrong with it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def load_recording(path: Path, sampling_rate: int) -> NDArray[np.float64]:
    """Read a WAV file of one channel in 16 bits as amplitudes (N,) in [−1, 1).

    Raises:
        UnreadableRecordingError: the file is missing, truncated, no such WAV file, or shorter than one frame.
    """
    try:
        with wave.open(str(path)) as file:
            found = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            announced, content = file.getnframes(), file.readframes(file.getnframes())
    except (OSError, EOFError, RuntimeError, wave.Error) as error:  # RuntimeError: a chunk that leaves the file
        raise UnreadableRecordingError("not a WAV file", f"{path.name}: {str(error) or 'ends early'}") from error
    if found != (expected := (1, 16, sampling_rate)):
        raise UnreadableRecordingError(
            "recording in another format",
            f"{path.name}: channels, bits, samples a second are {found}, expected {expected}",
        )
    if len(content) != 2 * announced:
        raise UnreadableRecordingError(
            "recording truncated", f"{path.name}: {len(content) // 2} of {announced} samples are there"
        )
    if announced < WINDOW_SECONDS * sampling_rate:
        raise UnreadableRecordingError(
            "recording too short",
            f"{path.name}: {announced} samples, expected at least {WINDOW_SECONDS * 1000:.0f} ms",
        )
    return np.frombuffer(content, "<i2") / 2**15


def mfcc(signal: NDArray[np.float64], sampling_rate: int, num_coefficients: int) -> NDArray[np.float32]:
    """Return mel-frequency cepstral coefficients (T, K), T = 1 + ⌊(seconds − 0.025) / 0.01⌋.

    Frames of 25 ms every 10 ms, without pre-emphasis, dither or padding, are weighted by a Hamming window and filled
    up with zeros to the next power of two. Their power spectrum |X|² is summed in 26 triangular bands, equally wide on
    HTK's mel scale 2595 log₁₀(1 + f / 700) from 0 to half the sampling rate. The coefficients c₀ … c_(K−1) are the
    orthonormal DCT-II of the natural logarithm of these sums, which are at least 1e-10; there is no lifter.

    Args:
        signal: amplitudes (N,), at least one frame.
        sampling_rate: samples a second.
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
    coefficients = dct(log_powers.T, norm="ortho")[:, :num_coefficients]
    return np.asarray(coefficients, dtype=np.float32)


def stretch_frames(frames: NDArray[np.float32], num_frames: int) -> NDArray[np.float32]:
    """Stretch or squeeze (T, K) in time to `num_frames` frames: linear time normalisation.

    Frame k is interpolated linearly at place k (T − 1) / (num_frames − 1), so that first and last frame are kept.
    """
    places = np.linspace(0, len(frames) - 1, num_frames)
    before = np.floor(places).astype(int)
    after = np.minimum(before + 1, len(frames) - 1)
    share = (places - before).astype(np.float32)[:, None]
    return np.asarray(frames[before] * (1 - share) + frames[after] * share, dtype=np.float32)
