"""`make release-check` fails when one of its checks does; those that are its own find what is
planted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from check_changelog import changes, newest_section, public_api, untold  # noqa: E402
from check_links import broken  # noqa: E402
from release_check import CHECKS, Check, committed, release_check  # noqa: E402

GOOD = Check("good", "echo all is well", ("sh",))
BAD = Check("bad", "echo something is not; exit 3")
MISSING = Check("missing", "touch ran", ("a-tool-that-nobody-has",))


def row(text: str, name: str) -> list[str]:
    (found,) = re.findall(rf"^{name} .*", text, re.MULTILINE)
    return found.split(maxsplit=4)


def test_all_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release_check([GOOD, GOOD._replace(name="too")], [], tmp_path) == 0
    said = capsys.readouterr().out
    assert row(said, "good") == ["good", "passed", "0", "s", "all is well"]
    assert row(said, "too")[1] == "passed"
    assert (tmp_path / "good.log").read_text() == "all is well\n"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_fails(place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever it stands, and the others run all the same."""
    checks = [GOOD, GOOD._replace(name="too")]
    checks.insert(place, BAD)
    assert release_check(checks, [], tmp_path) == 1
    said = capsys.readouterr().out
    assert row(said, "bad") == ["bad", "FAILED", "0", "s", "something is not"]
    assert row(said, "good")[1] == row(said, "too")[1] == "passed"


def test_a_missing_tool_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release_check([GOOD, MISSING], [], tmp_path) == 1
    outcome = row(capsys.readouterr().out, "missing")
    assert outcome == ["missing", "MISSING", "0", "s", "needs a-tool-that-nobody-has"]
    assert not (tmp_path / "missing.log").exists()


def test_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release_check([GOOD, BAD], ["good"], tmp_path) == 0
    assert "\nbad " not in capsys.readouterr().out
    assert release_check([GOOD, BAD], ["godo"], tmp_path) == 2
    assert capsys.readouterr().err == "no check is called godo\n"


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    """What a tree has passed is not run again, unless it is asked for; another tree's is."""
    check = Check("counted", f"echo >> {tmp_path}/count")

    def runs(only: list[str], tree: str | None, checks: list[Check] | None = None) -> int:
        release_check(checks or [BAD, check], only, tmp_path, tree)
        return (tmp_path / "count").read_text().count("\n")

    assert [runs([], "a"), runs([], "a"), runs(["counted"], "a"), runs([], "a")] == [1, 1, 2, 2]
    assert [runs([], "b"), runs([], None), runs([], None), runs([], "b")] == [3, 4, 5, 5]
    assert runs([], "b", [check._replace(command=f"{check.command}; true")]) == 6
    assert release_check([BAD, check], [], tmp_path, "b") == 1


