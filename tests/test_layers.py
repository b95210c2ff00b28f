"""The rooms of the library: a file imports only from rooms above its own, and importing costs and does nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import openjepa

SOURCE = Path(openjepa.__file__).parent
# The order of the rooms; a file may import from those before its own, and from its own.
ROOMS = [
    "errors",
    "settings",
    "files",
    "cores",
    "signals",
    "progress",
    "draws",
    "_version",
    "grid",
    "masks",
    "masking_reference",
    "masking",
    "kernels",
    "transformer",
    "encoder",
    "objectives",
    "interop",
    "data",
    "pretrained",
    "evaluation",
    "assessment",
    "diagnosis",
    "training",
    "experiment",
    "recipes",
    "costing",
    "facts",
    "planning",
    "watching",
    "claiming",
    "running",
    "comparing",
    "report",
    "cli",
    "__main__",
]
# Rooms that may see even less.
ONLY = {
    "data": {"errors", "files", "cores", "signals", "draws", "masks"},
    "report": {"errors", "files", "_version", "diagnosis"},
    "evaluation": {"errors", "draws"},
    "diagnosis": set(),
    "pretrained": {"errors", "files", "cores", "grid", "encoder", "interop", "data"},
    "assessment": {"errors", "files", "progress", "draws", "grid", "encoder", "data", "pretrained", "evaluation"},
    "__main__": {"cli"},
}
# What `openjepa --help` must not wait for; imported inside the functions that need it.
HEAVY = {"torchvision", "sklearn", "matplotlib", "pyarrow", "tifffile", "transformers", "timm", "datasets", "lightly"}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[str]:
    """Full names of the modules, and of what is taken from them, that the imports of ``tree`` name."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own(tree: ast.AST) -> list[str]:
    """The part of :func:`imported` that is the library's, without its first name."""
    return [name.removeprefix("openjepa.") for name in imported(tree) if name.split(".")[0] == "openjepa"]


def violations(room: str, tree: ast.AST) -> list[str]:
    """The imports of ``tree``, a file of ``room``, that are not from a room above."""
    above = ONLY.get(room, set(ROOMS[: ROOMS.index(room)]))
    return [name for name in own(tree) if name.split(".")[0] not in above | {room}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_rooms_above(path):
    room = room_of(path)
    assert room in ROOMS, f"{room} is a new room: give it a place in the order"
    assert violations(room, ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("grid", "from openjepa.encoder import Encoder"),
        ("data", "from openjepa.encoder import Encoder"),
        ("report", "from openjepa.data.base import Source"),
        ("running", "from openjepa.cli import main"),
        ("evaluation", "def f():\n from openjepa import pretrained"),
    ],
)
def test_a_wrong_import_is_found(room, line):
    assert len(violations(room, ast.parse(line))) == 1


def test_no_room_is_allowed_more_than_the_order_gives():
    for room, allowed in ONLY.items():
        assert allowed <= set(ROOMS[: ROOMS.index(room)])


def test_training_knows_no_concrete_objective():
    for path in SOURCE.glob("training/*.py"):
        names = [name for name in own(ast.parse(path.read_text())) if name.startswith("objectives")]
        assert set(names) <= {"objectives.base.Objective", "objectives.base.Output"}, path.name


def test_the_report_needs_no_torch():
    for path in SOURCE.glob("report/*.py"):
        assert "torch" not in {name.split(".")[0] for name in imported(ast.parse(path.read_text()))}, path.name
    # Nor what it imports, nor what that does.
    check = (
        "import importlib, pkgutil, sys, openjepa.report as room\n"
        "files = [one.name for one in pkgutil.walk_packages(room.__path__, 'openjepa.report.')]\n"
        "for name in files: importlib.import_module(name)\n"
        "for name in room.__all__: getattr(room, name)\n"
        "print(len(files), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == [str(len(list(SOURCE.glob("report/*.py"))) - 1), "False"]


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """The statements that run at import, without those for the type checker and of a script."""
    inert = {"TYPE_CHECKING", "__name__ == '__main__'"}
    return [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) in inert)]


@pytest.mark.parametrize(
    "path", [p for p in (SOURCE / "__init__.py", *FILES) if p.name != "__main__.py"], ids=lambda p: p.stem
)
def test_nothing_heavy_and_nothing_else_runs_at_import(path):
    statements = top_level(ast.parse(path.read_text()))
    wanted = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    for node in statements:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert text or isinstance(node, wanted), f"{path.name}:{node.lineno} runs at import"
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not HEAVY & {name.split(".")[0] for name in imported(node)}, f"{path.name}:{node.lineno}"


def test_randomness_has_no_state():
    """Numbers come from `draws` or from a generator that somebody hands over."""
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert "random" not in {name.split(".")[0] for name in imported(tree)}, path
        for node in ast.walk(tree):
            used = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            assert used not in {"np.random", "torch.manual_seed", "torch.rand", "torch.randn", "torch.randperm"}, path


@pytest.mark.parametrize(
    "statement",
    [
        "import openjepa; dir(openjepa)",
        "import sys, openjepa.cli\ntry: openjepa.cli.main(['--help'])\nexcept SystemExit: pass",
    ],
    ids=["import", "help"],
)
def test_starting_is_cheap(statement):
    check = "import sys; print(sorted({'torch', 'numpy', 'PIL', 'tyro', 'rich'} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{check}"], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.splitlines()[-1] == "[]"


def test_a_verb_that_does_not_train_starts_without_what_shards_and_counts():
    check = (
        "import sys, openjepa.cli.evaluation, openjepa.planning, openjepa.running, openjepa.assessment\n"
        "slow = 'torch.distributed.checkpoint', 'torch.distributed.fsdp', 'torch.utils.flop_counter', 'sympy'\n"
        "print([name for name in slow if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there():
    for name in openjepa.__all__:
        assert getattr(openjepa, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = openjepa.nothing
