"""Arrows between modules run one way, and importing the package costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "blip3o"
FAMILIES = ("tokenizers", "ar", "bridge", "diffusion")
SHARED = ("structures", "part", "loading", "attention", "recomputing")


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that a file imports, at any depth of its code; `from package import module` names both."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*stem, *([base] if base else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in FILES}
    return frozenset(found)


def within(module: str, *names: str) -> bool:
    """Whether a module is one of `blip3o.<name>` or lies in one."""
    return any(module == f"blip3o.{name}" or module.startswith(f"blip3o.{name}.") for name in names)


def arrows(*sources: str) -> set[tuple[str, str]]:
    """(importer, imported) for every import inside blip3o of the modules of `sources`."""
    return {
        (module, target)
        for module in FILES
        if within(module, *sources)
        for target in imports(module)
        if target == "blip3o" or target.startswith("blip3o.")
    }


def test_the_graph_sees_what_is_imported() -> None:
    assert len(FILES) > 30
    assert ("blip3o.model", "blip3o.bridge.base") in arrows("model")
    assert ("blip3o.tokenizers.conv", "blip3o.structures") in arrows("tokenizers")
    assert "torch" in imports("blip3o.model")
    assert "blip3o.pipeline" in imports("blip3o.cli"), "imports inside functions count"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_imports_itself_and_what_all_share_alone(family: str) -> None:
    outside = {arrow for arrow in arrows(family) if not within(arrow[1], family, *SHARED)}
    assert not outside


@pytest.mark.parametrize(
    ("sources", "allowed"),
    [
        (("structures",), ()),
        (("part", "loading", "recomputing", "pixels", "images"), ()),
        (("attention",), ("part",)),
        (("shapes",), ("shapes",)),
        (("prompts",), ("structures", "ar")),
        (("references", "reading", "fitting"), ("structures", *FAMILIES)),
        (("reference_images",), ("structures", "pixels", "diffusion")),
        (("rendering",), ("structures", "model", *FAMILIES)),  # the model by name alone
        (("model",), ("structures", "part", "prompts", "references", "reading", "fitting", "rendering", *FAMILIES)),
        (
            ("checkpoints.folder", "checkpoints.tensors"),
            ("part", "loading", "prompts", "model", "checkpoints", *FAMILIES),
        ),
        (("checkpoints.published",), ("loading", "model", "pipeline", "checkpoints", *FAMILIES)),
    ],
    ids=lambda names: "+".join(names),
)
def test_the_core_imports_only_what_stands_below_it(sources: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    outside = {arrow for arrow in arrows(*sources) if not within(arrow[1], *allowed)}
    assert not outside


def test_data_and_rewards_know_no_model() -> None:
    above = ("model", "pipeline", "checkpoints", "training", "evaluation", "ablation", "cli", *FAMILIES)
    assert not {arrow for arrow in arrows("data", "rewards") if within(arrow[1], *above)}


def test_pipeline_and_training_import_nothing_that_uses_them() -> None:
    assert not {arrow for arrow in arrows("training") if within(arrow[1], "cli", "demo")}
    above = ("training", "data", "evaluation", "demo", "cli")
    assert not {arrow for arrow in arrows("pipeline") if within(arrow[1], *above)}


def test_nothing_imports_tests_or_experiments() -> None:
    roots = {(module, target) for module in FILES for target in imports(module)}
    assert not {arrow for arrow in roots if arrow[1].split(".")[0] in ("tests", "experiments")}


def test_lightning_appears_in_training_and_data_alone() -> None:
    users = {
        module
        for module in FILES
        if any(target.split(".")[0] in ("lightning", "pytorch_lightning") for target in imports(module))
    }
    assert users
    assert not {module for module in users if not within(module, "training", "data")}


def test_the_package_and_its_command_line_load_without_torch() -> None:
    code = (
        "import sys, blip3o; from blip3o.cli import build_parser; build_parser().format_help();"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'diffusers', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads() -> None:
    import blip3o

    for name in blip3o.__all__:
        assert getattr(blip3o, name) is not None
    assert set(dir(blip3o)) == set(blip3o.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Blip4o'"):
        _ = blip3o.Blip4o
