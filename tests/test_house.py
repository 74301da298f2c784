"""Guards that keep the house in order: who imports whom, what is public, what is never written, what an import may do."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import steersman
from steersman.version import __version__

_SRC = Path(steersman.__file__).parent
_ROOT = Path(__file__).parent.parent
_FILES = sorted(_SRC.rglob("*.py"))
_MAX_LINES = 320

# Who may import whom: a part imports parts below its own line, and on its own line only one way.
_STOREYS = (
    {"errors", "settings", "files", "facts", "intervals", "version"},
    {"models", "sae"},
    {"steering"},
    {"engine", "judges"},
    {"auto", "evals"},
    {"store"},
    {"server", "client", "scale", "cli"},
    {"__main__"},
)
_STOREY = {part: storey for storey, parts in enumerate(_STOREYS) for part in parts}


def _module(path: Path) -> str:
    parts = path.relative_to(_SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_MODULES = sorted(map(_module, _FILES))
_TREES = {_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in _FILES}


def _ids(path: Path) -> str:
    return str(path.relative_to(_SRC))


def _imported(module: str) -> Iterator[str]:
    """Modules of the package that a module imports: at its top, inside functions, for type checking."""
    for node in ast.walk(_TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "steersman")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "steersman":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in _TREES else str(node.module)


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


# --- who imports whom


def test_every_part_has_its_storey() -> None:
    assert {_part(module) for module in _MODULES} - {""} <= set(_STOREY)


@pytest.mark.parametrize("module", [module for module in _MODULES if module != "steersman"])
def test_imports_point_down(module: str) -> None:
    for imported in _imported(module):
        assert _part(imported), f"{module} imports the package's front door"
        assert _STOREY[_part(imported)] <= _STOREY[_part(module)], f"{module} imports {imported}, which stands above it"


def test_no_two_parts_import_each_other() -> None:
    arrows = {
        (_part(module), _part(imported)) for module in _MODULES for imported in _imported(module) if _part(module)
    }
    assert not [(one, other) for one, other in arrows if one < other and (other, one) in arrows]


def test_no_module_imports_itself_in_a_circle() -> None:
    below: dict[str, set[str]] = {module: set(_imported(module)) for module in _MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' → '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for imported in below.get(module, ()):
                visit(imported, (*path, module))
            done.add(module)

    for module in _MODULES:
        visit(module, ())


# --- what is never written


def _calls(tree: ast.AST, name: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


@pytest.mark.parametrize("module", _MODULES)
def test_imports_are_absolute(module: str) -> None:
    assert not [node.lineno for node in ast.walk(_TREES[module]) if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize("module", [module for module in _MODULES if _part(module) != "cli"])
def test_only_the_cli_prints(module: str) -> None:
    assert not _calls(_TREES[module], "print")
    written = [
        node.lineno
        for node in ast.walk(_TREES[module])
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"sys.stdout", "sys.stderr"}
    ]
    assert not written


@pytest.mark.parametrize("module", _MODULES)
def test_no_error_is_swallowed(module: str) -> None:
    everything = {"Exception", "BaseException"}
    for node in ast.walk(_TREES[module]):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{module}:{node.lineno} has a bare except"
            names = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)}
            idle = all(isinstance(line, ast.Pass | ast.Continue | ast.Expr) for line in node.body)
            calls = any(isinstance(part, ast.Call) for line in node.body for part in ast.walk(line))
            assert not (names & everything and idle and not calls), f"{module}:{node.lineno} swallows every error"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"suppress", "contextlib.suppress"}:
            found = everything & {ast.unparse(argument) for argument in node.args}
            assert not found, f"{module}:{node.lineno} suppresses every error"


@pytest.mark.parametrize("module", _MODULES)
def test_nothing_is_unpickled_or_evaluated(module: str) -> None:
    assert not [name for name in ("eval", "exec") if _calls(_TREES[module], name)]
    for node in ast.walk(_TREES[module]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {
                (getattr(node, "module", "") or "").split(".")[0]
            }
            assert not names & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True"


@pytest.mark.parametrize("module", [module for module in _MODULES if module != "steersman.settings"])
def test_only_settings_read_the_environment(module: str) -> None:
    # Handing the whole environment on to a child process is no reading of it.
    text = ast.unparse(_TREES[module]).replace("**os.environ", "")
    assert not re.search(r"\bos\.(environ|getenv)\b|from os import", text)


@pytest.mark.parametrize("path", _FILES, ids=_ids)
def test_no_file_grows_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= _MAX_LINES


@pytest.mark.parametrize("path", _FILES, ids=_ids)
def test_every_module_opens_with_its_contract(path: Path) -> None:
    assert len(ast.get_docstring(_TREES[_module(path)]) or "") > 20


# --- what is public


def _defined(module: str) -> set[str]:
    """Public names that a module itself makes."""
    names: set[str] = set()
    for node in _TREES[module].body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("module", [module for module in _MODULES if "__all__" in ast.unparse(_TREES[module])])
def test_public_names_are_listed_sorted_and_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    listed = list(loaded.__all__)
    # Constants first, then classes, then the rest, as ruff sorts them.
    assert listed == sorted(set(listed), key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert [name for name in listed if not hasattr(loaded, name)] == []
    assert _defined(module) <= set(listed)


def test_the_front_door_lists_what_type_checkers_see_there() -> None:
    seen = {
        alias.asname or alias.name
        for node in ast.walk(_TREES["steersman"])
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("steersman")
        for alias in node.names
    }
    assert seen == set(steersman.__all__)
    assert set(steersman.__all__) <= set(dir(steersman))
    with pytest.raises(AttributeError):
        _ = steersman.no_such_name


def test_the_version_is_the_newest_in_the_changelog() -> None:
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+\S*?)\]?(?:\s|$)", (_ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings
    assert headings[0] == __version__


# --- what an import does


def _in_a_fresh_python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_everything_changes_nothing_of_torch_and_says_nothing() -> None:
    program = f"""
