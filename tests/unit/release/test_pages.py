"""HTML, Markdown and the model card: they say the same, lead with the verdict, and hold in other readers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from safemerge.gate import GatePolicy, SignOff
from safemerge.release.card import card, metadata
from safemerge.release.html import html
from safemerge.release.markdown import fenced, markdown
from safemerge.reports.release import Provenance
from tests.unit.release.samples import POLICY, PROVENANCE, answer, release, reports

STRICT = GatePolicy(max_harmful_rate=0.2, max_over_refusal_rate=0.2, min_gain_kept=0.99)


class Outline(HTMLParser):
    """Headings and ids of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "br", "input", "wbr"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: set[str] = set()
        self.targets: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids |= {found["id"]} if "id" in found else set()
        self.targets |= {found["href"].removeprefix("#")} if "href" in found else set()
        assert "style" not in found  # the page's policy forbids it
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert "style" not in dict(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "caption"):
            self.texts.append(data)


def test_the_page_leads_with_the_verdict_and_has_every_section() -> None:
    outline = Outline(html(release()))
    assert outline.texts == [
        "PASS: may ship (smoke judge)",
        "Rules of the policy",
        "Arms",
        "Utility against harm",
        "Harmful rate by category",
        "harmful",
        "Layers",
        "Cosine of each layer's update with its safety projection",
        "Transcripts",
        "Provenance",
    ]
    assert outline.targets <= outline.ids


def test_a_block_says_first_what_is_missing() -> None:
    made = release(policy=STRICT)
    page, text = html(made), markdown(made)
    assert Outline(page).texts[:2] == ["BLOCK: must not ship (smoke judge)", "Missing for a pass"]
    assert page.index("gain kept 95.0 %") < page.index("Rules of the policy")
    assert text.startswith("# BLOCK: must not ship (smoke judge)\n")
    assert text.index("gain kept 95.0 %") < text.index("## Rules of the policy")


@pytest.mark.parametrize(
    ("approved", "said", "standing"),
    [
        (None, "PASS: may ship once a person has signed", "cannot_tell"),
        (True, "PASS: may ship, signed by <b>alice", "pass"),
        (False, "NOT RELEASED: no person let it through", "block"),
    ],
)
def test_every_form_leads_with_what_a_person_said(approved: bool | None, said: str, standing: str) -> None:
    made = release(policy=POLICY.model_copy(update={"sign_off": SignOff.REQUIRED}))
    if approved is not None:
        made = made.model_copy(update={"answer": answer(approved=approved, by="<b>alice")})
    page, outline = html(made), Outline(html(made))
    assert outline.texts[0] == f"{said} (smoke judge)"
    assert f'<header class="{standing}">' in page
    written = said.replace("<", "&lt;").replace(">", "&gt;")
    assert f"<title>{written} (smoke judge): SafeMERGE</title>" in page
    assert markdown(made).startswith(f"# {written} (smoke judge)\n")
    assert f"**{written} (smoke judge)**" in card(made)


def test_a_report_of_little_is_a_page_too() -> None:
    made = release(merge=None, transcripts=[]).model_copy(
        update={"utility": None, "provenance": Provenance(created="now", safemerge_version="0")}
    )
    page = html(made)
    assert "None: no answers were given beside the reports." in page
    assert "Utility against harm" not in Outline(page).texts
    assert "## Merge" not in card(made)


def test_layers_that_nobody_told_of_are_asked_for() -> None:
    page = html(release(merge=None))
    assert "Made without --merge: " in page
    assert Outline(page).targets <= Outline(page).ids
    assert "## Layers\n\nMade without --merge: " in markdown(release(merge=None)).replace("\\", "")
    for text in (html(release()), markdown(release())):
        assert "Made without" not in text


def test_an_adapter_that_was_not_repaired_has_no_layers_to_ask_for() -> None:
    of = reports()
    of["candidate"] = of["fine_tuned"]
    made = release(of, merge=None)
    assert "Layers" not in Outline(html(made)).texts
    assert "## Layers" not in markdown(made)


def test_all_forms_have_the_same_figures() -> None:
    made = release()
    page = re.sub("<[^>]+>", "", html(made))
    for text in (page, markdown(made).replace("\\", ""), card(made).replace("\\", "")):
        assert "15.0 % [7.1–29.1]" in text
        assert "It won back 86 % [" in text
        assert "5 of 10 layers" not in text
        assert "6 of 10 layers merged" in text


def test_the_page_stays_small_and_loads_nothing() -> None:
    page = html(release())
    assert len(page) < 200_000
    assert not re.search(r"(src|href)=[\"'](?!#)", page)
    assert page.count("<script>") == page.count("<style>") == 1
    assert "default-src 'none'" in page


def test_markdown_is_read_as_tables_and_fences() -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(release()))
    assert sum(token.type == "table_open" for token in tokens) == 4
    assert sum(token.type == "fence" for token in tokens) == 20 * 6


def test_a_fence_is_longer_than_any_in_its_text() -> None:
    text = "~~~~\n# big\n```"
    tokens = MarkdownIt("commonmark").parse("\n".join(fenced(text, 7)))
    assert [token.content for token in tokens if token.type == "fence"] == [f"{text}\n"]
    assert tokens[2].content == "… 7 more characters in transcripts.jsonl"


# --- the model card -----------------------------------------------------------------


def test_the_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card(release()), encoding="utf-8")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == {
        "base_model": "org/model-instruct",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "peft", "safety", "safemerge"],
        "datasets": ["org/safe-answers"],
    }
    assert loaded.text.lstrip().startswith("<!-- made by safemerge")
    assert "AutoTokenizer.from_pretrained(\"org/model-instruct\", revision='abc123')" in loaded.text


@pytest.mark.parametrize("source", ["/models/aligned", "./aligned", "C:\\aligned", "a b/c", "org/x\n  y: z"])
def test_what_is_not_on_the_hub_is_no_metadata(source: str) -> None:
    provenance = PROVENANCE.model_copy(update={"models": {"aligned_model": source}, "datasets": {}})
    made = release().model_copy(update={"provenance": provenance})
    assert {"base_model", "datasets", "license"}.isdisjoint(metadata(made))
    _, head, text = card(made).split("---\n", 2)
    assert yaml.safe_load(head) == metadata(made)
    assert '"<base model>"' in text


def test_the_card_of_a_block_says_why() -> None:
    text = card(release(policy=STRICT))
    assert "**BLOCK: must not ship (smoke judge)**" in text
    assert "must be at least 99 %" in text
    assert "A smoke judge gave the flags" in text
