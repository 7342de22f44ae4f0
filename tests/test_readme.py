"""The pages are true: every command and snippet in them is run from the wheel, page after page, in an empty folder.

What cannot be run here, for a cluster or a bucket, is parsed by the commands that it names. Links, paths, names of
options and the plan of the house are compared with what is there.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import ROOT
from PIL import Image
from test_house import ARROWS
from test_own_images import write_photos

from tuning.__main__ import COMMANDS
from tuning.base import files, registries
from tuning.base.config import TrainConfig
from tuning.images.datasets import load_train
from tuning.runs import edges, run_folder, schema
from tuning.sampling import spaces

# The main page first, as a newcomer reads them; each page may use what an earlier one left in the folder.
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        *(ROOT / name / "README.md" for name in ("search_spaces", "best_model", "results", "tests/benchmarks")),
        *sorted((ROOT / "tuning").glob("*/README.md")),
    ]
}
README = PAGES["README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
BLOCKS = [(language, block) for page in PAGES.values() for language, block in FENCED.findall(page)]
SPANS = [span for page in PAGES.values() for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", page))]
# What a command gets besides, because as it stands it takes an hour.
SMALL = "--samples 3 --space smoke --epochs 2 --train-images 1000"
CHEAPER = {
    "bash tuning/run.sh search --samples 20": SMALL,
    "tuning search --samples 20": "--samples 1 --space smoke --epochs 1 --train-images 1000",
    "bash tuning/run.sh final": "--epochs 1 --seeds 2 --top-k 1",
    "bash tuning/run.sh search --dataset photos/": "--samples 1 --space smoke --epochs 1",
    "bash tuning/run.sh final --model-dir my_model": "--epochs 1 --seeds 1 --top-k 1",
    # Two threads, with another test beside them, took 151 s of a core for what one does in 104.
    "python -m tuning.final --config original-resnet8 --epochs 1 --model-dir results/first/original": "--threads 1 "
    "--dataset photos/ --folds 0",
    "python -m tuning.final --config resnet8-5-minutes --seeds 3 --model-dir small": "--epochs 1 --seeds 1 --threads 1 "
    "--train-images 8000",
    "python -m tuning.final --config resnet8-30-minutes --seeds 3 --model-dir thirty": "--epochs 1 --seeds 1 "
    "--threads 1 --dataset photos/ --folds 0",
    "python -m tuning.final --config resnet20-30-minutes --seeds 3 --model-dir larger": "--epochs 1 --seeds 1 "
    "--threads 1 --dataset photos/ --folds 0",
}
# What a snippet has in place of its own arguments, for the same reason.
SMALLER = {
    'samples=20, space="resnet", seed=0': 'samples=2, space="smoke", seed=0, epochs=1, train_images=1000',
    "top_k=3, seeds=3": "top_k=2, seeds=1, epochs=1",
}
# What a reader has, and the snippet does not make.
GIVEN = "import numpy as np\nimages = np.zeros((2, 1, 28, 28), np.uint8)\n"
# What runs this test.
NOT_HERE = {"bash tests/run.sh"}
# The door of a clone, which `test_run_sh.py` tests, and what it opens.
DOOR = re.compile(r"^bash tuning/run\.sh ")
CALL = re.compile(r"(?:python -m tuning\.|bash tuning/run\.sh |^tuning )(\w+)((?: [^`\n#>]*)?)", re.MULTILINE)


def run(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", DOOR.sub("python -m tuning.", command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def is_new(block: str) -> bool:
    """Whether it shows what `pip install .` and the functions add to the commands."""
    return block.startswith("tuning ") or "search.run(" in block


def commands(block: str) -> list[str]:
    return block.strip().splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_and_snippet_runs_in_the_order_of_the_pages(wheel: Mapping[str, str], tmp_path: Path) -> None:
    printed = {}
    write_photos(tmp_path / "photos", 100)
    shutil.copytree(ROOT / "tests" / "benchmarks", tmp_path / "tests" / "benchmarks")
    for language, block in BLOCKS:
        if is_new(block):
            continue
        if language == "bash":
            for command in commands(block):
                if command not in NOT_HERE:
                    printed[command] = run(f"{command} {CHEAPER.get(command, '')}", tmp_path, wheel)
        elif language == "python" and block.startswith("# "):
            (tmp_path / block.split("\n")[0].removeprefix("# ")).write_text(block, encoding="utf-8")
        elif language == "python":
            (tmp_path / "snippet.py").write_text(block, encoding="utf-8")
            run("python snippet.py", tmp_path, wheel)
    for command, text in printed.items():
        if "search" in command and "--dry-run" not in command:
            assert "Next: python -m tuning." in text, command
    assert sum("Next: python -m tuning.predict" in text for text in printed.values()) == 7
    assert (tmp_path / "best_model" / "pca.png").stat().st_size > 20_000
    assert len(run_folder.load("first", tmp_path / "results").trials) == 6

    # A configuration that ships with the project has learned on the real images, and labels one of them.
    small = tmp_path / "small"
    metrics = files.read_json(small / "metrics.json")
    assert 0.5 < metrics["test_accuracy"] < 0.88
    assert any(
        f"{metrics['test_accuracy']:.2%}" in text and "8,000 images (train)" in text for text in printed.values()
    )
    Image.fromarray(load_train("fashion-mnist").images[0, 0]).save(tmp_path / "boot.png")
    assert "boot.png" in run(f"python -m tuning.predict --model-dir {small} boot.png", tmp_path, wheel)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", [block for _, block in BLOCKS if is_new(block)], ids=["command", "functions"])
def test_what_an_installation_adds_runs(block: str, wheel: Mapping[str, str], tmp_path: Path) -> None:
    environment = {**wheel, "PATH": f"{wheel['PYTHONPATH']}/bin:{wheel['PATH']}"}
    if block.startswith("tuning "):
        for command in commands(block):
            assert "Next: python -m tuning.final" in run(f"{command} {CHEAPER[command]}", tmp_path, environment)
        return
    for given, small in SMALLER.items():
        assert given in block
        block = block.replace(given, small)
    main = f'if __name__ == "__main__":\n    {block.replace(chr(10), chr(10) + "    ")}'
    (tmp_path / "snippet.py").write_text(GIVEN + main, encoding="utf-8")
    run("python snippet.py", tmp_path, environment)
    assert len(run_folder.load("latest", tmp_path / "results").trials) == 2
    assert (tmp_path / "best_model" / "metrics.json").is_file()


def test_nothing_in_the_lists_above_has_left_the_pages() -> None:
    written = {line for language, block in BLOCKS if language == "bash" for line in commands(block)}
    assert set(CHEAPER) | NOT_HERE <= written
    assert all(any(given in block for _, block in BLOCKS) for given in SMALLER)
    assert "tests/run.sh" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def command_of(name: str) -> Any:
    """Returns a command of the project as the click command that `run_command` makes of it."""
    app = typer.Typer(add_completion=False)
    app.command()(importlib.import_module(f"tuning.{name}").main)
    return typer.main.get_command(app)


def options_of(name: str) -> set[str]:
    """Returns the names of a command's options, without --help."""
    found = {word for param in command_of(name).params for word in [*param.opts, *param.secondary_opts]}
    return {word for word in found if word.startswith("--")}