def test_only_a_commit_is_kept(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.check_output(["git", *names, *arguments], cwd=tmp_path, text=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    tree = git("rev-parse", "HEAD^{tree}").strip()
    assert committed(tmp_path) == tree
    (tmp_path / "other").write_text("2")
    assert committed(tmp_path) is None
    (tmp_path / "other").unlink()
    (tmp_path / "file").write_text("2")
    assert committed(tmp_path) is None


def test_tests_skip_nothing(tmp_path: Path) -> None:
    check = Check("tools", 'test "$MLXNORM_REQUIRE_TOOLS" = 1')
    assert release_check([check], [], tmp_path) == 0


def test_checks_have_variables_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY", "mutants")
    monkeypatch.setenv("MAKEFLAGS", "w -- ONLY=mutants")
    check = Check("variables", 'test -z "$ONLY" && test "$MAKEFLAGS" = --no-print-directory')
    assert release_check([check], [], tmp_path) == 0


def test_every_target_that_checks_is_there() -> None:
    """Of the Makefile; an NVIDIA GPU is not asked for."""
    targets = set(
        re.findall(r"^(test[\w-]*|fuzz|stress|lint|mutants|wheel[\w-]*):", makefile(), re.M)
    )
    commands = " ".join(check.command for check in CHECKS)
    assert targets <= set(re.findall(r"[\w-]+", commands))
    for name in re.findall(r"(?:tools|tests)/[\w/]+\.py", commands):
        assert (ROOT / name).exists()


def makefile() -> str:
    return (ROOT / "Makefile").read_text()


BEFORE = {
    "torch_mlxnorm/__init__.py": "from torch_mlxnorm.functional import norm, Mode\n"
    "if TYPE_CHECKING:\n    from torch_mlxnorm.modules import Norm\n"
    "__all__ = ['norm', 'Mode', 'Norm', '__version__']\n",
    "torch_mlxnorm/functional.py": "Mode = Literal['a']\n"
    "def norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:\n    return x\n",
    "torch_mlxnorm/modules.py": "class Norm(Module):\n"
    "    def __init__(self, dim: int) -> None: ...\n"
    "    def forward(self, x): ...\n    def _private(self): ...\n",
    "torch_mlxnorm/plain.metal": "",
}


def api(changed: dict[str, tuple[str, str]] | None = None) -> dict[str, str]:
    files = dict(BEFORE)
    for name, (old, new) in (changed or {}).items():
        assert old in files[name]
        files[name] = files[name].replace(old, new)

    def read(path: str) -> str:
        if path not in files:
            raise FileNotFoundError(path)
        return files[path]

    return public_api(files, read)


def test_public_api() -> None:
    assert api() == {
        "torch_mlxnorm.norm": "(x: Tensor, *, eps: float=1e-06) -> Tensor",
        "torch_mlxnorm.Mode": "Mode = Literal['a']",
        "torch_mlxnorm.Norm": "Module; __init__(self, dim: int) -> None; forward(self, x)",
    }


@pytest.mark.parametrize(
    "file, old, new, found",
    [
        ("functional", "1e-6", "1e-5", {"torch_mlxnorm.norm": "has changed"}),
        ("functional", "x: Tensor, *,", "x: Tensor,", {"torch_mlxnorm.norm": "has changed"}),
        ("functional", "'a'", "'a', 'b'", {"torch_mlxnorm.Mode": "has changed"}),
        ("modules", "dim: int", "dim: int, eps=0", {"torch_mlxnorm.Norm": "has changed"}),
        ("modules", "_private(self)", "_private(self, x)", {}),
        ("functional", "return x", "return -x", {}),
        ("__init__", "'Mode', ", "", {"torch_mlxnorm.Mode": "is gone"}),
    ],
)
def test_changes(file: str, old: str, new: str, found: dict[str, str]) -> None:
    after = api({f"torch_mlxnorm/{file}.py": (old, new)})
    assert changes(api(), after) == found


def test_without_a_tag_everything_is_new() -> None:
    assert set(changes({}, api()).values()) == {"is new"} and len(api()) == 3


def test_the_changelog_has_to_tell() -> None:
    found = {"torch_mlxnorm.norm": "has changed", "torch_mlxnorm.Mode": "is gone"}
    changelog = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- `norm(x)`.\n\n## 0.1.0\n\n- `Mode`.\n"
    version, section = newest_section(changelog)
    complaint = "torch_mlxnorm.Mode is gone, and CHANGELOG.md does not say so"
    assert version == "0.2.0" and untold(found, section) == [complaint]
    assert untold(found, changelog) == []


def test_links(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, `code`\n\n## `warm_up` and [more](x.md)\n")
    document = tmp_path / "document.md"
    good = "[a](other.md) [b](other.md#a-heading-code) [c](https://a.b/c) `[d](nowhere.md)` "
    good += "[e](other.md#warm_up-and-more)"
    document.write_text(good)
    assert broken(document) == []
    document.write_text(f"{good}\n[f](nowhere.md) [g](other.md#nothing)")
    assert [text.partition(": ")[2] for text in broken(document)] == [
        "nowhere.md is not there",
        "other.md#nothing has no such heading",
    ]
