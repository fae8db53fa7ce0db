"""What a stock box is adopted with: its packages' index, its files, and whom it refuses."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lab.builds import adoption, box, image, packages

#: A root of which only what is named here can be written to; everything else is the host's, read only.
_INSIDE = """
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir usr etc proc var run dev adopt
touch dev/null
mount --bind /dev/null dev/null
mount --bind /usr usr
mount -o remount,bind,ro usr
for name in bin sbin lib lib64; do ln -s "usr/$name" "$name"; done
mount -t proc proc proc
cp "$2" etc/os-release
cp "$3" "$4" adopt
[ -z "$5" ] || { mkdir -p "var/lib/underpass-identity"; : >"var/lib/underpass-identity/adopted"; }
status=0
chroot . /adopt/adopt || status=$?
ls run
exit "$status"
"""


def adopted(tmp_path: Path, release: str, mark: str = "") -> tuple[int, str]:
    """Status and output of `adopt` on a machine with that os-release, and what it left in /run."""
    root, told = tmp_path / "root", tmp_path / "os-release"
    root.mkdir()
    told.write_text(release)
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", _INSIDE, "inside"]
    done = subprocess.run(
        [*inside, root, told, adoption.ADOPT, adoption.PROBE, mark],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a root file system of its own needs root")


@needs_root
@pytest.mark.parametrize(("name", "version"), [("ubuntu", "24.04"), ("debian", "12")])
def test_a_box_that_is_not_debian_13_is_refused_by_name_and_left_alone(
    tmp_path: Path, name: str, version: str
) -> None:
    status, said = adopted(tmp_path, f'ID={name}\nVERSION_ID="{version}"\n')
    assert status != 0
    assert said.startswith(f"USERLAND: the userland is {name} {version}, and nodes are Debian 13")
    assert len(said.splitlines()) == 1, "it did something"


@needs_root
def test_a_machine_is_adopted_once(tmp_path: Path) -> None:
    thirteen = 'ID=debian\nVERSION_ID="13"\n'
    assert adopted(tmp_path, thirteen, mark="adopted") == (0, "")
    again = tmp_path / "again"
    again.mkdir()
    status, said = adopted(again, thirteen)  # it begins, and gets no further here
    assert status != 0
    assert said.startswith("adopt: installing the node's packages")


def test_it_gets_the_packages_of_node_and_box_but_for_the_kernel() -> None:
    assert set(image.PACKAGES) < set(adoption.PACKAGES)
    left_out = {box.KERNEL, "initramfs-tools"}
    assert set(box.PACKAGES) - set(adoption.PACKAGES) == left_out


def test_its_kernel_is_told_what_the_boxs_is_but_for_disk_and_links() -> None:
    told = adoption.kernel_parameters(
        "set timeout=0\nlinux /vmlinuz root=X ro console=tty0 net.ifnames=0 quiet\n"
    )
    assert told == ["console=tty0", "quiet"]
    own = adoption.kernel_parameters((box.OVERLAY / "boot/grub/grub.cfg").read_text())
    assert "console=ttyS0,115200" in own


def test_a_folder_of_packages_has_an_index_by_which_apt_takes_them(tmp_path: Path) -> None:
    control = tmp_path / "made/DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        "Package: example\nVersion: 1:2-3\nArchitecture: all\nMaintainer: nobody\nDescription: none\n"
    )
    folder = tmp_path / "packages"
    folder.mkdir()
    build = ["dpkg-deb", "--root-owner-group", "--build"]
    subprocess.run([*build, tmp_path / "made", folder / "example.deb"], check=True, capture_output=True)
    assert packages.index(folder) == {"example": "1:2-3"}
    state = tmp_path / "state"
    (state / "lists/partial").mkdir(parents=True)
    (state / "cache/archives/partial").mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [trusted=yes] file:{folder} ./\n")
    (state / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{state}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{state}/lists";\nDir::State::Status "{state}/status";\n'
        f'Dir::Cache "{state}/cache";\nAPT::Sandbox::User "root";\n'
    )
    env = {**os.environ, "APT_CONFIG": str(state / "apt.conf")}
    for words in (["update"], ["--yes", "--download-only", "install", "example"]):
        done = subprocess.run(
            ["apt-get", "-qq", *words], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_boxs_files_are_in_it_from_the_same_source(tmp_path: Path) -> None:
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    box.configure(tmp_path)
    adoption.leave_out_its_own(tmp_path)
    for overlay in (image.OVERLAY, box.OVERLAY):
        for path in (file.relative_to(overlay) for file in overlay.rglob("*") if file.is_file()):
            its_own = str(path).startswith(("boot/", "etc/fstab", "etc/kernel-img.conf"))
            assert (tmp_path / path).exists() is not its_own, path
