"""What a space uses from beside its file goes with the run: a resume elsewhere finds it, and no other space does."""

import shutil
import sys
import warnings
from pathlib import Path

import optuna
import pytest

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.sampling import surroundings
from tuning.sampling.spaces import Space, check_space, load_space
from tuning.trials import record
from tuning.trials.settings import Settings
from tuning.trials.slots import Slots

END = "def space(trial):\n    return {'width': WIDTH, 'learning_rate': trial.suggest_float('lr', 0.1, 1)}\n"
LATE = "def space(trial):\n    {}\n    return {{'width': WIDTH, 'learning_rate': trial.suggest_float('lr', 0.1, 1)}}\n"
READ = "WIDTH = int(Path(__file__).with_name('w.json').read_text())"
# The files of a project, the space's first; in each the width is 12, and known from another file only.
PROJECTS = {
    "a file beside it": {"mine.py": f"from pathlib import Path\n{READ}\n{END}", "w.json": "12"},
    "a module beside it": {"mine.py": f"from helper import WIDTH\n{END}", "helper.py": "WIDTH = 12"},
    "a package": {
        "mine.py": f"from parts.sizes import WIDTH\n{END}",
        "parts/__init__.py": "",
        "parts/sizes.py": "from .more import WIDTH",
        "parts/more.py": "WIDTH = 12",
    },
    "a module that reads a file": {
        "mine.py": f"from helper import WIDTH\n{END}",
        "helper.py": f"from pathlib import Path\n{READ}",
        "w.json": "12",
    },
    "a module when it draws": {
        "mine.py": LATE.format("from helper import WIDTH"),
        "helper.py": "WIDTH = 12",
    },
    "a file when it draws": {
        "mine.py": "from pathlib import Path\n" + LATE.format(READ),
        "w.json": "12",
    },
    "a hidden and a pickled file": {
        "mine.py": "import pickle\nfrom pathlib import Path\nassert Path(__file__).with_name('.w').read_text()\n"
        f"WIDTH = pickle.loads(Path(__file__).with_name('w.pkl').read_bytes())\n{END}",
        ".w": "12",
        "w.pkl": "I12\n.",
    },
    "a file of the working directory": {
        "mine.py": f"with open('w.json') as file:\n    WIDTH = int(file.read())\n{END}",
        "w.json": "12",
    },
    "a module of the working directory": {
        "spaces/mine.py": f"from helper import WIDTH\n{END}",
        "helper.py": "WIDTH = 12",
    },
    "a folder above it": {
        "spaces/mine.py": "from pathlib import Path\n"
        f"WIDTH = int((Path(__file__).parent.parent / 'data/w.json').read_text())\n{END}",
        "data/w.json": "12",
    },
    "a dataclass": {
        "mine.py": "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom helper import WIDTH\n"
        f"@dataclass\nclass Range:\n    low: float = 0.1\n{END}",
        "helper.py": "WIDTH = 12",
    },
    "a name of the library": {
        "random.py": f"import random\nfrom helper import WIDTH\n{END}",
        "helper.py": "WIDTH = 12",
    },
}


def write(folder: Path, project: dict[str, str]) -> str:
    """Writes a project's files; returns the path of its space from there."""
    for name, text in project.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return next(iter(project))


def draw(space: Space) -> TrainConfig:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return space.sample(study.ask(), epochs=5)


def begin(space: Space, run: Path) -> str:
    """Checks the space and writes what `record.begin` writes of it."""
    check_space(space, epochs=2)
    run.mkdir(parents=True, exist_ok=True)
    (run / "space.py").write_text(space.source, encoding="utf-8")
    assert space.surroundings is not None
    return space.surroundings.keep(run)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an empty folder, which is the working directory and on the path, as with `python -m`."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