def test_every_command_that_a_page_names_is_one_and_takes_its_options() -> None:
    made = {name: command_of(name) for name in COMMANDS}
    called = 0
    for text in [*(block for _, block in BLOCKS), *SPANS]:
        for name, words in CALL.findall(text):
            if name in ("NAME", "base"):  # Any of them; and the tables' own, which `tests/base` runs.
                continue
            assert name in COMMANDS, text
            made[name].make_context(name, shlex.split(words.replace("…", "")) or placeholder(name))
            called += 1
    assert called > 25


def placeholder(name: str) -> list[str]:
    return ["IMAGE"] if name == "predict" else []


def test_every_option_that_a_page_names_exists() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "benchmarks").glob("*.py"))
    known = {"--help", *re.findall(r'"(--[a-z-]+)"', scripts)}.union(*(options_of(name) for name in COMMANDS))
    named = {word for span in SPANS for word in re.findall(r"(?<![\w-])--[a-z-]+", span)}
    assert named - known == {"--logdir"}  # Of TensorBoard.


@pytest.mark.parametrize(("name", "page"), [("search", "trials"), ("final", "retraining")])
def test_the_page_of_a_room_has_every_option_of_its_command(name: str, page: str) -> None:
    text = PAGES[f"tuning/{page}/README.md"]
    assert not {option for option in options_of(name) if not re.search(rf"`{option}\b", text)}


