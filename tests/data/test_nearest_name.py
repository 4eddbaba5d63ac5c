"""A wrong name is answered with the nearest one, or with what else there is to say."""

from __future__ import annotations

from data.nearest_name import hint_at


def test_the_nearest_name_is_hinted_at() -> None:
    assert hint_at("rnk", ("rank", "alpha"), otherwise="none") == "did you mean 'rank'?"


def test_a_name_like_no_other_is_answered_otherwise() -> None:
    assert hint_at("xyz", ("rank", "alpha"), otherwise="the names are …") == "the names are …"
    assert hint_at("rnk", ("rank",), otherwise="none", cutoff=0.9) == "none"
