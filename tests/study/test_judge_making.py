"""Judges by name and by study file, and their verdicts from before there is a database."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from data.recipes import SettingError
from objectives.judges.cached import MemoryCache
from storage.database import open_storage
from storage.verdict_cache import VerdictCache
from study.judge_making import LateCache, judge_config, judge_named
from study.spec import ConfigurationError, StudySpec, load_spec


def test_a_judge_is_named_by_a_word_or_by_a_study_file(tmp_path: Path) -> None:
    cache = MemoryCache()
    assert judge_named("matcher", cache).name == "matcher"
    assert "pocket" in judge_named("model:pocket", cache).name
    assert judge_named("cascade:pocket", cache).name.startswith("matcher, then model")
    file = tmp_path / "study.toml"
    file.write_text(
        '[judge]\nkind = "cascade"\n[judge.endpoint]\n'
        'base_url = "http://localhost:9/v1"\nmodel = "large"\n'
    )
    assert "large" in judge_named(str(file), cache).name


@pytest.mark.parametrize("text", ["", "human", "model:", "endpoint:large"])
def test_a_judge_that_is_none_is_explained(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a judge; name matcher, model:NAME"):
        judge_named(text, MemoryCache())


def test_a_study_file_names_its_judge_in_a_word_or_a_table(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('judge = "matcher"')
    assert load_spec(file, {}) == StudySpec()
    file.write_text('[judge]\nkind = "cascade"\nmodel = "some/model"')
    assert judge_config(load_spec(file, {}).judge).model == "some/model"
    file.write_text('judge = "oracle"')
    with pytest.raises(ConfigurationError, match=r"judge.kind: 'oracle' is not allowed"):
        load_spec(file, {})
    file.write_text('[judge]\nkind = "cascade"')
    with pytest.raises(SettingError, match="a cascade asks either"):
        judge_config(load_spec(file, {}).judge)


def test_verdicts_from_before_the_database_are_kept_in_it(tmp_path: Path) -> None:
    cache = LateCache()
    cache.write({"early": "correct"})
    assert cache.read(["early", "late"]) == {"early": "correct"}
    with closing(open_storage(f"sqlite:///{tmp_path / 'study.db'}")) as storage:
        cache.keep_in(storage)
        cache.write({"late": "incorrect"})
        kept = VerdictCache(storage).read(["early", "late"])
        assert kept == {"early": "correct", "late": "incorrect"} == cache.read(["early", "late"])
