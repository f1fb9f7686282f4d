"""What a user's type checker takes and refuses, in pyright's strict mode."""

import json
import shutil
from pathlib import Path

import processes
import pytest
from pages import ROOT

pytest.importorskip("pyright", reason="comes with the extra dev")

SETTINGS = {
    "include": ["calls.py"],
    "extraPaths": [str(ROOT)],
    "pythonVersion": "3.10",
    "typeCheckingMode": "strict",
    "reportUnnecessaryTypeIgnoreComment": "error",  # what is marked has to be refused
}


@pytest.mark.slow  # starts node
def test_calls_of_users_in_strict_mode(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "typed" / "calls.py", tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (said,) = processes.finish(processes.start("-m", "pyright", "--project", tmp_path, "--stats", cwd=tmp_path))
    assert "Found 1 source file" in said