def test_every_name_that_can_be_chosen_is_on_its_page() -> None:
    choices = {
        "tuning/sampling": registries.SAMPLERS,
        "tuning/trials": [*registries.SAMPLERS, *registries.SCHEDULERS, *registries.OBJECTIVES, *registries.METRICS],
        "tuning/models": [*registries.ARCHITECTURES],
        "search_spaces": spaces.space_names(),
    }
    for folder, names in choices.items():
        assert not {name for name in names if f"`{name}`" not in PAGES[f"{folder}/README.md"]}


@pytest.mark.slow
def test_the_commands_for_a_cluster_are_ones_that_ray_takes() -> None:
    from ray.scripts.scripts import cli

    called = 0
    for _, block in BLOCKS:
        plain = re.sub(r"\\\n", "", re.sub(r"\$\(\(.*?\)\)|\$\(.*?\)|\$\w+", "4", block))
        for words in re.findall(r"\bray ((?:start|get-auth-token)[^#>&\n]*)", plain):
            name, *options = shlex.split(words)
            cli.commands[name].make_context(name, options)
            called += 1
    assert called == 6


def test_shell_and_yaml_can_be_parsed() -> None:
    for language, block in BLOCKS:
        if language in ("bash", "sh"):
            assert subprocess.run(["bash", "-n", "-c", block], check=False).returncode == 0, block
        elif language == "yaml":
            assert yaml.safe_load(block)["spec"]["entrypoint"].startswith("python -m tuning.search")
        else:
            assert language in ("python", ""), language


def anchors(text: str) -> set[str]:
    """Returns what the headings of a page are called in a link."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", FENCED.sub("", PAGES[page])):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = os.path.normpath(Path(page).parent / name) if name else page
        assert (ROOT / path).exists(), target
        assert not anchor or anchor in anchors(PAGES[path]), target


def test_every_file_that_a_page_names_is_there() -> None:
    named = {span for span in SPANS if re.match(r"(tuning|tests|search_spaces)/[\w./-]+$", span)}
    assert len(named) > 20
    assert not {name for name in named if not (ROOT / name).exists()}


def test_every_room_has_a_page_and_the_main_page_names_all() -> None:
    assert set(PAGES) - {"README.md"} == {
        *(f"tuning/{room}/README.md" for room in ARROWS),
        *(f"{folder}/README.md" for folder in ("search_spaces", "best_model", "results", "tests/benchmarks")),
    }
    for page in set(PAGES) - {"README.md", "results/README.md"}:
        assert f"]({page})" in README, page


def test_the_main_page_is_short_and_shows_the_plan_of_the_house() -> None:
    assert len(README.splitlines()) < 220
    for room, imports in ARROWS.items():
        assert re.search(rf"^  {room}/ +\w", README, re.MULTILINE), room
        assert re.search(rf"^{room} +-> ?{imports}$", README, re.MULTILINE), room
    for command in COMMANDS:
        assert re.search(rf"^  .*\b{command}\.py\b", README, re.MULTILINE), command


def test_every_picture_is_there_and_small_and_none_is_kept_for_nothing() -> None:
    shown = {
        os.path.normpath(Path(page).parent / name)
        for page, text in PAGES.items()
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    }
    assert shown == {f"results/figures/{path.name}" for path in (ROOT / "results" / "figures").iterdir()}
    for name in shown:
        assert 5_000 < (ROOT / name).stat().st_size < 1_000_000, name


def test_every_column_of_the_frames_is_explained() -> None:
    page = PAGES["tuning/runs/README.md"]
    for name in [*schema.TRIAL_COLUMNS, *schema.EPOCH_COLUMNS]:
        assert f"`{name}`" in page or name.removeprefix("config/") in TrainConfig.model_fields, name


def test_every_column_of_the_edges_is_explained() -> None:
    page = PAGES["tuning/runs/README.md"].partition("## `run.edges`")[2]
    assert not {name for name in edges.COLUMNS if f"`{name}`" not in page}


def test_every_hyperparameter_is_explained_in_its_docstring() -> None:
    assert TrainConfig.__doc__ is not None
    for name in TrainConfig.model_fields:
        assert f"\n        {name}: " in TrainConfig.__doc__, name


def test_what_decides_a_result_is_as_long_as_its_page_says() -> None:
    page = PAGES["tuning/base/README.md"]
    table = page.partition("| Question |")[2].partition("\n\n")[0]
    read = sum(
        len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in re.findall(r"`(\S+\.py)`", table)
    )
    said = re.search(r"about ([\d,]+) lines", page)
    assert said is not None and abs(read / int(said[1].replace(",", "")) - 1) < 0.1, read


def test_the_changelog_has_the_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
