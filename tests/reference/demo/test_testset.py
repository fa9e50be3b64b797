"""What is asked and what is true of it must come from the scenes themselves."""

from __future__ import annotations

import pytest

from reference.demo.testset import TestSet


@pytest.fixture(scope="module")
def testset() -> TestSet:
    return TestSet.load("test", 12, 6)


def test_another_picture_is_one_that_can_answer(testset: TestSet) -> None:
    for other, question in zip(testset.others(), testset.asked, strict=True):
        assert other != question.picture
        answerable = [
            j
            for j in range(len(testset.pictures))
            if j != question.picture and testset.truth_in(j, question.text) is not None
        ]
        assert other in answerable or not answerable


def test_truths_are_those_of_the_scenes(testset: TestSet) -> None:
    assert all(testset.truth_in(q.picture, q.text) == q.truth for q in testset.asked)
    assert testset.right([q.truth.upper() for q in testset.asked]) == [True] * len(testset.asked)
