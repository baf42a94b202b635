"""The documentation's code runs: every Python block and every command, on small models under the names it uses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import stand_ins
from packaging.requirements import Requirement

import hf_tome
from hf_tome.adapters.encoders.families import registry as families
from hf_tome.cli.app import run
from hf_tome.evaluation.tasks.registry import TASKS
from hf_tome.merging import methods as matching

pytestmark = pytest.mark.usefixtures("costs_hardly_measured")

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
HEADING = re.compile(r'id="([\w.]+)" class="doc doc-heading">\s*<span class="doc doc-object-name doc-(\w+)-name"')
INSTALL = re.compile(r"pip install ([^`\n&#]+)")
TABLES = (families.TOWERS, matching._METHODS, TASKS)


def blocks(page):
    """Return (language, code, line) of the blocks that run; those that do not say why."""
    text = page.read_text(encoding="utf-8")
    return [
        (found["language"], found["code"], text.count("\n", 0, found.start("code")))
        for found in BLOCK.finditer(text)
        if found["language"] in ("python", "sh") and not found["why"]
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return stand_ins.write_stand_ins(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def folder(written, tmp_path, monkeypatch):
    """A working directory in which what the pages name is there."""
    for entry in written.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tables():
    """The tables as they were, whatever rows a page adds."""
    before = [dict(table) for table in TABLES]
    yield
    for table, rows in zip(TABLES, before):
        table.clear()
        table.update(rows)


def run_commands(code):
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "hf-tome", f"{line!r} is no command of ours: say why it is not run"
            assert run(words[1:]) == 0, line


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_code_runs(page, folder, tables, monkeypatch):
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # transformers looks up where a model's class is from
    for language, code, line in blocks(page):
        if language == "sh":
            run_commands(code)
        else:  # the lines before it are kept, so that an error names the line in the page
            exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)


def installed(text):
    """Return the arguments of every `pip install` that are no options."""
    return [word for found in INSTALL.finditer(text) for word in shlex.split(found[1]) if not word.startswith("-")]


def check_installable(argument):
    path, _, extras = argument.partition("[")
    if path.startswith("."):
        assert (ROOT / path / "pyproject.toml").is_file(), argument
        for extra in filter(None, extras.rstrip("]").split(",")):
            assert f"\n{extra} = [" in (ROOT / path / "pyproject.toml").read_text(encoding="utf-8"), argument
    else:
        url = Requirement(argument).url  # packaging takes any word for a URL, pip none without a scheme
        assert url is None or "://" in url, argument


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted(ROOT.glob("integrations/*/README.md"))],
    ids=lambda page: f"{page.parent.name}-{page.stem}",
)
def test_what_pages_install_can_be_installed(page):
    for argument in installed(page.read_text(encoding="utf-8")):
        check_installable(argument)


def test_install_lines_are_read():
    assert installed((ROOT / "README.md").read_text(encoding="utf-8")) == ["torch", ".[eval]"]
    assert installed("`pip install -e '.[space]'`, and pip install timm  # beside") == [".[space]", "timm"]
    for wrong in ("hf_tome[eval] @ .", ".[evil]", "./nowhere"):
        with pytest.raises(AssertionError):
            check_installable(wrong)


def test_pages_are_read():
    assert len(blocks(ROOT / "docs" / "index.md")) >= 4
    with pytest.raises(AssertionError, match="no command of ours"):
        run_commands("pip install hf_tome")
    assert not blocks(ROOT / "LICENSE")


def test_site_is_built_without_warnings(tmp_path):
    """Warnings are errors: among them links to pages, headings and pictures that are not there."""
    pytest.importorskip("mkdocstrings")
    arguments = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path), "--config-file", "mkdocs.yml"]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api" / "index.html").read_text()
    assert "bipartite_soft_matching" in reference
    assert "*optional*" not in reference, "types as a docstring writes them; the signature has them"
    shown = dict(HEADING.findall(reference))
    for name in hf_tome.__all__:
        if name != "__version__":
            kind = "class" if isinstance(getattr(hf_tome, name), type) else "function"
            assert shown.get(f"hf_tome.{name}") == kind, name
