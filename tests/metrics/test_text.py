"""BLEU by hand, and what else is compared of texts."""

from math import exp

import pytest
from sacrebleu.metrics.bleu import BLEU

from m3ae.metrics import text_metrics
from m3ae.metrics.text import told_class


def test_bleu_by_hand() -> None:
    """Papineni et al. 2002: n-gram counts are clipped by the reference that has most, over the whole corpus."""
    texts = ["The heart is large", "no no effusion"]
    references = [["the heart is very large", "The heart is big"], ["no effusion seen here"]]
    found = text_metrics(texts, references)
    # Of the first text all words are right, two of the pairs, one of the triples; of the second two words, one pair.
    # 7 words; the closest references are of 4 words each.
    shortness = exp(1 - 8 / 7)
    assert found["bleu_1"] == pytest.approx(shortness * 6 / 7)
    assert found["bleu_2"] == pytest.approx(shortness * (6 / 7 * 3 / 5) ** (1 / 2))
    assert found["bleu_3"] == pytest.approx(shortness * (6 / 7 * 3 / 5 * 1 / 3) ** (1 / 3))
    assert found["bleu_4"] == 0, "no four words in a row are right, and nothing is smoothed"
    assert found["exact"] == 0 and found["distinct"] == 1


def test_the_texts_themselves_are_right() -> None:
    texts = ["No acute disease.", "Clear lungs , no effusion ."]
    found = text_metrics([*texts, "No  acute disease.\n"], [[texts[0]], ["Other.", texts[1]], [texts[0]]])
    assert found == pytest.approx({f"bleu_{order}": 1 for order in (1, 2, 3, 4)} | {"exact": 1, "distinct": 2 / 3})


def test_bleu_counts_the_characters_of_scripts_without_blanks() -> None:
    texts, references = ["CT示左肺 结节，考虑炎症。", "两肺未见异常"], ["CT示右肺结节，考虑炎症。", "两肺未见明显异常"]
    found = text_metrics(texts, [[reference] for reference in references])
    for order in (1, 2, 3, 4):
        expected = BLEU(tokenize="zh", lowercase=True, max_ngram_order=order, smooth_method="none", force=True)
        assert found[f"bleu_{order}"] == pytest.approx(expected.corpus_score(texts, [references]).score / 100)
    assert text_metrics(["ปอดปกติ"], [["ปอดผิดปกติ"]])["bleu_1"] == pytest.approx(exp(1 - 8 / 6))


@pytest.mark.parametrize("references", [[["a"]], [["a"], []]])
def test_texts_have_references(references: list[list[str]]) -> None:
    with pytest.raises(ValueError, match=f"got 2 texts and {len(references)} lists of references"):
        text_metrics(["a", "b"], references)


def test_a_text_tells_the_class_that_it_alone_names() -> None:
    texts = ["A Large heart.", "large or small", "enlarged", "", "small", "(small)"]
    assert told_class(texts, ["small", "large"]).tolist() == [1, -1, -1, -1, 0, 0]
    assert told_class(["左肺结节可见", "CT积液。", "无", "有结节、积液"], ["结节", "积液"]).tolist() == [0, 1, -1, -1]
