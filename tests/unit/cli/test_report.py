"""``safemerge report`` on files: what it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from safemerge.cli.main import app
from safemerge.reports.release import ReleaseReport
from safemerge.storage.adapters import adapter_digest
from tests.unit.conftest import MergeFiles
from tests.unit.release.samples import POLICY, evaluation, merge, reports, rows


@pytest.fixture
def folder(tmp_path: Path, merge_files: MergeFiles) -> Path:
    """Evaluations of all arms, a policy, and the candidate's adapter with the report of its merge."""
    (merge_files.task / "safemerge_report.json").write_text(merge().to_json())
    judged = evaluation("candidate", adapter_digest=adapter_digest(merge_files.task))
    for report in (reports() | {"candidate": judged}).values():
        place = tmp_path / "eval" / report.arm
        place.mkdir(parents=True)
        (place / "report.json").write_text(report.to_json())
        (place / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(report)))
    policy = POLICY.model_dump(mode="json", exclude_none=True, exclude={"against"})
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
    return tmp_path


def call(folder: Path, *arguments: object) -> Result:
    return CliRunner().invoke(
        app, ["report", "--policy", str(folder / "policy.yaml"), *map(str, arguments)], env={"COLUMNS": "200"}
    )


def evaluations(folder: Path) -> list[Path]:
    return sorted((folder / "eval").iterdir())


def test_a_report_and_a_card_are_written_from_the_arms_of_a_folder(folder: Path) -> None:
    output, adapter = folder / "report", folder / "task"
    ran = call(
        folder,
        *("--reports", *evaluations(folder), "--candidate", "safemerge", "--no-champion"),
        *("--output", output, "--model-card", adapter, "--transcripts", 5),
    )
    assert ran.exit_code == 0, ran.output
    summary, page, card = ran.stdout.splitlines()
    assert summary.startswith("PASS (smoke judge): safemerge met all")
    assert (page, card) == (str(output / "report.html"), str(adapter / "README.md"))
    made = ReleaseReport.read(output / "report.json")
    assert [arm.role for arm in made.arms] == ["aligned", "fine_tuned", "candidate", "other", "other"]
    assert (len(made.transcripts), made.prompts) == (5, 80)
    assert made.merge == merge()  # found in the adapter's folder
    assert "PASS: may ship" in Path(card).read_text()


def test_arms_may_be_named_one_by_one(folder: Path) -> None:
    ran = call(
        folder,
        *("--candidate", folder / "eval" / "safemerge", "--aligned", folder / "eval" / "aligned"),
        *("--fine-tuned", folder / "eval" / "fine_tuned" / "report.json"),
        *("--reports", f"resta={folder}/eval/scale", "--json"),
    )
    assert ran.exit_code == 0, ran.output
    made = ReleaseReport.model_validate_json(ran.stdout)
    assert [arm.title for arm in made.arms][-1] == "resta"
    assert made.merge is None


def test_a_block_is_written_too(folder: Path) -> None:
    ran = call(
        folder, "--candidate", folder / "eval" / "scale", "--no-champion", "--output", folder / "report"
    )
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("BLOCK (smoke judge): scale: cannot judge: gain kept")
    assert (folder / "report" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--candidate", "{}/eval/scale"], "expected --output, --model-card or --json, got none"),
        (["--json"], "expected --candidate or --reports candidate=PATH, got neither"),
        (["--json", "--reports", "{}/eval/scale", "--candidate", "sclae"], "a path or one of the arms scale"),
        (["--json", "--reports", "{}/eval/scale", "{}/eval/scale"], "expected one report of scale, got two"),
        (
            ["--json", "--reports", "candidate={}/eval/scale", "--candidate", "x"],
            "expected one report of candidate, got two",
        ),
        (
            ["--json", "--candidate", "{}/eval/scale", "--champion", "{}/eval/scale", "--no-champion"],
            "expected a champion's report or --no-champion, got both",
        ),
    ],
)
def test_wrong_usage_is_said(folder: Path, arguments: list[str], message: str) -> None:
    ran = call(folder, *(argument.format(folder) for argument in arguments))
    assert ran.exit_code == 2
    assert message in " ".join(ran.stderr.replace("│", " ").split())


def test_a_merge_of_another_adapter_is_refused(folder: Path) -> None:
    scale = folder / "eval" / "scale"
    ran = call(folder, "--candidate", scale, "--merge", folder / "task", "--output", folder / "report")
    assert ran.exit_code == 4
    assert "expected the adapter that was judged, digest digest of s" in ran.stderr
    assert not (folder / "report").exists()


def test_an_existing_folder_is_kept(folder: Path) -> None:
    ran = call(folder, "--candidate", folder / "eval" / "scale", "--output", folder / "eval")
    assert ran.exit_code == 4
    assert "expected a path that does not exist yet" in ran.stderr


def test_a_merge_report_may_be_named_by_itself(folder: Path) -> None:
    report = folder / "task" / "safemerge_report.json"
    ran = call(folder, "--candidate", folder / "eval" / "scale", "--merge", report, "--json")
    assert ReleaseReport.model_validate_json(ran.stdout).merge == merge()
    (folder / "task" / "safemerge_report.json").unlink()
    ran = call(folder, "--candidate", folder / "eval" / "safemerge", "--merge", folder / "task", "--json")
    assert ran.exit_code == 4
    assert "safemerge_report.json: expected a merge report, got no such file" in ran.stderr


def test_a_policy_in_a_pipeline_that_is_not_whole_is_said(folder: Path) -> None:
    policy = folder / "policy.yaml"
    policy.write_text(yaml.safe_dump({"gate": yaml.safe_load(policy.read_text())}))
    arguments = ("--reports", *evaluations(folder), "--candidate", "safemerge", "--no-champion")
    ran = call(folder, *arguments, "--output", folder / "report")
    assert ran.exit_code == 0, ran.output
    assert "warning: the report cannot say of data and seeds" in ran.stderr
    assert not ReleaseReport.read(folder / "report" / "report.json").provenance.seeds
