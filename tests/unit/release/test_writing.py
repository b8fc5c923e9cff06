"""Files of a release: written together, read back, and no adapter's own card lost."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from safemerge.config.pipeline import PipelineConfig
from safemerge.config.training import DataSource
from safemerge.errors import DataError, MismatchError, OutputExistsError
from safemerge.release.provenance import provenance_of
from safemerge.release.transcripts import gather
from safemerge.release.writing import read_evaluation, write_card, write_report
from safemerge.reports.release import ReleaseReport
from safemerge.storage.adapters import adapter_digest
from tests.unit.conftest import MergeFiles
from tests.unit.release.samples import evaluation, release, reports, rows


def test_all_forms_are_written_and_the_record_is_read_back(tmp_path: Path) -> None:
    made, of = release(most_shown=3), reports()
    write_report(made, gather(of, {arm: rows(report) for arm, report in of.items()}), tmp_path)
    names = ["report.html", "report.json", "report.md", "transcripts.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert ReleaseReport.read(tmp_path / "report.json") == made
    assert (len(made.transcripts), made.prompts) == (3, 80)
    assert len((tmp_path / "transcripts.jsonl").read_text().splitlines()) == 80


def test_an_evaluation_is_read_from_its_folder_or_its_report(tmp_path: Path) -> None:
    report = evaluation("scale")
    (tmp_path / "report.json").write_text(report.to_json())
    (tmp_path / "scale.json").write_text(report.to_json())
    assert read_evaluation(tmp_path) == (report, ())
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(report)))
    assert read_evaluation(tmp_path) == read_evaluation(tmp_path / "report.json") == (report, rows(report))
    # The answers beside it may be another arm's.
    assert read_evaluation(tmp_path / "scale.json") == (report, ())
    with pytest.raises(DataError, match="no such file"):
        read_evaluation(tmp_path / "gone")
    (tmp_path / "report.json").write_text(release().to_json())
    said = r"report\.json: expected an evaluation report, got a release report, which is made from them$"
    with pytest.raises(DataError, match=said):
        read_evaluation(tmp_path)


def test_a_card_changes_nothing_of_the_adapter(merge_files: MergeFiles) -> None:
    digest = adapter_digest(merge_files.task)
    of = reports() | {"candidate": evaluation("candidate", adapter_digest=digest)}
    path = write_card(release(of, transcripts=[]), merge_files.task)
    assert ModelCard.load(path).data.library_name == "peft"
    assert adapter_digest(merge_files.task) == digest
    write_card(release(of, transcripts=[]), merge_files.task)  # our own is replaced
    path.write_text("---\nlicense: mit\n---\nby hand")
    with pytest.raises(OutputExistsError, match="expected none or a card made by safemerge"):
        write_card(release(of, transcripts=[]), merge_files.task)
    assert path.read_text().endswith("by hand")


def test_a_card_is_of_the_adapter_that_was_judged(merge_files: MergeFiles) -> None:
    with pytest.raises(MismatchError, match="expected the adapter that was judged, digest digest of c"):
        write_card(release(), merge_files.safety)
    assert not (merge_files.safety / "README.md").exists()


def test_provenance_is_what_the_pipeline_was_told() -> None:
    training = {"data": [{"path": "a.jsonl"}, {"path": "org/b", "revision": "c0ffee"}], "steps": 1, "seed": 7}
    config = PipelineConfig.model_validate(
        {
            "name": "bot",
            "aligned_model": "org/a@1",
            "unaligned_model": "org/u@2",
            "task_training": training,
            "safety_training": training | {"seed": 0},
            "evaluation": {
                "utility": {"task": "t", "metric": "m"},
                "suites": [
                    {"name": "h", "kind": "harmful", "path": "h.jsonl"},
                    {"name": "o", "kind": "over_refusal", "path": "o.jsonl"},
                ],
            },
            "gate": {"max_harmful_rate": 0.1, "max_over_refusal_rate": 0.1},
            "tracking": {"registered_model": "bot"},
        }
    )
    assert isinstance(config.task_training.data[0], DataSource)
    made = provenance_of(config, runs={"gate": "r"}, now=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert made.created == "2026-01-02 03:04:05 UTC"
    assert made.models == {"aligned_model": "org/a@1", "unaligned_model": "org/u@2"}
    assert made.datasets["task_training"] == ("a.jsonl", "org/b@c0ffee")
    assert made.seeds == {"task_training": 7, "safety_training": 0}
    assert provenance_of(None).models == {}
