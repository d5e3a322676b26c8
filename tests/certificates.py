"""Certificates for TLS, as files."""

from pathlib import Path

import trustme


class Certificates:
    """Files of an authority, and of a server and a client that it trusts."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self.server_file, self.server_key_file = self._write(
            authority.issue_cert("127.0.0.1", "localhost"), folder / "server"
        )
        self.certificate_file, self.key_file = self._write(authority.issue_cert("alice@example.org"), folder / "client")

    def _write(self, issued: trustme.LeafCert, folder: Path) -> tuple[Path, Path]:
        folder.mkdir()
        chain, key, store = folder / "chain.pem", folder / "key.pem", folder / "store.pem"
        chain.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        key.write_bytes(_in_pkcs8(issued.private_key_pem.bytes()))
        # Kafka reads key and chain from one file.
        store.write_bytes(key.read_bytes() + chain.read_bytes())
        return (store, key) if folder.name == "server" else (chain, key)


def _in_pkcs8(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - trustme brings it

    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