@pytest.mark.parametrize("files", PROJECTS.values(), ids=PROJECTS)
def test_a_run_is_resumed_without_the_folder_that_its_space_was_in(
    tmp_path: Path, project: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(sys.modules), list(sys.path)
    space = load_space(write(project, files))
    assert begin(space, tmp_path / "run") == ""
    assert draw(space).width == 12
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(project)
    resumed = load_space("run/space.py")
    check_space(resumed, epochs=2)
    assert draw(resumed).width == 12 and resumed.source == space.source
    assert {"helper", "parts", "mine"}.isdisjoint(set(sys.modules) - before[0]) and sys.path == before[1]
    assert open is surroundings.io.open is surroundings.builtins.open


def test_a_change_to_the_space_of_a_run_counts_whether_or_not_it_uses_more(tmp_path: Path, project: Path) -> None:
    uses = write(project, {"mine.py": f"from helper import WIDTH\n{END}", "helper.py": "WIDTH = 12"})
    for name in (uses, write(project, {"alone.py": f"WIDTH = 12\n{END}"})):
        run = tmp_path / Path(name).stem
        begin(load_space(name), run)
        (run / "space.py").write_text((run / "space.py").read_text().replace(END, f"WIDTH += 4\n{END}"))
        assert draw(load_space(str(run / "space.py"))).width == 16


def test_a_space_that_uses_nothing_is_kept_as_one_file(tmp_path: Path, project: Path) -> None:
    for name in (write(project, {"mine.py": f"import json\nWIDTH = 12\n{END}"}), "resnet"):
        begin(load_space(name), tmp_path / name / "run")
        assert [path.name for path in (tmp_path / name / "run").iterdir()] == ["space.py"]


def test_modules_of_one_space_are_not_seen_by_another(project: Path) -> None:
    for name, width in (("one", 12), ("two", 16)):
        write(project / name, {"mine.py": f"from helper import WIDTH\n{END}", "helper.py": f"WIDTH = {width}"})
    one, two = load_space("one/mine.py"), load_space("two/mine.py")
    assert [draw(space).width for space in (one, two, one)] == [12, 16, 12]
    write(project / "three", {"mine.py": f"from helper import WIDTH\n{END}"})
    with pytest.raises(UserError, match=r"three/mine\.py must import without an error, but line 1 raised ModuleNotFou"):
        load_space("three/mine.py")
    assert "helper" not in sys.modules


def test_a_module_of_the_process_is_left_as_it_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = type(sys)("helper")
    space = load_space(write(project, {"mine.py": f"from helper import WIDTH\n{END}", "helper.py": "WIDTH = 12"}))
    monkeypatch.setitem(sys.modules, "helper", theirs)
    assert draw(space).width == 12
    assert sys.modules["helper"] is theirs


def test_what_is_used_for_the_first_time_in_mid_search_is_kept_then(tmp_path: Path, project: Path) -> None:
    late = "if trial.number > 60:\n        from helper import WIDTH"
    files = {"mine.py": f"WIDTH = 12\n{LATE.format(late).replace('WIDTH,', '12,')}", "helper.py": "WIDTH = 12"}
    space = load_space(write(project, files))
    begin(space, tmp_path)
    assert not (tmp_path / surroundings.KEPT).exists()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(62):
        space.sample(study.ask(), epochs=2)
    assert "helper.py" in surroundings.zipfile.ZipFile(tmp_path / surroundings.KEPT).namelist()


def test_the_same_files_make_the_same_archive_and_no_installed_code_is_in_it(tmp_path: Path, project: Path) -> None:
    files = {
        "mine.py": f"import yaml, optuna.visualization\nfrom helper import WIDTH\n{END}",
        "helper.py": "WIDTH = 12",
    }
    kept = []
    for name in ("one", "two"):
        begin(load_space(write(project, files)), tmp_path / name)
        kept.append((tmp_path / name / surroundings.KEPT).read_bytes())
    assert kept[0] == kept[1]
    names = surroundings.zipfile.ZipFile(tmp_path / "one" / surroundings.KEPT).namelist()
    assert names == ["helper.py", "mine.py", "tuning-space.txt"]


def test_a_file_that_is_written_is_not_kept(tmp_path: Path, project: Path) -> None:
    source = f"from pathlib import Path\nPath('log.txt').open('a').close()\nWIDTH = 12\n{END}"
    begin(load_space(write(project, {"mine.py": source})), tmp_path / "run")
    assert not (tmp_path / "run" / surroundings.KEPT).exists()


def test_a_large_file_is_said_and_not_kept(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "LARGEST", 2_000_000)
    files = {
        "mine.py": f"from pathlib import Path\nWIDTH = int(Path('w.txt').read_text())\n{END}",
        "w.txt": "12" + " " * 2_000_000,
    }
    said = begin(load_space(write(project, files)), tmp_path / "run")
    assert said == (
        "The run keeps no copy of w.txt, which the space reads: a file of more than 2 MB, what is beyond 1,000 MB in "
        "all, or a file that may hold a key, must be there when the run is resumed."
    )


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "other"])
def test_a_damaged_archive_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "space.py").write_text(f"WIDTH = 12\n{END}", encoding="utf-8")
    (tmp_path / surroundings.KEPT).write_bytes(content)
    with pytest.raises(UserError, match=r"space\.zip, which holds what the search space uses, is damaged: .*or remove"):
        load_space(str(tmp_path / "space.py"))