import json, logging, os, random, signal, sys, threading, warnings
import numpy, torch
def state():
    return [str(part) for part in (
        torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(), torch.get_default_device(), torch.get_rng_state().sum(),
        torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled,
        random.getstate(), numpy.random.get_state()[1].sum(), sorted(os.environ.items()), os.getcwd(),
        logging.getLogger().level, logging.getLogger().handlers, threading.active_count(),
        signal.getsignal(signal.SIGINT), sys.getrecursionlimit(), sys.excepthook, warnings.filters,
    )]
before = state()
import importlib
for module in {_MODULES!r}:
    importlib.import_module(module)
print(json.dumps([[one, other] for one, other in zip(before, state()) if one != other]))
"""
    assert json.loads(_in_a_fresh_python(program)) == []


@pytest.mark.parametrize("heavy", ["transformers", "gguf", "sklearn", "matplotlib", "openai", "ray", "sae_lens"])
def test_what_is_heavy_is_imported_where_it_is_used(heavy: str) -> None:
    for module, tree in _TREES.items():
        # A class can only be derived from what is there already.
        bases = {ast.unparse(base) for node in tree.body if isinstance(node, ast.ClassDef) for base in node.bases}
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not {alias.name for alias in node.names} <= bases:
                names.append(node.module or "")
            assert heavy not in {name.split(".")[0] for name in names}, f"{module} imports {heavy} at its top"


@pytest.mark.parametrize("module", [module for module in _MODULES if _part(module) == "cli"])
def test_the_cli_answers_before_torch_is_there(module: str) -> None:
    program = f"import sys, {module}\nprint(*({{'torch', 'transformers', 'numpy', 'gguf'}} & set(sys.modules)))"
    assert _in_a_fresh_python(program).split() == []


def test_names_of_test_modules_are_unique() -> None:
    # pytest imports them by their file name.
    found: dict[str, list[str]] = defaultdict(list)
    for path in Path(__file__).parent.rglob("test_*.py"):
        found[path.name].append(str(path))
    assert not [paths for paths in found.values() if len(paths) > 1]
