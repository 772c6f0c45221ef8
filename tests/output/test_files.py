"""Report files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtoken.errors import InputError
from vtoken.output.files import folder, replacing, write_text


def test_an_error_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    target = tmp_path / "report.md"
    write_text(target, "old")
    with pytest.raises(RuntimeError), replacing(target) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]
    write_text(target, "new")
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_folder_is_made_or_refused(tmp_path: Path) -> None:
    assert folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--out .*file: not a folder"):
        folder(tmp_path / "file")
    with pytest.raises(InputError, match="not a folder"):
        folder(tmp_path / "file" / "below")
