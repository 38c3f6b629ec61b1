"""Directories of runs that must not meet."""

from pathlib import Path

import pytest

from deploy.errors import DirectoryInUse
from deploy.workspace import workspace


def test_two_runs_in_one_directory_have_their_own_data(tmp_path: Path) -> None:
    with workspace(tmp_path, keep=False) as one, workspace(tmp_path, keep=False) as other:
        assert one.data.is_dir()
        assert other.data.is_dir()
        assert one.data != other.data

    assert [entry.name for entry in tmp_path.iterdir()] == ["log"]


def test_kept_data_is_one_runs_alone(tmp_path: Path) -> None:
    with (
        workspace(tmp_path, keep=True),
        pytest.raises(DirectoryInUse, match="in use by another run"),
        workspace(tmp_path, keep=True),
    ):
        pytest.fail("it was given twice")

    with workspace(tmp_path, keep=True) as again:
        assert again.data == tmp_path / "data"


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / "run-killed"
    left.mkdir()

    with workspace(tmp_path, keep=False):
        assert not left.exists()


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for _run in range(15):
        with workspace(tmp_path, keep=False):
            pass

    assert len(list((tmp_path / "log").iterdir())) == 11
