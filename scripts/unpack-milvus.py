#!/usr/bin/env python3
"""Unpack the Milvus server from its Python wheel.

Usage: unpack-milvus.py WHEEL DIRECTORY

The wheel carries the server and its shared libraries as separate .lzma files.
They are unpacked flat into DIRECTORY; the server finds its libraries there
through LD_LIBRARY_PATH. DIRECTORY appears only when it is complete, so an
interrupted run never leaves a half-unpacked server behind.
"""

import lzma
import os
import shutil
import sys
import tempfile
import zipfile

PREFIX = "milvus/data/bin/"


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    wheel, target = sys.argv[1], os.path.abspath(sys.argv[2])
    parent = os.path.dirname(target)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=".milvus-", dir=parent)
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist()
                     if n.startswith(PREFIX) and n.endswith(".lzma")]
            if PREFIX + "milvus.lzma" not in names:
                print(f"{wheel}: holds no Milvus server", file=sys.stderr)
                return 1
            for name in names:
                path = os.path.join(partial, os.path.basename(name)[:-len(".lzma")])
                with archive.open(name) as packed, lzma.open(packed) as source, \
                        open(path, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                os.chmod(path, 0o755)
        version = os.path.basename(wheel).split("-")[1]
        with open(os.path.join(partial, "VERSION"), "w", encoding="utf-8") as out:
            out.write(version + "\n")
        os.chmod(partial, 0o755)
        if os.path.isdir(target):
            shutil.rmtree(target)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
