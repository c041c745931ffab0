"""The house: links and import names, imports that point inward only, and rules that hold for every file."""

from __future__ import annotations

import ast
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from arvid import registry
from arvid.cli import COMMANDS
from arvid.commands._suites import SUITES
from arvid.data.prepare.facts import DATASETS

ROOT = Path(__file__).parents[1]
LINKS = {
    f"arvid/{name}": f"../{name}" for name in ("paradigms", "tokenizers", "configs", "benchmarks")
} | {"arvid/test_contracts.py": "../tests/test_contracts.py"}
PLUG_INS = {"paradigms", "tokenizers"}
FORBIDDEN_FOLDERS = ("datasets", "diffusers", "evaluate", "lightning", "models", "transformers")


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SOURCES = [
    path
    for path in _files("arvid", "paradigms", "tokenizers", "benchmarks", "tests")
    if not any(place.is_symlink() for place in (path, *path.parents))
]
"""Every Python file once, under its real path."""
IDS = [str(path.relative_to(ROOT)) for path in SOURCES]
every_source = pytest.mark.parametrize("path", SOURCES, ids=IDS)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` gives a.b, since b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run(*command: str) -> str:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    ).stdout


# --- links and import names


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_links_are_relative_links(link: str, target: str) -> None:
    assert (ROOT / link).is_symlink()
    assert (ROOT / link).readlink() == Path(target)


def test_links_are_committed_as_links() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    modes = [line.split()[0] for line in _run("git", "ls-files", "-s", *LINKS).splitlines()]
    assert modes == ["120000"] * len(LINKS)


def test_no_package_shadows_another() -> None:
    """With an __init__.py the root's tokenizers/ would shadow Hugging Face's package of that name."""
    for folder in ("paradigms", "tokenizers", "configs", "benchmarks"):
        assert not (ROOT / folder / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert not [name for name in FORBIDDEN_FOLDERS if (ROOT / name).exists()]


IMPORT_TRANSFORMERS = (
    "import tokenizers, transformers; from transformers import AutoTokenizer;"
    "assert 'site-packages' in tokenizers.__file__, tokenizers.__file__"
)


def test_transformers_from_the_root_by_python() -> None:
    _run(sys.executable, "-c", f"{IMPORT_TRANSFORMERS}; print(AutoTokenizer)")


def test_transformers_from_the_root_by_pytest(tmp_path: Path) -> None:
    test = tmp_path / "test_one.py"
    test.write_text(f"def test_one():\n    {IMPORT_TRANSFORMERS}\n")
    assert "1 passed" in _run(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{test}"
    )


def test_transformers_from_the_root_by_console_script() -> None:
    script = shutil.which("arvid", path=str(Path(sys.executable).parent)) or shutil.which("arvid")
    if script is None:
        pytest.skip("the command arvid is not installed")
    assert re.search(r"import transformers +works", _run(script, "doctor"))


def test_hugging_face_tokenizers_lie_outside_the_repository() -> None:
    import tokenizers

    assert (ROOT / "tokenizers") not in Path(tokenizers.__file__).parents


@pytest.mark.parametrize("kind", sorted(PLUG_INS))
def test_plug_ins_pickle_by_their_import_name(kind: registry.Kind) -> None:
    for name in registry.names(kind):
        cls = registry.get(kind, name)
        assert cls.__module__.split(".")[:3] == ["arvid", kind, name]
        assert pickle.loads(pickle.dumps(cls)) is cls


def test_wheel_holds_plain_files(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs the dev extra")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"arvid/{path.relative_to(ROOT)}"
        for folder in ("paradigms", "tokenizers", "configs", "benchmarks")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in {".py", ".yaml", ".csv"}
    }
    assert expected | {"arvid/test_contracts.py"} <= packed
    assert not [name for name in packed if name.startswith(("paradigms/", "tests/", "benchmarks/"))]


# --- imports point inward only: benchmarks -> (paradigms, tokenizers) -> arvid


def _may_not_import(path: Path) -> tuple[str, ...]:
    top = path.relative_to(ROOT).parts[0]
    others = {
        "arvid": ("arvid.paradigms", "arvid.tokenizers"),
        "paradigms": ("arvid.tokenizers",),
        "tokenizers": ("arvid.paradigms",),
    }
    bare = ("paradigms", "benchmarks", "tests")
    return others.get(top, ()) + bare


@every_source
def test_imports_point_inward_only(path: Path) -> None:
    outward = _may_not_import(path)
    wrong = [n for n in _imports(_tree(path)) if any(f"{n}.".startswith(f"{o}.") for o in outward)]
    assert not wrong


def test_the_rule_sees_an_outward_import() -> None:
    tree = ast.parse("def f():\n    from arvid import paradigms\n    import arvid.tokenizers.vae3d")
    assert list(_imports(tree)) == ["arvid.paradigms", "arvid.tokenizers.vae3d"]


# --- rooms: a folder of the core imports only from those before it

ROOMS = (
    "ground",
    "nn",
    "data",
    "metrics",
    "sampling",
    "training",
    "evaluation",
    "planning",
    "released",
    "suites",
    "report",
    "experiments",
    "api",
    "commands",
    "roof",
)
"""Folders of arvid/, from the lowest. The files of arvid/ itself are the ground, but for those of the roof."""
ROOF = {"arvid/__init__.py", "arvid/__main__.py", "arvid/cli.py"}
FOR_PLUG_INS = ROOMS[: ROOMS.index("evaluation")]
"""What paradigms and tokenizers may import from."""


def _room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    if str(relative) in ROOF:
        return "roof"
    return relative.parts[1] if len(relative.parts) > 2 else "ground"


def _room_of_import(name: str) -> str | None:
    """The room of a dotted name; None for other packages and plug-ins."""
    first, *rest = name.split(".")
    if first != "arvid" or not rest or rest[0] in LINKED:
        return None
    if rest[0] in ROOMS:
        return rest[0]
    return _room(ROOT / "arvid" / f"{rest[0]}.py")


LINKED = {Path(link).name for link in LINKS}
CORE = [path for path in SOURCES if path.relative_to(ROOT).parts[0] == "arvid"]
PARTS = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PLUG_INS]


def test_every_folder_is_a_room() -> None:
    folders = {path.name for path in (ROOT / "arvid").iterdir() if (path / "__init__.py").exists()}
    assert folders - LINKED == set(ROOMS) - {"ground", "roof"}


@pytest.mark.parametrize("path", CORE, ids=str)
def test_imports_never_point_upward(path: Path) -> None:
    """So there is no cycle of folders either. Imports inside functions and for type checkers count."""
    own = ROOMS.index(_room(path))
    rooms = {name: _room_of_import(name) for name in _imports(_tree(path))}
    assert not {n: room for n, room in rooms.items() if room and ROOMS.index(room) > own}


@pytest.mark.parametrize("path", PARTS, ids=str)
def test_plug_ins_import_neither_evaluation_nor_report(path: Path) -> None:
    rooms = {name: _room_of_import(name) for name in _imports(_tree(path))}
    assert not {n: room for n, room in rooms.items() if room and room not in FOR_PLUG_INS}


def test_no_file_is_there_for_tests_alone() -> None:
    """Another file of the product imports it, or the registry, a configuration or the documentation names it."""
    product = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "tests"]
    imported = {name for path in product for name in _imports(_tree(path))}
    named = {
        target.partition(":")[0] for table in registry.TABLES.values() for target in table.values()
    }
    named |= {f"arvid.commands.{name}" for name in (*COMMANDS, "import_")}
    named |= set(SUITES.values())
    named |= {facts.module for facts in DATASETS}
    for kind in registry.MODULE_PREFIXES:
        named |= {registry.get(kind, name).__module__ for name in registry.names(kind)}
    texts = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    written = "\n".join(text.read_text() for text in texts)
    unused = []
    for path in CORE + PARTS:
        relative = path.relative_to(ROOT).with_suffix("")
        module = ".".join(
            relative.parts if relative.parts[0] == "arvid" else ("arvid", *relative.parts)
        )
        is_driver = relative.name.endswith("_driver")  # runs in another environment, as text
        if relative.name in ("__init__", "__main__") or is_driver or module in named | imported:
            continue
        if not any(name.startswith(f"{module}.") for name in imported) and module not in written:
            unused.append(module)
    assert not unused


# --- rules for every file


@every_source
def test_imports_are_absolute(path: Path) -> None:
    """A plug-in file has two paths, so a relative import would have two meanings."""
    nodes = (node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom))
    assert not [node.lineno for node in nodes if node.level]


@every_source
def test_no_code_of_strangers_is_run(path: Path) -> None:
    """Checkpoints are read with weights_only=True, and nothing asks for trust_remote_code."""
    for call in (node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)):
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("trust_remote_code", "False") == "False", call.lineno
        if ast.unparse(call.func) == "torch.load":
            assert keywords.get("weights_only") == "True", call.lineno


@every_source
def test_no_function_is_over_100_lines(path: Path) -> None:
    functions = (n for n in ast.walk(_tree(path)) if isinstance(n, ast.FunctionDef))
    assert not [f.name for f in functions if f.end_lineno - f.lineno >= 100]