def test_the_run_of_an_earlier_version_is_resumed_by_its_file_alone(tmp_path: Path) -> None:
    (tmp_path / "space.py").write_text(f"WIDTH = 12\n{END}", encoding="utf-8")
    assert draw(load_space(str(tmp_path / "space.py"))).width == 12


def test_an_error_names_the_line_of_the_file(project: Path) -> None:
    name = write(project, {"mine.py": f"WIDTH = 12\n{END.replace('WIDTH', 'WIDHT')}"})
    with pytest.raises(UserError, match=r"Search space mine must return .*, but line 3 raised NameError"):
        draw(load_space(name))


WARNS = "import warnings\nwarnings.warn('old', {})\ndef space(trial):\n    warnings.warn('mine', {})\n    return {{}}\n"


@pytest.mark.parametrize("kind", ["UserWarning", "DeprecationWarning", "FutureWarning", "RuntimeWarning"])
def test_a_warning_in_a_users_space_is_no_error(project: Path, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_space(load_space(write(project, {"mine.py": WARNS.format(kind, kind)})), epochs=2)


def test_a_step_that_does_not_divide_the_range_is_no_error(project: Path) -> None:
    source = "def space(trial):\n    return {'width': trial.suggest_int('w', 8, 15, step=4)}\n"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_space(load_space(write(project, {"mine.py": source})), epochs=2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "FIRST = [{'w': 99}]\ndef space(trial):\n    return {'width': trial.suggest_int('w', 8, 16)}\n",
            "FIRST must hold points of the space, but got {'w': 99}",
        ),
        (
            "def space(trial):\n    return {'width': trial.suggest_categorical('w', [(8, 8), (16, 16)])[0]}\n",
            "Choices for a categorical distribution should be",
        ),
        (
            "def space(trial):\n    trial.suggest_int('w', 8, 10)\n"
            "    return {'width': trial.suggest_int('w', 12, 16)}\n",
            "Inconsistent parameter values for distribution",
        ),
    ],
)
def test_what_optuna_only_warns_of_is_an_error_where_it_is_one(project: Path, source: str, message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(UserError, match=message):
        warnings.simplefilter("ignore")
        check_space(load_space(write(project, {"mine.py": source})), epochs=2)


def test_a_run_begins_with_what_its_space_uses(tmp_path: Path, project: Path) -> None:
    space = load_space(write(project, PROJECTS["a module beside it"]))
    slots = Slots("cpu", concurrency=1)
    rest = {"train_images": None, "data_dir": None, "max_failures": 0, "time_budget": None}
    named = {"space": "mine.py", "dataset": "fashion-mnist", "sampler": "curves", "scheduler": "asha"}
    settings = Settings(samples=1, epochs=1, seed=0, **named, **vars(slots), **rest)
    (tmp_path / "run").mkdir()
    assert record.begin(tmp_path / "run", settings, space) == ""
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"space.py", surroundings.KEPT, "meta.json"}
    assert draw(load_space(str(tmp_path / "run" / "space.py"))).width == 12


@pytest.mark.parametrize(
    "name",
    [
        *(
            ".env",
            "keys/server.pem",
            ".aws/credentials",
            "..data/width",
            "run/secrets/width",
            "var/run/secrets/a/width",
        ),
        *("kubeconfig", "kubeconfig.yaml", "dev.kubeconfig", ".npmrc", ".pgpass", ".htpasswd", "id_ecdsa", "id_dsa"),
        *("server.pfx", "server.jks", "Server.JKS", "debug.keystore", "service-account-1.json", "service_account.json"),
        *("my-credentials-1.json", "secrets.toml", "secrets.yaml", "secrets.yml", "secrets.json"),
    ],
)
def test_a_file_that_may_hold_a_key_is_said_and_not_kept(tmp_path: Path, project: Path, name: str) -> None:
    code = f"from pathlib import Path\nWIDTH = int(Path(__file__).parent.joinpath({name!r}).read_text())\n{END}"
    space = load_space(write(project, {"mine.py": code, name: "12"}))
    assert begin(space, tmp_path / "run").startswith(f"The run keeps no copy of {name}, which the space reads")
    assert not (tmp_path / "run" / surroundings.KEPT).exists()


@pytest.mark.parametrize("name", ["secrets.py", "..data/helper.py", "run/width", "keys.json", "credentials.txt"])
def test_code_and_ordinary_files_are_kept(tmp_path: Path, project: Path, name: str) -> None:
    code = f"from pathlib import Path\nWIDTH = int(Path(__file__).parent.joinpath({name!r}).read_text())\n{END}"
    assert begin(load_space(write(project, {"mine.py": code, name: "12"})), tmp_path / "run") == ""
    assert name in surroundings.zipfile.ZipFile(tmp_path / "run" / surroundings.KEPT).namelist()


