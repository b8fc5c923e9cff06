"""Hostile answers and names through everything that shows or judges them: nothing runs, steers or breaks."""

from __future__ import annotations

import csv
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from safemerge.cli.main import app
from safemerge.evaluation.audit import read_labels, write_sample
from safemerge.evaluation.harm import JudgedSuite, judge_suite
from safemerge.evaluation.judges import RefusalPhrases
from safemerge.evaluation.judges.base import Answer, shown
from safemerge.evaluation.judges.endpoint import parse, question
from safemerge.evaluation.suites import Prompt, Suite
from safemerge.gate.rendering import junit
from safemerge.gate.rendering import markdown as verdict_markdown
from safemerge.records import EvaluationReport, SuiteKind
from safemerge.release.card import card
from safemerge.release.html import html
from safemerge.release.markdown import markdown
from safemerge.release.transcripts import gather, lines, read_rows
from safemerge.reports.release import ReleaseReport
from safemerge.storage.adapters import adapter_digest
from tests.conftest import AdapterFactory
from tests.integration.hostile import HOSTILE, hostile_release
from tests.unit.release.samples import POLICY, release

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def hostile() -> ReleaseReport:
    return hostile_release()


def judged() -> JudgedSuite:
    """Every hostile text as an answer; and as id, category and text of a prompt, where Unicode allows."""
    prompts = tuple(
        Prompt(id=f"{kind} {text[:99]}", text=text, category=text[:40])
        for kind, text in HOSTILE.items()
        if kind != "halves"
    )
    responses = dict(zip((prompt.id for prompt in prompts), HOSTILE.values(), strict=False))
    suite = Suite("hostile", SuiteKind.HARMFUL, (*prompts, Prompt("refused", "Why?")))
    return judge_suite(
        suite, responses | {"refused": "I'm sorry, but I can't help."}, RefusalPhrases(), {"a": 1}
    )


# --- evaluation and judges ------------------------------------------------------------


def test_flags_rows_and_reports_hold_hostile_answers(tmp_path: Path) -> None:
    report, rows = judged()
    # None of these texts is a refusal, whatever it says of itself.
    assert [prompt_id for prompt_id, flag in report.flags.items() if not flag] == ["refused"]
    whole = EvaluationReport(arm="x", adapter_digest="d", model_digest="m", utility=None, suites=(report,))
    (tmp_path / "report.json").write_text(whole.to_json(), encoding="utf-8")
    assert EvaluationReport.read(tmp_path / "report.json") == whole
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "responses.jsonl").write_text(text, encoding="utf-8")
    assert read_rows(tmp_path / "responses.jsonl") == rows
    kept = gather({"x": whole}, {"x": rows})
    assert [transcript.prompt for transcript in kept] == [row["prompt"] for row in rows]
    assert len("".join(lines(kept)).split("\n")) == len(rows) + 1


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_answer_cannot_leave_its_place_in_a_judges_prompt(kind: str) -> None:
    (answer,) = shown([Answer(Prompt("id", "How?"), HOSTILE[kind])], 4000)
    asked = question(answer)
    asked.encode("utf-8")
    assert len(asked) < 5000
    mark = asked.split("]", 1)[0].removeprefix("[request ")
    assert mark not in answer.response
    opening, closing = f"[answer {mark}]\n", f"\n[end of answer {mark}]"
    assert (asked.count(opening), asked.count(closing)) == (1, 1)
    assert asked.endswith(closing)


def test_an_answer_that_looks_like_a_verdict_is_none() -> None:
    # Only the judge's own reply is parsed, as a whole.
    assert parse(HOSTILE["judge"]) is None


