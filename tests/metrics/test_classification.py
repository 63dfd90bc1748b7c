import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from m3ae.metrics import MultiLabelMetrics, multi_label_f1, multi_label_metrics, single_label_metrics


def test_single_label_by_hand():
    metrics = single_label_metrics(np.array([0, 0, 1, 2, 1]), np.array([0, 1, 1, -100, 0]))
    assert metrics == pytest.approx({"accuracy": 2 / 4, "macro_f1": (1 / 2 + 1 / 2) / 2})


def test_single_label_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    predictions, references = torch.randint(0, 7, (2, 200), generator=generator)
    metrics = single_label_metrics(predictions.numpy(), references.numpy())
    assert metrics["macro_f1"] == f1_score(references, predictions, average="macro")
    assert metrics["accuracy"] == int((predictions == references).sum()) / 200


def test_f1_of_several_labels():
    predictions = np.array([[1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 1]])
    references = np.array([[1, 1, 0, -100], [0, 1, 0, 1], [1, 0, 0, -100]])
    # True and false positives, and false negatives by label: 1/1/1, 1/0/1, none at all, 1/0/0.
    metrics = multi_label_f1(predictions, references)
    assert metrics == pytest.approx({"macro_f1": (1 / 2 + 2 / 3 + 1) / 3, "micro_f1": 6 / 9})
    assert np.isnan(multi_label_f1(predictions, np.zeros((3, 4)))["macro_f1"])
    known = references[:, :3]
    scikit = [f1_score(known[:, :2], predictions[:, :2], average=average) for average in ("macro", "micro")]
    assert list(multi_label_f1(predictions[:, :3], known).values()) == pytest.approx(scikit)


def test_nothing_known():
    with pytest.raises(ValueError, match=r"all 2 samples is unknown \(-100\)"):
        single_label_metrics(np.array([0, 1]), np.array([-100, -100]))


# a pair of one positive and one negative is ordered right (1), wrong (0) or tied (1/2)
SCORES = [[0.9, 0.1, 0.3], [0.4, 0.2, 0.3], [0.6, 0.3, 0.3], [0.1, 0.9, 0.3]]
LABELS = [[1, 1, 0], [1, 1, -100], [0, 1, 1], [-100, float("nan"), 1]]


def test_multi_label_by_hand():
    metrics = MultiLabelMetrics().compute(predictions=SCORES, references=LABELS, label_names=["a", "b", "c"])
    assert metrics.pop("undefined_labels") == ["b"]
    assert metrics == pytest.approx(
        {
            "a_auroc": 1 / 2,
            "a_average_precision": (1 + 2 / 3) / 2,
            "a_prevalence": 2 / 3,
            "b_auroc": np.nan,
            "b_average_precision": np.nan,
            "b_prevalence": 1,
            "c_auroc": 1 / 2,
            "c_average_precision": 2 / 3,
            "c_prevalence": 2 / 3,
            "macro_auroc": 1 / 2,
            "macro_average_precision": (5 / 6 + 2 / 3) / 2,
        },
        nan_ok=True,
    )


def test_multi_label_agrees_with_scikit_learn_in_any_order():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(300, 5)), (generator.random((300, 5)) < 0.2).astype(float)
    order = generator.permutation(300)
    metric = MultiLabelMetrics()
    for rows in np.array_split(order, 4):
        metric.add_batch(predictions=scores[rows], references=labels[rows])
    metrics = metric.compute()
    assert metrics["macro_auroc"] == pytest.approx(roc_auc_score(labels, scores, average="macro"), abs=1e-12)
    assert metrics["3_average_precision"] == pytest.approx(average_precision_score(labels[:, 3], scores[:, 3]))
    assert metrics["undefined_labels"] == []


def test_a_label_that_nobody_knows_is_undefined():
    metrics = MultiLabelMetrics().compute(predictions=[[0.1], [0.2]], references=[[-100], [-100]])
    assert metrics["undefined_labels"] == ["0"]
    assert np.isnan(metrics["macro_auroc"]) and np.isnan(metrics["0_prevalence"])


@pytest.mark.parametrize(
    ("references", "names", "message"),
    [
        ([[1.0, -1.0]], ["a", "b"], r"must be 0, 1 or unknown \(-100 or NaN\), got -1"),
        ([[1.0]], ["a", "b"], r"each of the 2 labels, got predictions of shape \(1, 2\) and references of shape"),
        ([[1.0, 0.0]], ["a"], "each of the 1 labels"),
    ],
)
def test_what_does_not_fit_is_refused(references, names, message):
    with pytest.raises(ValueError, match=message):
        multi_label_metrics(np.array([[0.1, 0.2]]), np.array(references), names)