def test_a_project_below_a_folder_of_settings_is_kept(tmp_path: Path, project: Path) -> None:
    name = write(project / ".config" / "mine", PROJECTS["a file beside it"])
    assert begin(load_space(f".config/mine/{name}"), tmp_path / "run").startswith("The run keeps no copy of .config/")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project / ".config" / "mine")
        assert begin(load_space(name), tmp_path / "other") == ""


def test_a_link_to_a_secret_is_said_and_not_kept(tmp_path: Path, project: Path) -> None:
    mounted = write(tmp_path, {"..2026_11_28/width": "12"})
    (project / "width").symlink_to(tmp_path / mounted)
    code = f"from pathlib import Path\nWIDTH = int(Path(__file__).with_name('width').read_text())\n{END}"
    said = begin(load_space(write(project, {"mine.py": code})), tmp_path / "run")
    assert said.startswith("The run keeps no copy of width, which the space reads")


def test_what_is_beyond_the_most_in_all_is_said_and_not_kept(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "LARGEST", 2_000_000)
    monkeypatch.setattr(surroundings, "LARGEST_IN_ALL", 4_000_000)
    code = f"from pathlib import Path\nWIDTH = sum(int(Path(name).read_text()) for name in 'ab')\n{END}"
    files = {"mine.py": code, "a": "5" + " " * 1_500_000, "b": "7" + " " * 1_500_000}
    said = begin(load_space(write(project, files)), tmp_path / "run")
    assert said.startswith("The run keeps no copy of b, which the space reads") and "beyond 4 MB in all" in said
    load_space(str(tmp_path / "run" / "space.py"))


def archived(run: Path, files: dict[str, str]) -> str:
    """Writes a run with these files in its archive; returns the path of its space."""
    run.mkdir()
    (run / "space.py").write_text(f"WIDTH = 12\n{END}", encoding="utf-8")
    with surroundings.zipfile.ZipFile(run / surroundings.KEPT, "w", surroundings.zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return str(run / "space.py")


def test_no_name_in_an_archive_leads_outside_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    names = ["../outside", "a/../../../outside", f"{tmp_path}/outside", "//outside"]
    entry = {"tuning-space.txt": "mine.py\n.\n", "mine.py": f"WIDTH = 12\n{END}"}
    space = load_space(archived(tmp_path / "run", dict.fromkeys(names, "x") | entry))
    [unpacked] = (tmp_path / "temporary").iterdir()
    written = {path for path in tmp_path.rglob("*") if path.name == "outside"}
    assert written and all(path.is_relative_to(unpacked) for path in written)
    assert draw(space).width == 12 and not Path("/outside").exists()


@pytest.mark.parametrize("own", ["../mine.py", "/mine.py"])
def test_an_archive_whose_space_is_outside_of_it_is_damaged(tmp_path: Path, own: str) -> None:
    name = archived(tmp_path / "run", {"tuning-space.txt": f"{own}\n.\n"})
    with pytest.raises(UserError, match=rf"space\.zip, which holds .*, is damaged: {own} is outside of it\. Copy it"):
        load_space(name)


def test_an_archive_that_is_larger_than_any_search_writes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(surroundings, "LARGEST_IN_ALL", 3_000_000)
    name = archived(tmp_path / "run", {"tuning-space.txt": "mine.py\n.\n", "a": " " * 2_000_000, "b": " " * 2_000_000})
    assert (tmp_path / "run" / surroundings.KEPT).stat().st_size < 10_000
    wanted = r"space\.zip must hold at most 3 MB of files, but got 4 MB: no search wrote it\. Copy it anew from"
    with pytest.raises(UserError, match=wanted):
        load_space(name)
    assert not list((tmp_path / "temporary").iterdir())


def test_what_lies_below_the_root_of_all_files_is_not_the_spaces(tmp_path: Path, project: Path) -> None:
    (tmp_path / "data.txt").write_text("12")
    code = f"from pathlib import Path\nWIDTH = int(Path({str(tmp_path / 'data.txt')!r}).read_text())\n{END}"
    file = Path(write(project, {"mine.py": code})).absolute()
    around = surroundings.Surroundings(file, Path("/"))
    around.execute(code)
    assert around.keep(tmp_path) == "" and not (tmp_path / surroundings.KEPT).exists()
