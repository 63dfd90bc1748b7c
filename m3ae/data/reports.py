"""Radiology reports cut into sections by their headings, as they are written in MIMIC-CXR.

A report there is plain text with `___` where something was removed:

```
                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough.  COMPARISON:  None.

 FINDINGS:

 The lungs are clear.

 IMPRESSION:  No acute disease.
```
"""

import re
from collections.abc import Iterable

HEADINGS = {
    "examination": ("EXAMINATION", "EXAM", "EXAMINATIONS", "TYPE OF EXAMINATION", "STUDY"),
    "indication": (
        *("INDICATION", "INDICATIONS", "CLINICAL INDICATION", "INDICATION FOR STUDY"),
        *("HISTORY", "CLINICAL HISTORY", "PATIENT HISTORY", "MEDICAL HISTORY", "CLINICAL INFORMATION"),
        *("REASON FOR EXAM", "REASON FOR EXAMINATION", "REASON FOR STUDY", "REASON FOR THIS EXAMINATION"),
    ),
    "technique": ("TECHNIQUE", "TECHNIQUES"),
    "comparison": (
        *("COMPARISON", "COMPARISONS", "COMPARISON EXAM", "COMPARISON EXAMS", "COMPARISON FILM", "COMPARISON FILMS"),
        *("COMPARISON STUDY", "COMPARISON STUDIES", "COMPARISON EXAMINATION", "REFERENCE EXAM"),
    ),
    "findings": ("FINDINGS", "FINDING"),
    "impression": (
        *("IMPRESSION", "IMPRESSIONS", "CONCLUSION", "CONCLUSIONS", "FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION"),
        *("FINDINGS AND IMPRESSIONS", "IMPRESSION AND FINDINGS", "IMPRESSION/FINDINGS", "FINAL IMPRESSION"),
    ),
    "recommendations": ("RECOMMENDATION", "RECOMMENDATIONS", "RECOMMENDATION(S)"),
    "notification": ("NOTIFICATION", "NOTIFICATIONS"),
    "comment": ("COMMENT", "COMMENTS"),
    "wet_read": ("WET READ", "WETREAD", "PROVISIONAL FINDINGS IMPRESSION (PFI)", "PROVISIONAL FINDINGS IMPRESSION"),
    "addendum": ("ADDENDUM", "FINAL ADDENDUM"),
}
NOTES = ("wet_read", "addendum")
BEFORE_FINDINGS = ("preamble", "examination", "indication", "technique", "comparison")
VIEW_WORDS = {"CHEST", "VIEW", "VIEWS", "RADIOGRAPH", "RADIOGRAPHS", "FILM", "FILMS", "PA", "AP", "LATERAL"}

_SECTION_OF = {name: section for section, names in HEADINGS.items() for name in names}


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name).replace(r"\ ", "[ ]+") for name in sorted(names, key=len, reverse=True))


_NAMES = _any_of(_SECTION_OF)
_HEADING = re.compile(
    rf"""
    ^[ \t]* (?P<line>{_NAMES}) [ \t]*$                                           # alone on a line
    | (?<!\S) (?P<capitals>{_NAMES}) [ \t]*:                                     # in capitals, anywhere
    | (?:^|(?<=[.;!?_\d)])[ ]) [ \t]* (?P<mixed>(?=[A-Z])(?i:{_NAMES})) [ \t]*:  # else only where a sentence may begin
    | ^[ \t]* (?P<title>[A-Z] (?:[A-Z_ ,()/.&-]|\d|(?<=\d):(?=\d)){{1,100}}) :(?=\s)
    """,
    re.MULTILINE | re.VERBOSE,
)
_NOTE = re.compile(
    rf"^[ \t]*(?P<line>{_any_of(name for note in NOTES for name in HEADINGS[note])})\b(?:[ ]VERSION[ ]\#\d+)?[ \t]*:?",
    re.MULTILINE,
)
_FINAL_REPORT = re.compile(r"^[ \t]*FINAL REPORT\b:?", re.MULTILINE)
_RULER = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")


def split_sections(report: str) -> dict[str, str]:
    """Cut a report into its sections.

    Headings are recognised in capitals anywhere and in mixed case where a sentence may begin; a title such as "CHEST,
    TWO VIEWS:" opens the findings. "FINDINGS AND IMPRESSION" is an impression and a history an indication. What stands
    above "FINAL REPORT" is a preliminary reading or an addendum and does not mix with the report.

    Returns:
        The texts that are not empty, white space collapsed, by section: the keys of `HEADINGS`, and "preamble" for
        what stands before the first heading. Sections of the same name are joined. If there are neither findings nor
        an impression, "last_paragraph" is what follows the first paragraph of the last section, as in the published
        `mimic_cxr_sectioned.csv`, or all of a report of one paragraph without headings.
    """
    report = _RULER.sub("", report.replace("\r\n", "\n"))
    final = _FINAL_REPORT.search(report)
    above, body = (report[: final.start()], report[final.end() :]) if final else ("", report)
    pieces = _cut(body, _HEADING)
    if not any(section in ("findings", "impression") for section, _ in pieces):
        pieces = _with_last_paragraph(pieces)
    sections: dict[str, list[str]] = {}
    for section, text in _cut(above, _NOTE) + pieces:
        sections.setdefault(section, []).extend(text.split())
    return {section: " ".join(words) for section, words in sections.items()}


def _cut(text: str, heading: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return the section and text of every piece that is not empty."""
    pieces: list[tuple[str, str]] = []
    section, start, is_title = "preamble", 0, False
    for match in [*heading.finditer(text), None]:
        name = re.sub(" +", " ", match[match.lastgroup or 0].upper()) if match else ""
        opens_title = name not in _SECTION_OF
        if match and opens_title and not (section in BEFORE_FINDINGS and VIEW_WORDS & set(re.findall("[A-Z]+", name))):
            continue
        piece = text[start : match.start() if match else len(text)].strip()
        if piece and not (is_title and not re.search("[A-Za-z]", piece)):  # a title may be followed by a date only
            pieces.append((section, piece))
        if match:
            section, start, is_title = _SECTION_OF.get(name, "findings"), match.end(), opens_title
    return pieces


def _with_last_paragraph(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if not pieces:
        return []
    section, text = pieces[-1]
    first, *others = _BLANK_LINE.split(text)
    if others:
        return [*pieces[:-1], (section, first), ("last_paragraph", "\n\n".join(others))]
    return pieces if len(pieces) > 1 or section != "preamble" else [("last_paragraph", text)]
