"""DICOM files of many kinds, each generated here."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, FileMetaDataset, Sequence, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    MPEG4HP41,
    UID,
    ComputedRadiographyImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    generate_uid,
)

from m3ae.images.dicom import load_dicom
from m3ae.images.files import UnreadableImageError, load_image

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def make_dataset(pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, bits: int = 0, **elements: Any) -> Dataset:
    """A radiograph of the given stored values; `elements` are added to its header or replace parts of it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = (pixels.byteswap() if syntax == ExplicitVRBigEndian else pixels).tobytes()
    dataset["PixelData"].VR = "OW" if pixels.itemsize == 2 else "OB"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def write(path: Path, pixels: np.ndarray, *args: Any, **elements: Any) -> Path:
    make_dataset(pixels, *args, **elements).save_as(path, enforce_file_format=True)
    return path


def grey(path: Path) -> np.ndarray:
    image = load_dicom(path)
    assert image.mode == "L"
    return np.asarray(image)


def make_lut(entries: list[int], first: int, bits: int) -> Sequence:
    lut = Dataset()
    lut.LUTDescriptor = [len(entries), first, bits]
    lut.LUTData = np.asarray(entries, np.uint16).tobytes()
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "OW"
    return Sequence([lut])


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda syntax: syntax.keyword,
)
def test_12_bits_are_stretched_from_their_own_range_in_every_plain_syntax(tmp_path: Path, syntax: str) -> None:
    expected = (RAMP * (255 / 4095)).round()
    np.testing.assert_array_equal(grey(write(tmp_path / "a.dcm", RAMP, syntax, 12)), expected)


def test_monochrome1_is_monochrome2_inverted(tmp_path: Path) -> None:
    window = {"WindowCenter": "1500", "WindowWidth": "900"}
    light = grey(write(tmp_path / "2.dcm", RAMP, bits=12, **window))
    dark = grey(write(tmp_path / "1.dcm", RAMP, bits=12, PhotometricInterpretation="MONOCHROME1", **window))
    np.testing.assert_array_equal(dark, 255 - light)
    assert (light[0, 0], light[-1, -1]) == (0, 255)


@pytest.mark.parametrize(
    ("function", "expected"),
    [("LINEAR", [0, 64, 128, 192]), ("LINEAR_EXACT", [0, 64, 128, 191]), ("SIGMOID", [30, 69, 128, 186])],
)
def test_the_first_window_decides(tmp_path: Path, function: str, expected: list[int]) -> None:
    pixels = np.array([[0, 50, 100, 150]], np.uint16)
    window = {"WindowCenter": ["100", "7"], "WindowWidth": ["200", "9"], "VOILUTFunction": function}
    np.testing.assert_array_equal(grey(write(tmp_path / "a.dcm", pixels, **window))[0], expected)


def test_a_window_that_shows_nothing_gives_way_to_the_range(tmp_path: Path) -> None:
    for number, (center, width) in enumerate([("9000", "10"), ("0", "0"), ("2000", "1"), (None, None)]):
        path = write(tmp_path / f"{number}.dcm", RAMP, bits=12, WindowCenter=center, WindowWidth=width)
        np.testing.assert_array_equal(grey(path), (RAMP * (255 / 4095)).round())


