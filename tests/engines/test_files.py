"""Where outputs go: files that are replaced whole, and what is refused."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from equipoise.engines.files import (
    OutputError,
    output_file,
    output_folder,
    replacing,
    replacing_folder,
    write_bytes,
    write_text,
)
from equipoise.errors import EquipoiseError


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end, pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # names of sockets are short
        end.bind(path.name)


def make_device(path: Path) -> None:
    """The numbers of /dev/null, so that nothing happens should it be written to."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only the superuser makes devices")


SPECIAL = {"a pipe": make_pipe, "a socket": make_socket, "a device": make_device}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_no_file_is_refused_and_stays(kind, through_a_link, tmp_path):
    node = tmp_path / "node"
    SPECIAL[kind](node)
    before = node.lstat()
    name = node
    if through_a_link:
        name = tmp_path / "link"
        name.symlink_to("node")
    with pytest.raises(EquipoiseError, match=f"{name}: is {kind}"):
        write_text(name, "text")
    after = node.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert len(list(tmp_path.iterdir())) == 1 + through_a_link


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(EquipoiseError, match="is a folder; give the name of a file"):
        write_bytes(tmp_path, b"")


@pytest.mark.parametrize("exists", [False, True])
def test_a_link_stays_and_its_target_is_written(exists, tmp_path):
    (tmp_path / "place").mkdir()
    target = tmp_path / "place" / "target"
    if exists:
        target.write_text("old")
    (tmp_path / "second").symlink_to("place/target")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "second")
    write_text(link, "new")
    assert link.readlink() == tmp_path / "second"
    assert (tmp_path / "second").readlink() == Path("place/target")
    assert (target.read_text(), target.is_symlink()) == ("new", False)
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_links_that_lead_in_a_circle_or_nowhere(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(EquipoiseError, match="a cannot be written: Too many levels of symbolic"):
        write_text(tmp_path / "a", "")
    (tmp_path / "c").symlink_to("missing/target")
    with pytest.raises(EquipoiseError, match=f"c: there is no folder {tmp_path}/missing"):
        write_text(tmp_path / "c", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_places_that_are_none(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("missing/new", "file/new"):
        with pytest.raises(EquipoiseError, match="there is no folder"):
            output_file(tmp_path / name)
    with pytest.raises(OutputError, match="File name too long"):
        output_file(tmp_path / ("x" * 300))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(mode, tmp_path):
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == mode  # private from the first byte
        temporary.write_text("new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


def test_a_new_file_and_folder_have_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    write_text(tmp_path / "ours", "")
    with replacing_folder(tmp_path / "our folder"):
        pass
    for ours, plain in (("ours", "plain"), ("our folder", "folder")):
        assert (tmp_path / ours).stat().st_mode == (tmp_path / plain).stat().st_mode


def test_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "old"
    path.write_text("old")
    with suppress(KeyError), replacing(path) as temporary:
        temporary.write_text("new")
        raise KeyError
    with suppress(KeyError), replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "part").write_text("new")
        raise KeyError
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("old", "old")]


def test_a_failure_to_write_names_the_output_however_deep_it_is(tmp_path):
    path = tmp_path / "map.json"
    with pytest.raises(OutputError) as caught, replacing(path) as outer, replacing(outer):
        raise OSError(28, "No space left on device", "elsewhere")
    assert f"{caught.value}" == f"{path} cannot be written: No space left on device."
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_empty_one_at_the_end_of_links(tmp_path):
    (tmp_path / "empty").mkdir(mode=0o750)
    (tmp_path / "link").symlink_to("empty")
    with replacing_folder(tmp_path / "link") as temporary:
        (temporary / "part").write_text("new")
    assert (tmp_path / "link").readlink() == Path("empty")
    assert (tmp_path / "empty" / "part").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "empty").stat().st_mode) == 0o750
    for used in ("link", "empty/part"):
        with pytest.raises(EquipoiseError, match="exists and is not an empty directory"):
            output_folder(tmp_path / used)


@pytest.mark.parametrize("name", ["/dev/stdout", "/proc/self/fd/1", "text"])
def test_the_file_that_standard_output_goes_to_is_refused(name, tmp_path):
    """It would be replaced, and the text be lost with the old one."""
    program = (
        "import sys; from pathlib import Path; from equipoise.engines.files import output_file\n"
        "output_file(Path(sys.argv[1]))"
    )
    with (tmp_path / "text").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", program, name],
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert f"{name}: is where this command prints its text" in done.stderr


def test_a_file_without_permission_to_write(tmp_path):
    path = tmp_path / "old"
    path.write_text("old")
    path.chmod(0o400)
    if os.access(path, os.W_OK):
        pytest.skip("the superuser may write everything")
    with pytest.raises(OutputError, match="old cannot be written: Permission denied"):
        write_text(path, "new")
    assert path.read_text() == "old"
