"""An authority for one test, made with openssl."""

from __future__ import annotations

from pathlib import Path

from kube import run


class Authority:
    """Issues server and client certificates for one day."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._make_key("ca")
        run("openssl", "req", "-x509", "-new", "-key", self._path("ca.key"), "-subj", "/CN=berth-test", "-days", "1",
            "-out", self._path("ca.crt"), "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
        self.certificate = (folder / "ca.crt").read_text()

    def issue(self, name: str, *dns_names: str) -> dict[str, str]:
        """Files of a new certificate for these names: tls.crt, tls.key and ca.crt."""
        self._make_key(name)
        alternatives = ",".join(f"DNS:{dns}" for dns in dns_names)
        (self._folder / "extensions").write_text(
            f"basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\nsubjectAltName={alternatives}\n"
        )
        run("openssl", "req", "-new", "-key", self._path(f"{name}.key"), "-subj", f"/CN={name}", "-out", self._path("request"))
        run("openssl", "x509", "-req", "-in", self._path("request"), "-CA", self._path("ca.crt"), "-CAkey", self._path("ca.key"),
            "-CAcreateserial", "-days", "1", "-extfile", self._path("extensions"), "-out", self._path(f"{name}.crt"))  # fmt: skip
        read = {"tls.crt": f"{name}.crt", "tls.key": f"{name}.key", "ca.crt": "ca.crt"}
        return {key: (self._folder / file).read_text() for key, file in read.items()}

    def _make_key(self, name: str) -> None:
        run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", self._path(f"{name}.key"))

    def _path(self, name: str) -> str:
        return str(self._folder / name)
