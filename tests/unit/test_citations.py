"""What the code cites is in docs/, with that section."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from unit.test_layout_rules import repository_files

ROOT = Path(__file__).resolve().parents[2]
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
# `kernel-semantics.md 1, 4`, `design.md section 2`, `kernel-semantics.md 8.1 A, B`.
CITED = re.compile(r"\b([a-z-]+\.md)(?:,)?(?: section)?((?: \d+(?:\.\d)?,?)+)")


def citations() -> list[tuple[str, str, str]]:
    found = []
    for path in repository_files():
        name = str(path.relative_to(ROOT))
        if path.suffix in (".py", ".c", ".h", "") and not name.startswith("tests/unit/test_citations"):
            text = path.read_text(errors="replace")
            found += [
                (name, document, section)
                for document, sections in CITED.findall(text)
                if document != "README.md"
                for section in re.findall(r"\d+(?:\.\d)?", sections)
            ]
    return found


def test_there_are_some() -> None:
    assert len(citations()) > 15


@pytest.mark.parametrize(("name", "document", "section"), citations())
def test_a_section_that_is_cited_is_there(name: str, document: str, section: str) -> None:
    assert document in DOCS, f"{name} cites {document}"
    assert re.search(rf"^#+ {re.escape(section)}[. ]", DOCS[document], re.MULTILINE), f"{name}: {document} {section}"


@pytest.mark.parametrize("document", sorted(DOCS))
def test_links_between_documents_lead_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", DOCS[document]):
        assert (ROOT / "docs" / target).exists(), target
