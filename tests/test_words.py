"""Words in scripts with and without blanks."""

import pytest

from m3ae.words import WORD, count_words, name_pattern, space_words, split_words


@pytest.mark.parametrize(
    ("text", "words", "count"),
    [
        ("the patient's 3.5cm X-ray ...", ["the", "patient's", "3", ".", "5cm", "X", "-", "ray", "..."], 5),
        ("cm² of cafe\u0301", ["cm²", "of", "cafe\u0301"], 3),
        ("CT示左肺，正常。", ["CT", "示", "左", "肺", "，", "正", "常", "。"], 6),
        ("１２ｍｍの結節", ["１２ｍｍ", "の", "結", "節"], 4),
        ("ｶﾞﾝ ﾊﾞｰ", ["ｶﾞ", "ﾝ", "ﾊﾞ", "ｰ"], 4),
        ("ที่กำลัง", ["ที่", "กำ", "ลั", "ง"], 4),
        ("ស្ត្រីខាង", ["ស្ត្រី", "ខា", "ង"], 3),
        ("ປອດມື້", ["ປ", "ອ", "ດ", "ມື້"], 4),
        ("폐에 이상 없음", ["폐에", "이상", "없음"], 3),
        ("हृदय सामान्य है", ["हृदय", "सामान्य", "है"], 3),
        ("قَلْب‌ها طبیعی", ["قَلْب‌ها", "طبیعی"], 2),
        ("👩‍⚕️ ok 👍🏽", ["👩‍⚕️", "ok", "👍🏽"], 3),
    ],
)
def test_words(text: str, words: list[str], count: int) -> None:
    assert WORD.findall(text) == words
    assert count_words(text) == count


def test_words_without_punctuation() -> None:
    assert split_words("the patient's X-ray: 左肺。") == ["the", "patient", "s", "X", "ray", "左", "肺"]
    assert space_words("no CT左肺。").split() == ["no", "CT", "左", "肺", "。"]
    assert space_words("No X-ray.") == "No X-ray."


@pytest.mark.parametrize(
    ("name", "text", "is_named"),
    [
        ("large", "A LARGE heart", True),
        ("large", "enlarged", False),
        ("gross", "groß", False),
        ("(small)", "a (small) one", True),
        ("结节", "左肺结节可见", True),
        ("结节", "CT结节", True),
        ("CT", "左CT图", True),
        ("हृदय", "हृदयाघात", False),
        ("हृदया", "हृदया घात", True),
        ("กต", "ปกติ", False),
        ("ปก", "ปกติ", True),
    ],
)
def test_a_name_is_no_part_of_a_longer_word(name: str, text: str, is_named: bool) -> None:
    assert (name_pattern(["other", name]).search(text) is not None) == is_named
