"""The pages of docs/ say what is true: their Python blocks run as they stand, one after another."""

import pytest
from pages import blocks_of


@pytest.mark.parametrize("page", ["sensitivity_scan.md", "targets.md"])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}

    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.code, page, "exec", dont_inherit=True), names)
