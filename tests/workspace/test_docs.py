"""The documents match the code: links, flags, names, examples, and no word that should not be there."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from omnihuman_core import cli as core_cli
from omnihuman_core.model_dir import GenerationSettings
from omnihuman_core.plugins import KINDS
from omnihuman_infer import GenerateRequest, cli, loading, presets
from omnihuman_train.cli import parser as train_parser
from tests.infer.files import voice, write_picture, write_wav
from tests.infer.models import save_toy

from .documents import DOCUMENTS, Block, Document, parse
from .members import ROOT

MODULE = re.compile(r"(?<![\w./-])(omnihuman_(?:core|vae|conditions|train|infer|kernels)(?:\.\w+)*)(:\w+(?:\.\w+)*)?")
PLACE = re.compile(r"(?<![\w./-])(?:docs|tests|packages|kernels|examples|benchmarks)/[\w./-]+(?:::\w+)?")
GROUP = re.compile(r"omnihuman\.(\w+)\.v\d+")
# Folders that a command makes.
MADE_LATER = {"benchmarks/results"}
FLAG = re.compile(r"--[a-z][a-z-]*")

# Leftovers, praise, and paths of one machine.
FORBIDDEN = re.compile(
    r"\b(TODO|FIXME|XXX|TBD|coming soon|lorem ipsum|state[- ]of[- ]the[- ]art|cutting[- ]edge|blazing\w*|seamless\w*"
    r"|revolutionary|game[- ]chang\w*|effortless\w*|world[- ]class|best[- ]in[- ]class|unleash\w*|powerful)\b"
    r"|(?<![\w.~])/(home|root|opt|mnt|work|Users|tmp)/\w",
    re.I,
)
# Results of the paper's own, closed model (its tables): none of them may ever look like a figure of ours.
PAPER_RESULTS = re.compile(
    r"\b(5\.199|31\.435|46\.393|7\.443|31\.641|27\.031|47\.561|4\.987|36\.01|43\.74|6\.938|33\.27|31\.15|43\.54)\b"
)

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
GUIDES = {document.name: document for document in DOCUMENTS}


def named_parsers() -> dict[str, argparse.ArgumentParser]:
    """Parsers of the command lines by what a command begins with."""
    found = {
        "omnihuman-core": core_cli._parser(),
        "omnihuman-infer": cli._parser(),
        "omnihuman-train": train_parser(),
    }
    waiting = list(found.items())
    while waiting:
        name, parser = waiting.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [(f"{name} {word}", sub) for word, sub in action.choices.items()]
        found[name] = parser
    return found


PARSERS = {name: set(parser._option_string_actions) for name, parser in named_parsers().items()}


def torchrun_flags() -> set[str]:
    from torch.distributed.run import get_args_parser

    flags = get_args_parser()._option_string_actions
    return set(flags) | {flag.replace("_", "-") for flag in flags}


TORCHRUN = torchrun_flags()


def flags_of_script(script: Path) -> set[str]:
    return set(re.findall(r'add(?:_argument)?\(\s*"(--[a-z-]+)"', script.read_text(encoding="utf-8")))


def known_flags(words: list[str]) -> set[str] | None:
    """Flags of the command that ``words`` call; None where it is none of ours."""
    for start, word in enumerate(words):
        if word == "pip":
            return None
        if word in {"omnihuman-core", "omnihuman-infer", "omnihuman-train"}:
            names = (" ".join(words[start : start + length]) for length in (3, 2, 1))
            found = PARSERS[next(name for name in names if name in PARSERS)]
            return found | TORCHRUN if "torchrun" in words[:start] else found
        if word.endswith(".py") and (ROOT / word).is_file():
            return flags_of_script(ROOT / word)
    return None


def wrong_flags(document: Document) -> list[str]:
    every = TORCHRUN.union(*PARSERS.values(), *map(flags_of_script, (ROOT / "benchmarks").rglob("*.py")))
    faults = []
    for words in document.commands():
        known = known_flags(words)
        if known is None and words[0].startswith("--"):
            # A flag on its own, named in a sentence.
            known = every
        if known is not None:
            faults += [flag for word in words for flag in FLAG.findall(word)[:1] if word.startswith("--")
                       and flag not in known]  # fmt: skip
    return faults


def wrong_names(document: Document) -> list[str]:
    """Dotted names in code that do not import, and paths that do not exist."""
    faults = []
    for span in document.spans:
        for module, attribute in MODULE.findall(span):
            name = module + attribute.replace(":", ".")
            if not importable(name):
                faults.append(name)
        for kind in GROUP.findall(span):
            if kind not in KINDS:
                faults.append(span)
        if any(sign in span for sign in "*<{"):
            continue
        for place in PLACE.findall(span):
            file, _, test = place.partition("::")
            # A package's README names paths of the package.
            found = [path for top in (ROOT, document.path.parent) if (path := top / file.rstrip("./")).exists()]
            if place.rstrip("/") in MADE_LATER:
                continue
            if not found or (test and not re.search(rf"^(def|class) {test}\b", found[0].read_text(), re.M)):
                faults.append(place)
    return faults


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module, a class or a dataclass has."""
    parts = name.split(".")
    if parts[0] == "omnihuman_kernels" and find_spec("triton") is None:
        return True
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if hasattr(found, part):
                found = getattr(found, part)
            elif part in getattr(found, "__dataclass_fields__", {}):
                found = found.__dataclass_fields__[part]
            else:
                return False
        return True
    return False


