"""What makes a machine from somebody's Debian box what the lab's own box is, with no network.

The artifact holds the packages of the node (with all that they need, for a box may lack anything), the
files and units that the lab's own box has, from the same sources, and `adopt`, which puts them in place.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.builds import box, image, packages
from lab.builds.inputs import tree_digest
from lab.errors import ExitCode
from lab.lock import lock
from lab.paths import ROOT
from lab.run import run
from lab.store import Building, Recipe

NAME = "node-packages"
ADOPT = Path(__file__).parent / "adopt"
PROBE = ROOT / "playbooks/roles/kernel/files/probe-kernel"

#: A box brings its own kernel, and what makes that one's initial file system.
PACKAGES = (*image.PACKAGES, *(name for name in box.PACKAGES if name not in (box.KERNEL, "initramfs-tools")))
#: Of the box's files: what speaks of its own disk and of how it starts from that.
_ITS_OWN = ("boot", "etc/fstab", "etc/kernel-img.conf")


def recipe() -> Recipe:
    suite = lock().versions["debian"]
    return Recipe(
        name=NAME,
        title=f"What a stock box becomes a node with (Debian {suite})",
        inputs={
            "suite": suite,
            "packages": sorted(PACKAGES),
            "masked": sorted(set(image.MASKED) - set(box.UNMASKED) | set(box.MASKED)),
            "enabled": sorted(box.ENABLED),
            "files": tree_digest(
                ADOPT,
                PROBE,
                image.OVERLAY,
                image.HEADERS,
                box.OVERLAY,
                Path(__file__),
                Path(packages.__file__),
            ),
        },
        build=_build,
        space=1 << 30,
        provider="vagrant",
        on_request=True,
    )


def _build(building: Building) -> None:
    folder = building.folder
    folder.chmod(0o700)
    repository, files = folder / "packages", folder / "files"
    building.step.say(f"fetching {len(PACKAGES)} packages and what they need")
    mirror = packages.Mirror(lock().versions["debian"], building.scratch)
    repository.mkdir()
    mirror.download_with_needs(PACKAGES, repository)
    building.facts["packages"] = packages.index(repository)
    building.step.say("unpacking kernel headers")
    (files / "etc/systemd/system").mkdir(parents=True)
    run(
        [image.HEADERS, files],
        env={"MMDEBSTRAP_APT_CONFIG": str(mirror.settings)},
        code=ExitCode.ARTIFACT,
    )
    shutil.rmtree(files / "var")
    box.configure(files)
    leave_out_its_own(files)
    for script in (ADOPT, PROBE):
        shutil.copyfile(script, folder / script.name)
        (folder / script.name).chmod(0o755)
    words = " ".join(kernel_parameters((box.OVERLAY / "boot/grub/grub.cfg").read_text(encoding="utf-8")))
    (folder / "kernel-parameters").write_text(f"{words}\n", encoding="ascii")
    (folder / "installed").write_text("".join(f"{name}\n" for name in PACKAGES), encoding="ascii")
    (folder / "enabled").write_text("".join(f"{name}\n" for name in box.ENABLED), encoding="ascii")


def kernel_parameters(grub: str) -> list[str]:
    """What the lab's own box tells its kernel, but for its disk and for the names of links."""
    (line,) = (line for line in grub.splitlines() if line.startswith("linux "))
    return [
        word for word in line.split()[2:] if word != "ro" and not word.startswith(("root=", "net.ifnames="))
    ]


def leave_out_its_own(files: Path) -> None:
    """Remove from `files` what only the lab's own box can have."""
    for path in _ITS_OWN:
        run(["rm", "-r", files / path], code=ExitCode.ARTIFACT)
