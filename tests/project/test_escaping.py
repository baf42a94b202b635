"""Names of models, samples and labels stay text, in Markdown and in CSV."""

import csv
import io

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hf_tome import MergeConfig
from hf_tome.cli.common import Format
from hf_tome.cli.tables import WRITERS
from hf_tome.escaping import csv_cell, markdown_code, markdown_text
from hf_tome.evaluation.reporting.model_card import write_results_card
from hf_tome.evaluation.reporting.tables import to_csv, to_markdown, write_report
from hf_tome.evaluation.store.results import Results

EVIL = [
    "a|b",
    "a\nb: c",
    "`code`",
    "``",
    "<b>bold</b>",
    "<script>alert(1)</script>",
    "&lt;",
    "[text](http://x)",
    "![picture](x.png)",
    "[x]: y",
    "[a][b]",
    "# title",
    "- item",
    "1. item",
    "1) item",
    "> quote",
    "*stars*",
    "_under_ __scores__",
    "~~gone~~",
    "$x$",
    "back\\slash",
    "a\\|b",
    "=1+1",
    "---",
    "===",
    "+ x",
    "@x",
]
PLAIN = [
    "r=8",
    "method=mame,threshold=0.8",
    "r=[0,8,8]",
    "r=(16,-1.0)",
    "deit_tiny-patch16",
    "a b",
    "org/name",
    "50 %",
]
TEXT = st.text(st.sampled_from("ab \\`*_{}[]()#+-.!|<>&;:=~$@1\n\t'\""), max_size=12)


def shown(source, text):
    """The text that a reader sees: of the only paragraph, list item or cell that was written."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(source)
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children}
    assert kinds <= {"text", "text_special"}, (source, kinds)
    return ["".join(child.content for child in token.children) for token in inline], tokens


@given(text=TEXT | st.sampled_from(EVIL + PLAIN))
@example(text="_")
def test_markdown_shows_the_text(text):
    expected = " ".join(text.split())
    escaped = markdown_text(text)
    cells, _ = shown(f"| a | b |\n|---|---|\n| {escaped} | end |\n", text)
    assert cells == ["a", "b", expected, "end"]
    items, tokens = shown(f"- {escaped}\n- end\n", text)
    assert items == ([expected] if expected else []) + ["end"]
    assert {token.type for token in tokens} <= {
        *("bullet_list_open", "list_item_open", "paragraph_open", "inline"),
        *("paragraph_close", "list_item_close", "bullet_list_close"),
    }
    assert shown(f"before {escaped}, after", text)[0] == [f"before {expected}, after"]


@given(text=TEXT | st.sampled_from(EVIL + PLAIN))
def test_captions_and_code(text):
    tokens = MarkdownIt("commonmark").parse(f"![{markdown_text(text)}](plot.png) {markdown_code(text)}")
    (inline,) = [token for token in tokens if token.type == "inline"]
    picture, space, code = inline.children
    assert (picture.type, space.content, code.type) == ("image", " ", "code_inline")
    expected = " ".join(text.split())
    assert picture.content.replace("\\", "") == markdown_text(text).replace("\\", "")
    assert code.content.strip() == expected


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_names_are_not_changed(text):
    assert markdown_text(text) == text
    assert csv_cell(text) == text


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_formulas_are_neutralised(text):
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(-1.5) == -1.5
    assert csv_cell(None) is None


def results(name):
    row = {"config": MergeConfig(r=8).to_dict(), "name": name, "top1": 50.0, "top5": 90.0}
    row |= {"speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6}
    environment = {"packages": {"torch": "2"}, "device_name": name, "device": "cpu", "threads": 1}
    environment |= {"platform": name, "python": "3"}
    run = {"task": "image-classification", "model": name, "dtype": "float32", "attention": "sdpa", "batch_size": 1}
    data = {"id": name, "split": name, "num_samples": 2, "skipped": [{"sample": name, "reason": name}]}
    return Results(environment, {**run, "notes": [name]}, data, [{**row, "name": "unmerged"}, row])


def pages(name, folder):
    """The report and the card of results whose names are all `name`."""
    found = results(name)
    write_report(found, folder, [("plot.png", name)])
    write_results_card(found, found.rows[1], folder / "card")
    return [(folder / page).read_text(encoding="utf-8") for page in ("report.md", "card/README.md")]


def structure(page):
    """What a page is made of, without its texts."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(page)
    kinds = [(token.type, token.tag, token.info) for token in tokens]
    inline = [child.type for token in tokens if token.type == "inline" for child in token.children]
    return kinds, [kind for kind in inline if kind not in ("text", "text_special")]


@pytest.mark.parametrize("name", EVIL)
def test_reports_cards_and_tables(name, tmp_path):
    found = results(name)
    assert shown(to_markdown(found), name)[0].count(" ".join(name.split())) == 1
    (header, *_, last) = csv.reader(io.StringIO(to_csv(found)))
    assert last[header.index("config")] == csv_cell(name)
    (report, card), (plain_report, plain_card) = pages(name, tmp_path / "evil"), pages("plain", tmp_path / "plain")
    assert structure(report) == structure(plain_report)
    assert structure(card.split("---\n", 2)[2]) == structure(plain_card.split("---\n", 2)[2])
    head, plain_head = (yaml.safe_load(text.split("---\n", 2)[1]) for text in (card, plain_card))
    assert head.keys() == plain_head.keys()
    assert head["base_model"] == name


@pytest.mark.parametrize("name", EVIL)
def test_rows_of_other_commands(name):
    rows = [{"name": name, "value": 1.5}]
    assert shown(WRITERS[Format.md](rows), name)[0][2] == " ".join(name.split())
    assert list(csv.reader(io.StringIO(WRITERS[Format.csv](rows))))[1] == [csv_cell(name), "1.5"]
