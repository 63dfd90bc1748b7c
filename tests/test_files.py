"""Files and folders that are complete or absent; what somebody else has put there stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3ae.files import (
    LOCK,
    check_replaceable,
    complete_folder,
    find_damage,
    new_folder,
    only_process,
    remove_files,
    remove_folder,
    replacing,
    restore,
    temporary_folder,
    write_checksums,
    write_text,
)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content)
    return folder


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "first")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert tree(tmp_path) == {"a": "first"}
    write_text(tmp_path / "a", "second\n")
    assert tree(tmp_path) == {"a": "second\n"}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for function in ("fsync", "replace"):
        call = getattr(os, function)
        monkeypatch.setattr(os, function, lambda *given, f=function, c=call: (done.append(f), c(*given)))
    write_text(tmp_path / "a", "first")
    assert done == ["fsync", "replace"]


def test_a_new_folder_is_whole_or_absent_and_takes_no_place_of_another(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "deep" / "out") as folder:
        fill(folder, a="half")
        raise RuntimeError
    assert not (tmp_path / "deep" / "out").exists()
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        fill(folder, a="whole")
        fill(folder / "sub", b="whole")
        assert tree(tmp_path / "out").keys() == {".m3ae.incomplete/a", ".m3ae.incomplete/sub/b"}
    assert tree(tmp_path / "out") == {"a": "whole", "sub/b": "whole"}
    with pytest.raises(FileExistsError, match="out holds a already: choose a new or an empty folder"):
        new_folder(tmp_path / "out").__enter__()
    fill(tmp_path / "killed" / ".m3ae.incomplete", half="of it")
    with new_folder(tmp_path / "killed") as folder:
        fill(folder, a="whole")
    assert tree(tmp_path / "killed") == {"a": "whole"}


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        with complete_folder(target) as folder:
            fill(folder, weights=content)
    with pytest.raises(RuntimeError), complete_folder(target) as folder:
        fill(folder, weights="third")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and tree(target) == {"weights": "second"}


def test_what_somebody_has_put_into_a_folder_outlives_its_replacement(tmp_path: Path) -> None:
    target = fill(tmp_path / "best", weights="old", notes="mine")
    fill(target / "plots", loss="mine")
    with complete_folder(target) as folder:
        fill(folder, weights="new")
    assert tree(tmp_path) == {"best/weights": "new", "best/notes": "mine", "best/plots/loss": "mine"}
    fill(tmp_path / "best.old", weights="a copy")
    with complete_folder(target) as folder:
        fill(folder, weights="newer")
    assert tree(tmp_path / "best.old") == {"weights": "a copy"}


def test_a_replacement_cut_short_is_undone_or_ended(tmp_path: Path) -> None:
    target, old = tmp_path / "best", tmp_path / ".best.replaced"
    fill(old, weights="first")
    restore(target)
    assert not old.exists() and tree(target) == {"weights": "first"}
    fill(old, weights="older", notes="mine")
    restore(target)  # the new one had arrived
    assert not old.exists() and tree(target) == {"weights": "first", "notes": "mine"}


def test_of_a_folder_with_checksums_only_what_they_list_is_removed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "step", weights="1", state="2")
    fill(folder / "sub", part="3")
    write_checksums(folder, last="state")
    fill(folder, notes="mine")
    fill(folder / "sub", more="mine")
    assert find_damage(folder, last="state") is None
    remove_folder(folder)
    assert tree(tmp_path) == {"step.kept/notes": "mine", "step.kept/sub/more": "mine"}
    fill(folder, notes="mine")
    remove_folder(folder)  # it has no checksums
    assert tree(folder) == {"notes": "mine"}


def test_named_files_are_removed_in_the_folder_alone(tmp_path: Path) -> None:
    folder = fill(tmp_path / "set", a="ours", b="mine")
    fill(tmp_path, outside="mine")
    (folder / "a.tmp").write_text("begun")
    remove_files(folder, ["a", "../outside", str(tmp_path / "outside"), "absent"])
    assert tree(tmp_path) == {"set/b": "mine", "outside": "mine"}


def test_files_of_something_else_are_not_replaced(tmp_path: Path) -> None:
    fill(tmp_path, ours='{"kind": "m3ae"}', theirs='{"kind": "site"}')
    check_replaceable(tmp_path / "absent", "m3ae")
    check_replaceable(tmp_path / "ours", '"kind"', "m3ae")
    with pytest.raises(FileExistsError, match="theirs was not written by m3ae, and would be replaced"):
        check_replaceable(tmp_path / "theirs", '"kind"', "m3ae")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match="folder was not written by m3ae"):
        check_replaceable(tmp_path / "folder", "m3ae")


def test_one_process_writes_a_folder_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom m3ae.files import only_process\n"
        "with only_process(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"is being written by process {other.pid} of .*: wait for its end"):
            only_process(tmp_path).__enter__()
        other.kill()
        other.wait()
    refused = pytest.raises(BlockingIOError, match=f"is being written by process {os.getpid()} of ")
    with only_process(tmp_path), refused:
        only_process(tmp_path).__enter__()  # as another thread would
    with only_process(tmp_path):
        pass
    assert tree(tmp_path) == {}


def test_a_temporary_folder_is_removed_at_the_latest_by_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fill(tmp_path / "kind-killed", upload="private", **{LOCK: "process 1"})
    fill(tmp_path / "kind-of-mine", notes="mine")
    with temporary_folder("kind-") as other:
        fill(other, upload="private")
        assert not (tmp_path / "kind-killed").exists()
        with temporary_folder("kind-"):
            assert (other / "upload").exists(), "that of a process that lives stays"
    assert tree(tmp_path) == {"kind-of-mine/notes": "mine"}