def test_the_window_applies_to_rescaled_signed_values(tmp_path: Path) -> None:
    pixels = np.array([[-2048, -1000, 0, 2047]], np.int16)
    elements = {"RescaleSlope": "2", "RescaleIntercept": "-100", "WindowCenter": "-100", "WindowWidth": "4000"}
    path = write(tmp_path / "a.dcm", pixels, bits=12, **elements, VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_array_equal(grey(path)[0], [0, 0, 128, 255])
    plain = write(tmp_path / "b.dcm", pixels, bits=12)
    np.testing.assert_array_equal(grey(plain)[0], ((pixels[0] + 2048) * (255 / 4095)).round())


@pytest.mark.parametrize(("values", "expected"), [([0, 10, 200], [0, 10, 200]), ([7, 7, 7], [7, 7, 7])])
def test_8_bit_values_stay_as_they_are(tmp_path: Path, values: list[int], expected: list[int]) -> None:
    np.testing.assert_array_equal(grey(write(tmp_path / "a.dcm", np.array([values], np.uint8)))[0], expected)


def test_float_pixels(tmp_path: Path) -> None:
    dataset = make_dataset(np.zeros((1, 4), np.uint32), FloatPixelData=np.float32([-1.5, 0, 1.5, np.nan]).tobytes())
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(grey(tmp_path / "a.dcm")[0], [0, 128, 255, 0])


def test_lookup_tables(tmp_path: Path) -> None:
    pixels = np.array([[0, 100, 101, 102, 4095]], np.uint16)
    voi = write(tmp_path / "voi.dcm", pixels, bits=12, VOILUTSequence=make_lut([0, 128, 255], first=100, bits=8))
    np.testing.assert_array_equal(grey(voi)[0], [0, 0, 128, 255, 255])
    modality = make_lut([0, 1000, 500], first=100, bits=16)
    path = write(tmp_path / "modality.dcm", pixels, bits=12, ModalityLUTSequence=modality)
    np.testing.assert_array_equal(grey(path)[0], [0, 0, 255, 128, 128])


def test_a_lookup_table_that_states_too_few_bits(tmp_path: Path) -> None:
    pixels = np.array([[0, 1, 2]], np.uint16)
    path = write(tmp_path / "a.dcm", pixels, VOILUTSequence=make_lut([0, 2048, 4095], first=0, bits=8))
    np.testing.assert_array_equal(grey(path)[0], [0, 128, 255])


PADDED = np.concatenate([np.full((8, 64), 65535, np.uint16), RAMP[8:]])  # the ramp spans 512 to 4095
SHOWN = ((RAMP[8:] - 512.0) * (255 / 3583)).round()


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("padding", "bits", "elements"),
    [
        (65535, 16, {"PixelPaddingValue": 65535}),
        (65535, 12, {"PixelPaddingValue": 65535}),  # beyond the bits stored
        (0, 12, {"PixelPaddingValue": 0}),
        (100, 12, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 200}),
        (65000, 16, {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 64000}),
    ],
)
def test_padding_is_black_and_no_part_of_the_range(
    tmp_path: Path, photometric: str, padding: int, bits: int, elements: dict[str, int]
) -> None:
    pixels = np.where(PADDED == 65535, np.uint16(padding), PADDED)
    found = grey(write(tmp_path / "a.dcm", pixels, bits=bits, PhotometricInterpretation=photometric, **elements))
    np.testing.assert_array_equal(found[8:], SHOWN if photometric == "MONOCHROME2" else 255 - SHOWN)
    assert not found[:8].any()


@pytest.mark.parametrize(("stated", "vr"), [(-2000, "SS"), (63536, "US")])
def test_padding_of_signed_values(tmp_path: Path, stated: int, vr: str) -> None:
    pixels = PADDED.astype(np.int16) - 1024
    pixels[:8] = -2000
    window = {
        "RescaleIntercept": "-500",
        "WindowCenter": "500",
        "WindowWidth": "3000",
        "VOILUTFunction": "LINEAR_EXACT",
    }
    dataset = make_dataset(pixels, PhotometricInterpretation="MONOCHROME1", **window)
    dataset.add_new("PixelPaddingValue", vr, stated)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = grey(tmp_path / "a.dcm")
    assert not found[:8].any()
    expected = 255 * (1 - (pixels[8:] - 500.0 + 1000) / 3000).clip(0, 1)
    np.testing.assert_allclose(found[8:], expected, atol=0.5)


def test_nothing_but_padding(tmp_path: Path) -> None:
    assert not grey(write(tmp_path / "a.dcm", RAMP * 0 + 7, PixelPaddingValue=7)).any()


def test_a_stray_value_does_not_change_the_others(tmp_path: Path) -> None:
    pixels = RAMP.copy()
    pixels[0, 0] = 65535
    found = grey(write(tmp_path / "a.dcm", pixels))
    np.testing.assert_array_equal(found.ravel()[1:], ((RAMP.ravel()[1:] - 1.0) * (255 / 4094)).round())
    assert found[0, 0] == 255


def test_a_slope_of_zero_or_nothing_is_none(tmp_path: Path) -> None:
    for slope in ("0", "", "1"):
        path = write(tmp_path / "a.dcm", RAMP, bits=12, RescaleSlope=slope, RescaleIntercept="-1024")
        np.testing.assert_array_equal(grey(path), (RAMP * (255 / 4095)).round())


def test_a_multi_frame_file_says_how_its_frames_are_shown(tmp_path: Path) -> None:
    window, rescale = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth, window.VOILUTFunction = "1000", "2000", "LINEAR_EXACT"
    rescale.RescaleSlope, rescale.RescaleIntercept = "2", "0"
    shared_groups, frame = Dataset(), Dataset()
    shared_groups.PixelValueTransformationSequence = Sequence([rescale])
    frame.FrameVOILUTSequence = Sequence([window])
    path = write(
        tmp_path / "a.dcm",
        RAMP,
        bits=12,
        SharedFunctionalGroupsSequence=Sequence([shared_groups]),
        PerFrameFunctionalGroupsSequence=Sequence([frame]),
    )
    np.testing.assert_allclose(grey(path), RAMP.clip(0, 1000) * 0.255, atol=0.501)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_headers_of_old_archives(tmp_path: Path, syntax: str) -> None:
    dataset = make_dataset(RAMP, syntax, 12)
    dataset.save_as(tmp_path / "whole.dcm", enforce_file_format=True)
    expected = grey(tmp_path / "whole.dcm")
    content = (tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "no_preamble").write_bytes(content[132:])
    length = 12 + int.from_bytes(content[140:144], "little")
    (tmp_path / "no_meta").write_bytes(content[132 + length :])
    for name in ("no_preamble", "no_meta"):
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / name)), expected)