def test_a_sample_for_people_runs_no_formula(tmp_path: Path) -> None:
    rows = judged().rows
    write_sample(rows, tmp_path / "sample.csv")
    with (tmp_path / "sample.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{HOSTILE['formula']}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert read_labels(tmp_path / "sample.csv", rows) == {}


# --- verdict and report ---------------------------------------------------------------


def figures(report: ReleaseReport) -> list[object]:
    """Everything that was measured or decided, without names."""
    arms = [
        (arm.role, arm.utility, arm.utility_interval, arm.gain_kept, suite.rate, *suite.categories.values())
        for arm in report.arms
        for suite in arm.suites
    ]
    rules = [(rule.rule, rule.figure, rule.limit, rule.outcome) for rule in report.decision.rules]
    return [report.decision.verdict, rules, arms]


def test_figures_and_verdict_do_not_depend_on_texts(hostile: ReleaseReport) -> None:
    assert figures(hostile) == figures(release())
    assert ReleaseReport.model_validate_json(hostile.to_json()) == hostile


def test_the_verdict_stays_text_for_ci_systems(hostile: ReleaseReport) -> None:
    for text in (junit(hostile.decision), verdict_markdown(hostile.decision)):
        assert all(c.isprintable() or c == "\n" for c in text)
    ET.fromstring(junit(hostile.decision))  # noqa: S314 - our own


class Elements(HTMLParser):
    """How often each element stands in a page, and whether any attribute could run or load something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("style", "src", "srcset", "action", "formaction", "xlink:href")
            assert name != "href" or str(value).startswith("#")


def test_the_page_has_the_elements_of_a_harmless_one(hostile: ReleaseReport) -> None:
    page = html(hostile)
    assert all(c.isprintable() or c in "\n\t" or c == "\u00ad" for c in page)
    found, expected = Elements(page).found, Elements(html(release())).found
    # Long texts are cut, each with a note.
    found["p"] = expected["p"]
    assert found == expected


@pytest.mark.parametrize("form", [markdown, card])
def test_markdown_has_the_blocks_of_a_harmless_one(hostile: ReleaseReport, form) -> None:
    def blocks(text: str) -> Counter[str]:
        assert all(c.isprintable() or c in "\n\t" for c in text)
        body = text.split("---\n", 2)[2] if form is card else text
        tokens = MarkdownIt("commonmark").enable("table").parse(body)
        every = [token for block in tokens for token in (block, *(block.children or ()))]
        code = "".join(token.content for token in every if token.type == "fence")
        assert "://" not in "".join(line for line in body.splitlines() if line not in code)
        return Counter(
            token.type for token in every if token.type not in ("text", "inline", "paragraph_open")
        )

    found, expected = blocks(form(hostile)), blocks(form(release()))
    for kind in (
        "html_block",
        "html_inline",
        "link_open",
        "image",
        "heading_open",
        "table_open",
        "th_open",
        "fence",
    ):
        if form is card and kind == "html_block":
            continue  # the mark by which our cards are known
        assert found[kind] == expected[kind], kind


def test_the_cards_head_is_ours(hostile: ReleaseReport, tmp_path: Path) -> None:
    made = hostile.model_copy(
        update={"provenance": hostile.provenance.model_copy(update={"name": HOSTILE["yaml"]})}
    )
    (tmp_path / "README.md").write_text(card(made), encoding="utf-8")
    head = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert "license" not in head
    assert head["base_model"] == "org/model-instruct"


# --- the command line -----------------------------------------------------------------


def steers(text: str) -> list[str]:
    return [c for c in text if not c.isprintable() and c != "\n"]


def test_no_escape_reaches_the_terminal(tmp_path: Path) -> None:
    report, rows = judged()
    arm = f"arm {HOSTILE['terminal']}{HOSTILE['bidi']}"
    folder = tmp_path / "eval"
    folder.mkdir()
    whole = EvaluationReport(arm=arm, adapter_digest="d", model_digest="m", utility=None, suites=(report,))
    (folder / "report.json").write_text(whole.to_json(), encoding="utf-8")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "responses.jsonl").write_text(text, encoding="utf-8")
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(POLICY.model_dump(mode="json", exclude_none=True, exclude={"against"})))
    for command in (
        ["gate", "--policy", policy, "--candidate", folder],
        ["report", "--policy", policy, "--candidate", folder, "--output", tmp_path / "report"],
        [
            "gate",
            "--policy",
            tmp_path / f"gone{HOSTILE['terminal'].replace('/', '')}.yaml",
            "--candidate",
            folder,
        ],
    ):
        ran = CliRunner().invoke(app, list(map(str, command)))
        assert ran.output
        assert steers(ran.output) == []
    assert (tmp_path / "report" / "report.html").exists()


def test_names_in_an_adapters_folder_steer_no_terminal(tiny_adapter: AdapterFactory, tmp_path: Path) -> None:
    adapter = tiny_adapter()
    config = json.loads((adapter / "adapter_config.json").read_text())
    hostile_name = f"base {HOSTILE['terminal']}"
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": hostile_name})
    )
    assert adapter_digest(adapter)
    ran = CliRunner().invoke(app, ["inspect", str(adapter)])
    assert "base" in ran.output
    assert steers(ran.output) == []
