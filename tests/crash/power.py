# SPDX-License-Identifier: Apache-2.0
"""A power cut for the files of a broker: what was not synced is dropped or torn. `power.c` keeps what was.

A disk writes sectors in any order, and whole ones: of what changed in a file since its last sync each sector may be the
old one or the new one, the file may have its old length or the new one, and a directory its names as of its last sync or
the names of now.
"""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SECTOR_BYTES = 512


class Power:
    """The store below `root`, and beside it in `directory` what would survive. `syncs`: the disk does what it is told."""

    def __init__(self, root, directory, random, *, syncs=True):
        self.root, self.random, self.syncs = Path(root), random, syncs
        self.mirror = Path(directory) / "mirror"
        self.library = Path(directory) / "power.so"
        # sectors and names that were not as they had been left
        self.dropped = 0
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", self.library, SOURCE]
        subprocess.run(command, check=True)

    @property
    def env(self):
        where = {"POWER_ROOT": str(self.root), "POWER_MIRROR": str(self.mirror)}
        return {"LD_PRELOAD": str(self.library), "POWER_SYNCS": str(int(self.syncs)), **where}

    def directories(self):
        return [self.root, *(path for path in self.root.rglob("*") if path.is_dir())] if self.root.exists() else []

    def prepare(self):
        """Everything that is there is on the disk."""
        shutil.rmtree(self.mirror, ignore_errors=True)
        (self.mirror / "names").mkdir(parents=True)
        (self.mirror / "data").mkdir()
        (self.mirror / "ids").touch()
        for directory in self.directories():
            lines = []
            for path in directory.iterdir():
                if path.is_file():
                    inode = path.stat().st_ino
                    shutil.copyfile(path, self.mirror / "data" / str(inode))
                    lines.append(f"{inode} {path.name}\n")
            self.names(directory).write_text("".join(lines))

    def names(self, directory):
        return self.mirror / "names" / str(directory.stat().st_ino)

    def cut(self):
        """The process is gone; the files become what the disk may have."""
        ids = dict(line.split() for line in (self.mirror / "ids").read_text().splitlines())
        keeps = self.random.choice((0.0, 0.5, 0.95))
        after = {}
        for directory in self.directories():
            now = {path.name: path for path in directory.iterdir() if path.is_file()}
            files = {}
            for name, path in now.items():
                inode = str(path.stat().st_ino)
                files[name] = (self.synced(ids.get(inode, inode)), path.read_bytes())
            synced = {}
            if self.names(directory).exists():
                for line in self.names(directory).read_text().splitlines():
                    identity, name = line.split(" ", 1)
                    synced[name] = identity
            if self.random.random() < 0.5:
                # a name that was there may lead to a file that has another one by now, or none
                live = {ids.get(str(path.stat().st_ino), str(path.stat().st_ino)): path for path in now.values()}
                self.dropped += files.keys() != synced.keys()
                files = {}
                for name, identity in synced.items():
                    old = self.synced(identity)
                    files[name] = (old, live[identity].read_bytes() if identity in live else old)
            for name, (old, new) in files.items():
                after[directory / name] = self.torn(old, new, keeps)
            for path in now.values():
                path.unlink()
        for path, content in after.items():
            path.write_bytes(content)

    def synced(self, identity):
        path = self.mirror / "data" / identity
        return path.read_bytes() if path.exists() else b""

    def torn(self, old, new, keeps):
        """`old` with some of the sectors in which `new` differs."""
        if old == new:
            return old
        length = len(self.random.choice((old, new)))
        content = bytearray(old[:length].ljust(length, b"\0"))
        for at in range(0, length, SECTOR_BYTES):
            sector = new[at : min(at + SECTOR_BYTES, length)]
            if content[at : at + len(sector)] == sector:
                continue
            if self.random.random() < keeps:
                content[at : at + len(sector)] = sector
            else:
                self.dropped += 1
        return bytes(content)