def test_elements_with_one_usual_value_may_be_missing(tmp_path: Path) -> None:
    for keyword in ("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit", "PixelRepresentation"):
        dataset = make_dataset(RAMP * 16)
        delattr(dataset, keyword)
        dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), (RAMP * (255 / 4095)).round())
    dataset = make_dataset(np.full((2, 4, 3), 200, np.uint8))
    del dataset.PlanarConfiguration
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert load_dicom(tmp_path / "a.dcm").getpixel((3, 1)) == (200, 200, 200)


def test_without_a_transfer_syntax_plain_pixels_are_read_and_others_refused(tmp_path: Path) -> None:
    dataset = make_dataset(RAMP, bits=12)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = grey(tmp_path / "a.dcm")
    remove_syntax(tmp_path / "a.dcm")
    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), expected)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    remove_syntax(tmp_path / "a.dcm")
    with pytest.raises(UnreadableImageError, match=r"a\.dcm: TransferSyntaxUID \(0002,0010\) is missing, and the pix"):
        load_dicom(tmp_path / "a.dcm")


def remove_syntax(path: Path) -> None:
    content = path.read_bytes()
    start = content.index(b"\x02\x00\x10\x00UI")
    length = 8 + int.from_bytes(content[start + 6 : start + 8], "little")
    group = int.from_bytes(content[140:144], "little") - length
    path.write_bytes(content[:140] + group.to_bytes(4, "little") + content[144:start] + content[start + length :])


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    dataset = make_dataset(RAMP.astype(np.uint8), NumberOfFrames=3)
    dataset.PixelData += bytes(2 * 64 * 64)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), RAMP.astype(np.uint8))


