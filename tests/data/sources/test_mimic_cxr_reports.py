"""The report parser on reports written for these tests, in the layouts of MIMIC-CXR."""

from time import perf_counter

import pytest

from m3ae.data.sources.mimic_cxr import split_sections

USUAL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old man with an invented cough.  // ___?
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  ___ and ___.
 
 FINDINGS: 
 
 The lungs are
 made up.
 
 No effusion.
 
 IMPRESSION: 
 
 1. Nothing.
 2. Still nothing.
"""  # noqa: W291, W293 - blank lines hold a blank there


def test_the_usual_report() -> None:
    assert split_sections(USUAL) == {
        "examination": "CHEST (PA AND LAT)",
        "indication": "___ year old man with an invented cough. // ___?",
        "technique": "Chest PA and lateral",
        "comparison": "___ and ___.",
        "findings": "The lungs are made up. No effusion.",
        "impression": "1. Nothing. 2. Still nothing.",
    }


@pytest.mark.parametrize(
    ("heading", "section"),
    [
        ("HISTORY:", "indication"),
        ("REASON FOR EXAM:", "indication"),
        ("REASON  FOR  EXAMINATION:", "indication"),
        ("CLINICAL INFORMATION :", "indication"),
        ("Clinical history:", "indication"),
        ("TYPE OF EXAMINATION:", "examination"),
        ("REFERENCE EXAM:", "comparison"),
        ("Comparison Study:", "comparison"),
        ("FINDINGS", "findings"),
        ("Findings:", "findings"),
        ("CONCLUSION:", "impression"),
        ("FINDINGS AND IMPRESSION:", "impression"),
        ("FINDINGS/IMPRESSION:", "impression"),
        ("RECOMMENDATION(S):", "recommendations"),
        ("CHEST, TWO VIEWS:", "findings"),
        ("PORTABLE AP CHEST FILM, ___ AT 8:36 A.M.:", "findings"),
    ],
)
def test_variants_of_headings(heading: str, section: str) -> None:
    assert split_sections(f" FINAL REPORT\n {heading}\n Invented words.\n") == {section: "Invented words."}


def test_headings_in_the_middle_of_a_line() -> None:
    report = " FINAL REPORT HISTORY: ___F, unwell. COMPARISON: ___. Findings: Lungs: clear. IMPRESSION: None."
    assert split_sections(report) == {
        "indication": "___F, unwell.",
        "comparison": "___.",
        "findings": "Lungs: clear.",
        "impression": "None.",
    }


def test_words_that_only_look_like_headings_stay_in_the_text() -> None:
    text = "LUNGS: Clear. CHEST TUBE: none. Other impression: none. the findings: as told to\n findings: nobody."
    assert split_sections(f"FINDINGS: {text}") == {"findings": " ".join(text.split())}
    lines = "Clear.\n CHEST WALL, LATERAL: normal."
    assert split_sections(f"FINDINGS: {lines}") == {"findings": "Clear. CHEST WALL, LATERAL: normal."}


def test_a_title_is_not_a_section_where_nothing_follows_but_a_date() -> None:
    report = (
        " FINAL REPORT\n AP CHEST, 8:36 A.M.: ___\n \n HISTORY:  Unwell.\n \n AP CHEST:  ___.\n \n Heart invented.\n"
    )
    assert split_sections(report) == {"indication": "Unwell.", "findings": "___. Heart invented."}


def test_preliminary_readings_and_addenda_do_not_mix_with_the_report() -> None:
    note = "___ ___ 9:13 PM\n No pneumothorax. IMPRESSION: Wrong.\n FINDINGS: Wrong too."
    report = f" WET READ: {note}\n {'_' * 78}\n                  FINAL REPORT\n IMPRESSION:  Right.\n ADDENDUM:  Late."
    assert split_sections(report) == {
        "wet_read": " ".join(note.split()),
        "impression": "Right.",
        "addendum": "Late.",
    }
    report = " FINAL ADDENDUM\n ADDENDUM:  Late.\n FINAL REPORT\n FINDINGS:  Right."
    assert split_sections(report) == {"addendum": "Late.", "findings": "Right."}
    report = " WET READ VERSION #1  ___ 4:08 PM\n Early.\n FINAL REPORT\n FINDINGS:  Right."
    assert split_sections(report) == {"wet_read": "___ 4:08 PM Early.", "findings": "Right."}


def test_sections_of_one_name_are_joined_and_empty_ones_left_out() -> None:
    report = "HISTORY: A.\nINDICATION: B.\nFINDINGS:\n\nFINDINGS: C.\nIMPRESSION:"
    assert split_sections(report) == {"indication": "A. B.", "findings": "C."}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            " FINAL REPORT\n COMPARISON:  ___.\n \n First.\n Going on.\n \n Second.\n",
            {"comparison": "___.", "last_paragraph": "First. Going on. Second."},
        ),
        (
            " FINAL REPORT\n CHEST RADIOGRAPH PERFORMED ON ___\n \n First.\r\n \r\n Second.",
            {"preamble": "CHEST RADIOGRAPH PERFORMED ON ___", "last_paragraph": "First. Second."},
        ),
        ("One paragraph\n alone.", {"last_paragraph": "One paragraph alone."}),
        ("HISTORY: Only this.", {"indication": "Only this."}),
        ("FINDINGS: A.\n\nCOMPARISON: B.\n\nC.", {"findings": "A.", "comparison": "B. C."}),
        ("  \n ", {}),
        ("", {}),
    ],
)
def test_without_findings_and_impression_there_is_a_last_paragraph(report: str, expected: dict[str, str]) -> None:
    assert split_sections(report) == expected


@pytest.mark.parametrize(
    "hostile", ["A " * 100_000, " " * 100_000, "_" * 100_000, "\n " * 50_000, "FINDINGS " * 20_000]
)
def test_no_report_takes_long(hostile: str) -> None:
    start = perf_counter()
    split_sections(hostile)
    assert perf_counter() - start < 5
