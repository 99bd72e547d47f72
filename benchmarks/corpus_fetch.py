"""Download what the corpus is made from with apt, to a folder of one's own, without root."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from corpus_sources import LANGUAGES, SourceError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

MANUALS = (
    "btrfs-progs",
    "coreutils",
    "debhelper",
    "devscripts",
    "git-man",
    "guestfs-tools",
    "libvirt-clients",
    "lvm2",
    "netpbm",
    "nmh",
    "notmuch",
    "openafs-client",
    "openssl",
    "podman",
    "systemd",
    "tpm2-tools",
    "util-linux",
)
"""Packages with pages of many commands; 40 MB to download, of which the pages are kept."""


def fetch(folder: Path, mirror: str, suite: str) -> None:
    """Put apt's lists of a suite and manual pages into a folder, in place of what it had of them.

    Always of amd64, so that every machine gets the same. apt checks Debian's signature; a release
    that is past its date is taken too, as a snapshot must be for a study to be repeated.

    Raises:
        SourceError: when apt or its keys are not there, or a download fails.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceError("apt-get and dpkg-deb not found; Debian has them, in any container too")
    if not KEYRING.exists():
        raise SourceError(f"{KEYRING} not found; `apt install debian-archive-keyring`")
    folder = folder.resolve()
    for name in ("lists", "man", "apt"):
        if (folder / name).exists():
            shutil.rmtree(folder / name)
    apt, debs = folder / "apt", folder / "apt" / "debs"
    for path in (debs, apt / "cache/archives/partial", folder / "lists/partial"):
        path.mkdir(parents=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n")
    settings = {
        "Dir::State": apt,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Acquire::Languages": ",".join(LANGUAGES),
        "Acquire::Check-Valid-Until": "false",
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",  # another user could not write here
    }
    command = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    _run([*command, "update"], debs)
    _run([*command, "download", *MANUALS], debs)
    for deb in sorted(debs.glob("*.deb")):
        _unpack(deb, folder / "man" / deb.stem)
    shutil.rmtree(apt)


def _unpack(deb: Path, target: Path) -> None:
    """Write a package's English manual pages of commands to `man/man1` and `man/man8`."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as files:
        for member in files:
            page = re.fullmatch(r"\./usr/share/man/(man[18])/([^/]+)", member.name)
            content = files.extractfile(member) if page and member.isreg() else None
            if page and content:
                (target / "man" / page[1]).mkdir(parents=True, exist_ok=True)
                (target / "man" / page[1] / page[2]).write_bytes(content.read())


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    # apt-get update only warns where a file could not be had.
    if done.returncode or re.search(r"^(W: Failed|E: )", done.stderr, re.MULTILINE):
        raise SourceError(f"apt-get failed:\n{done.stderr.strip()}")