def broken_links(document: Document) -> list[str]:
    faults = []
    for link in document.links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (document.path.parent / file).resolve() if file else document.path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in parse(target).anchors):
            faults.append(link)
    return faults


def test_documents_are_there():
    guides = ("quickstart", "inference", "contracts", "plugins", "conventions", "paper_map", "pitfalls")
    assert {"ARCHITECTURE.md", "examples/README.md", *(f"docs/{name}.md" for name in guides)} <= set(GUIDES)


@each_document
def test_links_lead_somewhere(document):
    assert broken_links(document) == []


@each_document
def test_flags_exist(document):
    assert wrong_flags(document) == []


@each_document
def test_names_and_paths_exist(document):
    assert wrong_names(document) == []


@each_document
def test_no_word_that_should_not_be_there(document):
    text = document.path.read_text(encoding="utf-8")
    assert [match[0] for match in FORBIDDEN.finditer(text)] == []
    assert [match[0] for match in PAPER_RESULTS.finditer(text)] == []


@each_document
def test_python_compiles(document):
    for block in document.blocks:
        if block.info.startswith("python"):
            assert block.info in {"python", "python run"}, f"line {block.line}: {block.info}"
            compile(block.text, f"{document.name}:{block.line}", "exec")


RUNNABLE = [document for document in DOCUMENTS if any(block.info == "python run" for block in document.blocks)]


@pytest.mark.parametrize("document", RUNNABLE, ids=lambda document: document.name)
def test_python_runs(document, tmp_path, monkeypatch):
    """Blocks marked ``python run``, one after the other in one namespace, in a folder with a picture and a voice.

    A model of toy widths stands in for the shipped one, so that this takes seconds.
    """
    write_picture(tmp_path / "me.png")
    write_wav(tmp_path / "me.wav", voice(1.0))
    toy = save_toy(tmp_path / "toy")

    def directory(model: str) -> Path:
        return toy if model == "tiny" else presets.model_directory(model)

    monkeypatch.setattr(loading, "model_directory", directory)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "document"}
    for block in document.blocks:
        if block.info == "python run":
            exec(compile("\n" * (block.line - 1) + block.text, document.name, "exec"), namespace)


