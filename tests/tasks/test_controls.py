import numpy as np
import pytest

from m3ae.tasks.controls import bag_of_words, bag_of_words_scores, look, majority, majority_by_type, nearest_labels
from tests.data.small_folder import picture


def test_majority_is_the_most_frequent_and_then_the_first_by_alphabet() -> None:
    assert majority(["no", "yes", "yes"]) == "yes"
    assert majority(["yes", "no"]) == "no"


def test_majority_by_type_falls_back_on_all_questions() -> None:
    labels, types = ["yes", "yes", "no", "left", "left"], ["pres", "pres", "pres", "pos", "pos"]
    assert majority_by_type(labels, types, ["pos", "pres", "size"]) == ["left", "yes", "left"]


def test_the_nearest_images_of_the_narrowest_known_group_vote() -> None:
    looks = np.array([[0], [0.1], [0.2], [5], [6], [7], [8]], np.float32)
    labels = ["yes", "no", "no", "left", "right", "left", "right"]
    groups = [("a nodule", "closed")] * 3 + [("which side", "open")] * 4
    wanted = [("a nodule", "closed"), ("which side", "open"), ("where", "open"), ("how many", "count")]
    found = nearest_labels(looks, labels, groups, np.array([[9], [4], [9], [0]], np.float32), wanted)
    assert found == ["no", "left", "right", "no"]  # of as many votes, the nearest; without a group, all vote


def test_a_look_knows_neither_brightness_nor_size_but_colour() -> None:
    image = picture(3, (96, 80)).convert("L")
    plain = look(image)
    assert plain.shape == (577,) and plain[-1] == 0 and not look(None).any()
    np.testing.assert_allclose(look(image.point(lambda value: value // 2 + 40)), plain, atol=0.02)
    assert np.square(look(image.resize((48, 40))) - plain).sum() < 0.5 * np.square(look(picture(4)) - plain).sum()
    assert look(image.convert("RGB").point([*range(256), *[0] * 256, *range(256)]))[-1] > 0.1


def test_bag_of_words_reads_the_words_and_not_their_order() -> None:
    texts = ["which side is it", "is it a nodule", "side which", "a nodule it is"]
    assert bag_of_words(texts, ["left", "yes", "left", "yes"], ["nodule", "the side"]) == ["yes", "left"]


def test_bag_of_words_reads_the_characters_of_scripts_without_blanks() -> None:
    texts = ["左肺有结节吗", "图中是哪一侧", "有结节", "哪一侧"]
    assert bag_of_words(texts, ["yes", "left", "yes", "left"], ["右肺的结节", "肺在哪侧"]) == ["yes", "left"]


@pytest.mark.parametrize(("texts", "labels"), [(["", ""], ["no", "no"]), (["a b", "c d"], ["no", "no"])])
def test_bag_of_words_without_words_or_choice_is_the_majority(texts: list[str], labels: list[str]) -> None:
    assert bag_of_words(texts, labels, ["new words"]) == ["no"]


def test_scores_of_several_labels_rank_by_their_words() -> None:
    texts = ["large heart", "clear lungs", "large heart, fluid", "fluid"]
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, -100]])
    scores = bag_of_words_scores(texts, targets, ["heart", "fluid"])
    assert scores[0, 0] > 0.5 > scores[1, 0] and scores[1, 1] > 0.5 > scores[0, 1]
    assert scores[:, 2].tolist() == [1, 1], "a label of one class only is its share"
    assert bag_of_words_scores(["", ""], np.array([[1], [0]]), ["a"]).tolist() == [[0.5]]
