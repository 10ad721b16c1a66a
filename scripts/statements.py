#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks tests/specification/statements.tsv, the table of every normative statement of MQTT 3.1.1 and 5.0.

Prints how many statements are covered (enforced and tested), excepted (a reason says why not) and uncovered, and
fails if one is uncovered or if table and tree disagree; tests/specification/README.md has the rules.

    scripts/statements.py [--allow-open]    with --allow-open, uncovered statements are only listed
"""

import ast
import functools
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/specification/statements.tsv"
COLUMNS = ["version", "id", "meaning", "enforced", "test", "reason"]

# Section and its last number, or first-last where the numbers don't begin with 1. Appendix B of each document, with
# the corrections that the README names.
STATEMENTS = {
    "3.1.1": """
        1.5.3:3 2.2.2:2 2.3.1:7
        3.1.0:2 3.1.2:24 3.1.3:11 3.1.4:5 3.2.0:1 3.2.2:6 3.3.1:12 3.3.2:3 3.3.4:1 3.3.5:2 3.6.1:1 3.8.1:1 3.8.3:4
        3.8.4:6 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.12.4:1 3.14.1:1 3.14.4:3
        4.1.0:2 4.3.1:1 4.3.2:2 4.3.3:2 4.4.0:1 4.5.0:2 4.6.0:6 4.7.1:3 4.7.2:1 4.7.3:4 4.8.0:2
        6.0.0:4 7.0.0:2 7.1.1:1 7.1.2:1""",
    "5.0": """
        1.5.4:3 1.5.5:1 1.5.7:1 2.1.3:1 2.2.1:2-6 2.2.2:1
        3.1.0:2 3.1.2:30 3.1.3:12 3.1.4:6 3.2.0:2 3.2.2:22 3.3.1:13 3.3.2:20 3.3.4:10 3.4.2:3 3.5.2:3 3.6.1:1 3.6.2:3
        3.7.2:3 3.8.1:1 3.8.3:5 3.8.4:8 3.9.2:2 3.9.3:2 3.10.1:1 3.10.3:2 3.10.4:6 3.11.2:2 3.11.3:2 3.12.4:1 3.14.0:1
        3.14.1:1 3.14.2:4 3.14.4:3 3.15.1:1 3.15.2:3
        4.1.0:2 4.2:1 4.3.1:1 4.3.2:5 4.3.3:13 4.4.0:2 4.5.0:2 4.6.0:6 4.7.0:1 4.7.1:2 4.7.2:1 4.7.3:4 4.8.2:6 4.9.0:3
        4.12.0:7 4.12.1:2 4.13.1:1 4.13.2:1
        6.0.0:4""",
}

CITATION = re.compile(r"\[(MQTT5?)-(\d[^\]\n]*)\]")
SUFFIXES = {".rs", ".py", ".md", ".js", ".go", ".sh", ".toml", ".yml", ".yaml", ".txt"}
SKIPPED = {"target", "node_modules", "__pycache__"}


def main():
    allow_open = sys.argv[1:] == ["--allow-open"]
    if sys.argv[1:] and not allow_open:
        sys.exit(__doc__)
    faults = []
    rows = read_table(faults)
    check_list(rows, faults)
    check_citations(faults)
    uncovered = [row for row in rows if not check_row(row, faults)]

    for version in STATEMENTS:
        of = [row for row in rows if row["version"] == version]
        covered = sum(is_covered(row) for row in of)
        open_rows = sum(row["version"] == version for row in uncovered)
        print(
            f"{version}: {covered} covered, {len(of) - covered - open_rows} excepted, {open_rows} uncovered, {len(of)} total"
        )
    for row in uncovered:
        print(f"uncovered: {row['version']} {row['id']}")
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults or (uncovered and not allow_open) else 0)


def read_table(faults):
    rows = []
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    if lines[1].split("\t") != COLUMNS:
        sys.exit(f"{TABLE}: line 2 must name the columns {COLUMNS}")
    for number, line in enumerate(lines[2:], 3):
        cells = line.split("\t")
        if len(cells) != len(COLUMNS) or "" in cells:
            faults.append(f"line {number}: {len(COLUMNS)} columns, none empty, separated by tabs")
            continue
        rows.append(dict(zip(COLUMNS, cells)))
    return rows


def check_list(rows, faults):
    """Every statement once, in the order of the documents."""
    expected = [(version, id) for version in STATEMENTS for id in ids_of(version)]
    found = [(row["version"], row["id"]) for row in rows]
    for version, id in expected:
        if (count := found.count((version, id))) != 1:
            faults.append(f"{version} {id}: {count} rows")
    for version, id in found:
        if (version, id) not in expected:
            faults.append(f"{version} {id}: no such statement")
    if sorted(found) == sorted(expected) and found != expected:
        first = next(pair for pair in zip(found, expected) if pair[0] != pair[1])
        faults.append(f"order: {' '.join(first[0])} where {' '.join(first[1])} belongs")


@functools.cache
def ids_of(version):
    ids = []
    for item in STATEMENTS[version].split():
        section, numbers = item.split(":")
        first, last = numbers.split("-") if "-" in numbers else (1, numbers)
        ids += [f"MQTT-{section}-{number}" for number in range(int(first), int(last) + 1)]
    return ids


def check_citations(faults):
    """Whatever the tree cites exists."""
    for path in tree():
        for number, line in enumerate(text_of(path).splitlines(), 1):
            for prefix, rest in CITATION.findall(line):
                version = "5.0" if prefix == "MQTT5" else "3.1.1"
                if f"MQTT-{rest}" not in ids_of(version):
                    faults.append(f"{path}:{number}: {version} has no statement [{prefix}-{rest}]")


def check_row(row, faults):
    """Whether the row is complete; what it names must be there and cite the statement."""
    name = f"{row['version']} {row['id']}"
    cited = citation(row)
    for path in several(row["enforced"]):
        if not (ROOT / path).is_file():
            faults.append(f"{name}: no file {path}")
        elif cited not in text_of(path):
            faults.append(f"{name}: {path} does not cite {cited}")
    for test in several(row["test"]):
        path, _, function = test.partition("::")
        if not (ROOT / path).is_file():
            faults.append(f"{name}: no file {path}")
        elif (text := tests_of(path).get(function)) is None:
            faults.append(f"{name}: no test {test}")
        elif cited not in text:
            faults.append(f"{name}: {test} does not cite {cited}")
    if is_covered(row) and row["reason"] != "-":
        faults.append(f"{name}: a reason although enforced and tested")
    return row["meaning"] != "-" and (is_covered(row) or row["reason"] != "-")


def is_covered(row):
    return "-" not in (row["meaning"], row["enforced"], row["test"])


def citation(row):
    return row["id"].replace("MQTT-", "[MQTT5-" if row["version"] == "5.0" else "[MQTT-") + "]"


def several(cell):
    return [] if cell == "-" else cell.split(" ")


def tree():
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix in SUFFIXES:
                yield Path(folder, name).relative_to(ROOT).as_posix()


@functools.cache
def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


@functools.cache
def tests_of(path):
    """Test name -> the text in which it may cite: itself, the comments above it, and the table its cases come from."""
    return python_tests(path) if path.endswith(".py") else rust_tests(path)


def python_tests(path):
    lines = text_of(path).splitlines()
    module = ast.parse(text_of(path))
    functions = [node for node in module.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    spans = {node: (min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno) for node in functions}
    inside = {line for first, last in spans.values() for line in range(first, last)}
    tables = "\n".join(line for number, line in enumerate(lines) if number not in inside)
    assigned = {
        name.id
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }
    found = {}
    for node, (first, last) in spans.items():
        if not node.name.startswith("test_"):
            continue
        text = "\n".join(lines[comments_above(lines, first, "#") : last])
        cases = {name.id for each in node.decorator_list for name in ast.walk(each) if isinstance(name, ast.Name)}
        found[node.name] = text + "\n" + tables if cases & assigned else text
    return found


def rust_tests(path):
    table = (Path(path).parent / "table.rs").as_posix()
    tables = rust_functions(table) if path != table and (ROOT / table).is_file() else {}
    found = {}
    for name, (is_test, text) in rust_functions(path).items():
        if is_test:
            rows = (tables[called][1] for called in re.findall(r"\b(\w+)\(\)", text) if called in tables)
            found[name] = "\n".join([text, *rows])
    return found


@functools.cache
def rust_functions(path):
    """Relies on rustfmt: a function ends at the first closing brace that is indented as its `fn` is."""
    lines = text_of(path).splitlines()
    found = {}
    for number, line in enumerate(lines):
        if not (head := re.match(r"( *)(?:pub(?:\([a-z]+\))? )?(?:async )?fn (\w+)", line)):
            continue
        last = next((n for n in range(number, len(lines)) if lines[n] == head[1] + "}"), number)
        first = comments_above(lines, number, "//", "#[")
        is_test = any(re.match(r" *#\[(\w+::)?test\b", above) for above in lines[first:number])
        found[head[2]] = (is_test, "\n".join(lines[first : last + 1]))
    return found


def comments_above(lines, number, *starts):
    while number > 0 and lines[number - 1].lstrip().startswith(starts):
        number -= 1
    return number


if __name__ == "__main__":
    main()
