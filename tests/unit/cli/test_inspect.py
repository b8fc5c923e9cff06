"""What is in adapters, and whether they fit, as people and programs are told."""

from __future__ import annotations

from safemerge.reports.adapters import InspectionReport
from tests.unit.cli.calls import invoke, models


def test_inspect_describes_and_says_that_all_fits(merge_files) -> None:
    result = invoke("inspect", merge_files.task, merge_files.safety, *models(merge_files))
    assert result.exit_code == 0
    for said in ("q_proj, v_proj × 2 layers", "168 in float32", "not named", "1.66667"):
        assert said in result.stdout
    assert "fits: adapters that can be merged, for the aligned and the unaligned model" in result.stdout
    alone = invoke("inspect", merge_files.task)
    assert "fits: an adapter that can be merged\n" in alone.stdout


def test_inspect_lists_problems_and_notes_and_exits_with_4(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", use_dora=True)
    edit_json(
        merge_files.safety / "adapter_config.json", base_model_name_or_path="org/other", use_rslora=True
    )
    arguments = ("inspect", merge_files.task, merge_files.safety, *models(merge_files))
    result = invoke(*arguments)
    assert result.exit_code == 4
    assert "problem: " in result.stdout
    assert "use_dora=true" in result.stdout
    assert "note: " in result.stdout
    assert "rsLoRA" in result.stdout
    assert "fits" not in result.stdout
    as_json = invoke(*arguments, "--json")
    assert as_json.exit_code == 4
    assert InspectionReport.model_validate_json(as_json.stdout).problems


def test_inspect_counts_modules_where_figures_differ(merge_files, edit_json) -> None:
    edit_json(merge_files.task / "adapter_config.json", alpha_pattern={"v_proj": 12})
    assert "5 in 2 modules, 12 in 2 modules" in invoke("inspect", merge_files.task).stdout
