"""Citations of docs/design.md lead to a number, and what the pages of the design name exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text("utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TOPS = ("conversations", "memory", "flags", "config", "benchmarks", "tests", "docs")

SECTION, GUARANTEE = re.compile(r"^## (\d+)\. ", re.M), re.compile(r"^\*\*(G\d+)\. ", re.M)
SECTIONS, GUARANTEES = SECTION.findall(DESIGN), GUARANTEE.findall(DESIGN)
# Each guarantee with its reason, its module and its proof, by number.
PROMISES = {
    number: re.split(r"^## ", text, flags=re.M)[0]
    for number, text in zip(GUARANTEES, GUARANTEE.split(DESIGN)[2::2], strict=True)
}
# A citation may break between two lines, also of comments.
CITED = re.compile(r"docs/design\.md\)?,[\s#]+(section \d+|G\d+)")
NAMED_FILE = re.compile(rf"`((?:{'|'.join(TOPS)})/[\w./]*)`")
NAMED_TEST = re.compile(r"`(test_\w+)`")
# A table, a class or a function, and the file that has it.
NAMED_IN = re.compile(r"`(\w+)` in `([\w./]+\.py)`")


def unknown_numbers(said: list[str]) -> list[str]:
    """Return the sections and guarantees among these that the page does not have."""
    known = {f"section {number}" for number in SECTIONS} | set(GUARANTEES)
    return sorted(set(said) - known)


def missing_files(text: str) -> list[str]:
    return sorted(name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists())


def sources() -> Iterator[Path]:
    for kind in ("*.py", "*.md"):
        for top in TOPS:
            yield from (ROOT / top).rglob(kind)
        yield from ROOT.glob(kind)


def cited_in(path: Path) -> list[str]:
    # This file cites what is not there, to see that noticed.
    return [] if path == Path(__file__).resolve() else CITED.findall(path.read_text("utf-8"))


def test_sections_and_guarantees_are_numbered_without_gaps() -> None:
    assert [str(number) for number in range(1, len(SECTIONS) + 1)] == SECTIONS
    assert [f"G{number}" for number in range(1, len(GUARANTEES) + 1)] == GUARANTEES
    assert len(SECTIONS) >= 12
    assert len(GUARANTEES) >= 36


def test_every_citation_leads_to_a_section_or_a_guarantee() -> None:
    cited = {str(path.relative_to(ROOT)): cited_in(path) for path in sources()}
    assert sum(map(len, cited.values())) > 5
    wrong = {name: unknown_numbers(said) for name, said in cited.items()}
    assert {name: unknown for name, unknown in wrong.items() if unknown} == {}


def test_the_page_is_cited_by_its_name_alone() -> None:
    other = re.compile(r"\bDESIGN\s+section\s+\d")
    assert [str(path) for path in sources() if other.search(path.read_text("utf-8"))] == []


def test_the_page_leads_to_its_own_numbers() -> None:
    assert unknown_numbers(re.findall(r"section \d+|\bG\d+", DESIGN, re.I)) == []


def test_a_number_that_is_not_there_would_be_noticed() -> None:
    said = CITED.findall("see docs/design.md,\n# section 99, and [x](docs/design.md), G0")
    assert unknown_numbers([*said, "section 1", "G1"]) == ["G0", "section 99"]


@pytest.mark.parametrize(
    "page", [DESIGN, CONTRIBUTING, EXTENDING], ids=["design", "contributing", "extending"]
)
def test_every_file_that_a_page_names_exists(page: str) -> None:
    assert len(NAMED_FILE.findall(page)) > 9
    assert missing_files(page) == []


def test_a_file_that_is_not_there_would_be_noticed() -> None:
    assert missing_files("`tests/project/test_design.py` `conversations/nowhere.py`") == [
        "conversations/nowhere.py"
    ]


def missing_names(text: str) -> list[str]:
    """Return the names, said as "`name` in `file`", that the file does not define."""
    return [name for name, file in NAMED_IN.findall(text) if not defines(ROOT / file, name)]


def defines(path: Path, name: str) -> bool:
    start = rf"^\s*(?:class |def )?{name}\b\s*[(:=]"
    return re.search(start, path.read_text("utf-8"), re.M) is not None


def test_every_table_and_test_that_the_guide_names_exists() -> None:
    assert len(NAMED_IN.findall(EXTENDING)) > 9
    assert missing_names(EXTENDING) == []
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests = set(NAMED_TEST.findall(EXTENDING))
    assert len(tests) > 9
    assert sorted(name for name in tests if f"def {name}(" not in code) == []


def test_a_name_that_is_not_there_would_be_noticed() -> None:
    file = "tests/project/test_design.py"
    assert missing_names(f"`DESIGN` in `{file}`, `missing_names` in `{file}`") == []
    assert missing_names(f"`NOTHING` in `{file}`") == ["NOTHING"]


@pytest.mark.parametrize("number", GUARANTEES)
def test_a_guarantee_names_its_module_and_the_test_that_proves_it(number: str) -> None:
    kept, _, proof = PROMISES[number].rpartition("Proof: ")
    _, _, kept = kept.rpartition("Kept by ")
    modules, files = NAMED_FILE.findall(kept), NAMED_FILE.findall(proof)
    assert modules
    assert all(name.split("/")[0] in ("conversations", "memory", "flags") for name in modules)
    assert files
    assert all(name.startswith("tests/") for name in files)
    code = "\n".join((ROOT / name).read_text("utf-8") for name in files)
    tests = NAMED_TEST.findall(proof)
    assert tests
    assert [name for name in tests if f"def {name}(" not in code] == []


def test_the_map_has_a_line_for_each_thing_to_change() -> None:
    """A reader finds the file of a change by its line: at most twelve, and each names files."""
    table = CONTRIBUTING.split("\n## Where to change what\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert 10 <= len(lines) <= 12
    assert [line for line in lines if not NAMED_FILE.search(line)] == []