def test_inference_guide_names_every_flag_and_setting():
    text = GUIDES["docs/inference.md"].path.read_text(encoding="utf-8")
    flags = PARSERS["omnihuman-infer generate"] - {"-h", "--help"}
    assert {flag for flag in flags if f"`{flag}`" not in text} == set()
    fields = [field.name for made in (GenerateRequest, GenerationSettings) for field in dataclasses.fields(made)]
    assert {field for field in fields if f"`{field}`" not in text} == set()


CONTRACTS = {
    "VideoVAE": "vae",
    "Backbone": "backbone",
    "FeatureExtractor": "extractor",
    "ConditionEncoder": "encoder",
    "StateDictAdapter": "state_dict",
    "CheckpointImporter": "importer",
}


@pytest.mark.parametrize(("title", "module"), CONTRACTS.items())
def test_contracts_guide_has_every_invariant(title, module):
    doc = importlib.import_module(f"omnihuman_core.contracts.{module}").__doc__ or ""
    (section,) = re.findall(rf"^## `{title}`\n(.*?)(?=^## |\Z)", GUIDES["docs/contracts.md"].prose, re.M | re.S)
    numbers = re.findall(r"^(\d+)\. ", doc, re.M)
    assert numbers
    assert re.findall(r"^(\d+)\. ", section, re.M) == numbers


def test_decisions_are_numbered_and_say_what_why_and_at_what_price():
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    for number, path in enumerate(decisions, start=1):
        text = path.read_text(encoding="utf-8")
        assert path.name.startswith(f"{number:04d}-")
        assert text.startswith(f"# {number}. ")
        assert [word for word in ("Decision", "Why", "Price") if f"**{word}.**" not in text] == []


def test_paper_map_says_whose_choice_each_row_is():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in GUIDES["docs/paper_map.md"].prose.splitlines()
        if line.startswith("|") and "---" not in line
    ]
    body = [row for row in rows if row[0] != "paper"]
    assert len(body) > 40
    assert {len(row) for row in body} == {4}
    for row in body:
        assert re.match(r"(paper|our choice|ours|not built)\b", row[3]), row
        assert row[3].startswith("not built") or "`" in row[1], f"no place in the code: {row}"


def planted(tmp_path: Path, text: str) -> Document:
    path = tmp_path / "planted.md"
    path.write_text(text, encoding="utf-8")
    return parse(path)


def test_faults_are_found(tmp_path):
    document = planted(
        tmp_path,
        "# Here\n\nSee [this](nowhere.md), [that](#there) and [here](#here).\n\n"
        "    omnihuman-infer generate --image a.png --wings 2\n\n"
        "`omnihuman_core.flow.magic`, `omnihuman_core.flow.path:interpolate`, `tests/nowhere.py`, `omnihuman.wing.v1`\n"
        "`omnihuman-train run --config a:b --model x`, `--feathers`, `pip install --no-deps omnihuman-infer`\n",
    )
    assert broken_links(document) == ["nowhere.md", "#there"]
    assert wrong_flags(document) == ["--wings", "--model", "--feathers"]
    assert wrong_names(document) == ["omnihuman_core.flow.magic", "tests/nowhere.py", "omnihuman.wing.v1"]


def test_blocks_are_read(tmp_path):
    document = planted(tmp_path, "text\n\n```python run\na = 1\n\n    b\n```\n\n    plain\n    more\n\nend `x`\n")
    assert document.blocks == (
        Block(info="python run", line=4, text="a = 1\n\n    b"),
        Block(info="", line=9, text="plain\nmore\n"),
    )
    assert document.spans == ["x"]


def test_forbidden_words_are_found():
    for text in ("A powerful tool", "TODO: more", "see /home/me/x"):
        assert FORBIDDEN.search(text), text
    for text in ("https://example.org/home/me", "out/demo.mp4"):
        assert not FORBIDDEN.search(text), text
    assert list(itertools.islice(PAPER_RESULTS.finditer("FID 31.435"), 1))