def test_colour(tmp_path: Path) -> None:
    red = np.zeros((2, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    assert load_dicom(write(tmp_path / "rgb.dcm", red)).getpixel((3, 1)) == (255, 0, 0)
    ybr = np.zeros((2, 4, 3), np.uint8) + np.array([76, 85, 255], np.uint8)
    path = write(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(load_dicom(path).getpixel((3, 1)), (255, 0, 0), atol=2)
    palette: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in (("Red", [0, 0xFFFF]), ("Green", [0x8000, 0]), ("Blue", [0, 0])):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = np.asarray(entries, np.uint16).tobytes()
    image = load_dicom(write(tmp_path / "palette.dcm", np.array([[0, 1]], np.uint8), **palette))
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == ((0, 128, 0), (255, 0, 0))


def test_rle_and_jpeg2000_equal_the_plain_file(tmp_path: Path) -> None:
    expected = grey(write(tmp_path / "plain.dcm", RAMP, bits=12))
    for syntax in (RLELossless, JPEG2000Lossless):
        dataset = make_dataset(RAMP, bits=12)
        if syntax == RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            encapsulate_image(dataset, Image.fromarray(RAMP), syntax, "JPEG2000")
        dataset.save_as(tmp_path / "compressed.dcm", enforce_file_format=True)
        np.testing.assert_array_equal(grey(tmp_path / "compressed.dcm"), expected)


def encapsulate_image(dataset: Dataset, image: Image.Image, syntax: str, codec: str) -> None:
    buffer = io.BytesIO()
    image.save(buffer, codec)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"


def hide_pylibjpeg(syntax: UID, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = get_decoder(syntax)
    needs = ("pylibjpeg>=2.0", "pylibjpeg-openjpeg>=2.0" if "2000" in syntax.name else "pylibjpeg-libjpeg>=2.1")
    others = {name: function for name, function in decoder._available.items() if name not in ("pylibjpeg", "pyjpegls")}
    monkeypatch.setattr(decoder, "_available", others)
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": needs, "other": ("other>=1.0",)})


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "mode", "mean", "deviation", "needs"),
    [
        ("NIH_chestxray14_DX", "L", 180.1, 47.9, ""),
        ("SC_ybr_full_422_uncompressed", "RGB", 127.7, 102.4, ""),
        ("RG1_J2KI", "L", 192.2, 38.8, ""),  # decoded by GDCM and Pillow, too, to the same values
        ("HTJ2K_08_RGB", "RGB", 127.1, 59.8, "pylibjpeg-openjpeg"),
        ("JLSL_08_07_0_1F", "L", 94.8, 47.0, "pylibjpeg-libjpeg"),
        ("JPGExtended", "L", 13.9, 20.9, "pylibjpeg-libjpeg"),
    ],
)
def test_real_files_are_read_or_need_a_named_package(
    shared: Path, name: str, mode: str, mean: float, deviation: float, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared / "data" / "dicom" / f"{name}.dcm"
    image = load_dicom(path)
    values = np.asarray(image, dtype=float)
    assert (image.mode, round(values.mean(), 1), round(values.std(), 1)) == (mode, mean, deviation)
    np.testing.assert_array_equal(load_image(path.read_bytes()), image)
    if needs:
        hide_pylibjpeg(dcmread(path).file_meta.TransferSyntaxUID, monkeypatch)
        with pytest.raises(UnreadableImageError, match=rf"^image decoder missing: {name}\.dcm: .* {needs}>="):
            load_dicom(path)


def test_what_no_installed_package_decodes_is_refused_with_the_name_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(RAMP.astype(np.uint8))
    encapsulate_image(dataset, Image.fromarray(RAMP.astype(np.uint8)), JPEGBaseline8Bit, "JPEG")
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert load_dicom(tmp_path / "a.dcm").size == (64, 64)
    hide_pylibjpeg(JPEGBaseline8Bit, monkeypatch)
    assert load_dicom(tmp_path / "a.dcm").size == (64, 64)  # Pillow can do it
    monkeypatch.setattr(get_decoder(JPEGBaseline8Bit), "_available", {})
    needs = r"needs pylibjpeg>=2\.0 and pylibjpeg-libjpeg>=2\.1: pip install 'm3ae\[dicom-gpl\]'$"
    with pytest.raises(UnreadableImageError, match=rf"^image decoder missing: a\.dcm: JPEG Baseline.* {needs}"):
        load_dicom(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = MPEG4HP41
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableImageError, match=r"^image decoder missing: a\.dcm: MPEG-4 .* is not supported"):
        load_dicom(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("elements", "reason", "detail"),
    [
        ({"Rows": 30_000, "Columns": 30_000}, "image too large", "1 frames of 30000x30000 pixels"),
        ({"NumberOfFrames": 100_000}, "image too large", "100000 frames of 64x64 pixels"),
        ({"Rows": 65_535, "Columns": 1}, "image too large", "1 frames of 1x65535 pixels"),
        ({"Rows": 128}, "image truncated or corrupt", "bytes"),
        ({"PhotometricInterpretation": "HSV"}, "image truncated or corrupt", "HSV"),
        ({"PixelData": None}, "image truncated or corrupt", "no pixel data"),
        ({"Rows": None}, "not an image", "without Rows and Columns"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(
    tmp_path: Path, elements: dict[str, Any], reason: str, detail: str
) -> None:
    dataset = make_dataset(RAMP, bits=12, **elements)
    for keyword in [keyword for keyword, value in elements.items() if value is None]:
        delattr(dataset, keyword)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableImageError, match=detail) as caught:
        load_dicom(tmp_path / "a.dcm")
    assert caught.value.reason == reason


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless])
def test_a_truncated_file_is_refused(tmp_path: Path, syntax: str, share: float) -> None:
    dataset = make_dataset(np.tile(RAMP, (4, 4)), bits=12)
    if syntax == RLELossless:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(tmp_path / "cut.dcm", enforce_file_format=True)
    content = (tmp_path / "cut.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableImageError, match=r"^(image truncated or corrupt|not an image): cut\.dcm: "):
        load_dicom(tmp_path / "cut.dcm")


def test_what_is_no_dicom_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no image at all, only text")
    with pytest.raises(UnreadableImageError, match=r"^not an image: text\.dcm: not a DICOM file$"):
        load_dicom(tmp_path / "text.dcm")
    with pytest.raises(UnreadableImageError, match=r"^image missing: absent\.dcm$"):
        load_dicom(tmp_path / "absent.dcm")


def test_deviations_from_the_standard_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make_dataset(RAMP, bits=12)
    dataset.PixelData += bytes(64)
    dataset.save_as(tmp_path / "long.dcm", enforce_file_format=True)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(grey(tmp_path / "long.dcm"), (RAMP * (255 / 4095)).round())
    assert caplog.records == []


def test_a_deflated_file_is_inflated_only_if_it_may_hold_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((2000, 2000), np.uint8), DeflatedExplicitVRLittleEndian)
    assert load_dicom(path).size == (2000, 2000)
    monkeypatch.setattr("m3ae.images.dicom.dcmread", None)  # before anything is inflated
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(UnreadableImageError, match=r"image too large: .* 2,000,000 bytes once inflated"):
            load_dicom(source, max_pixels=1_000_000)
