# SPDX-License-Identifier: Apache-2.0
"""Certificates made for one run, in a directory that goes with it: ECDSA P-256 throughout.

By hand, for suites in other languages: `python certificates.py DIRECTORY` writes those that every test may use.
"""

import atexit
import datetime
import functools
import ipaddress
import os
import shutil
import ssl
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """A CA with its files: `ca.pem`, and `NAME.pem` beside `NAME.key` for each certificate that it issues."""

    def __init__(self, directory, name="corqtt test CA", file="ca"):
        self.directory = Path(directory)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(self._subject, self._key.public_key(), -DAY, 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = self._write(f"{file}.pem", pem(certificate))
        self._issued = {}

    def _builder(self, subject, public_key, starts, ends):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )

    def _write(self, name, data):
        """Replaces the file at once, so that whoever reads it meanwhile gets the old one or the new one."""
        path = self.directory / name
        beside = path.with_suffix(path.suffix + ".new")
        beside.write_bytes(data)
        os.replace(beside, path)
        return path

    def _issue(self, name, use, names, starts, ends):
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key.public_key(), starts, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._write(
            f"{name}.key",
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )
        self._write(f"{name}.pem", pem(certificate))
        self._issued[name] = certificate
        return certificate.serial_number

    def issue_server(self, name="server"):
        """A server's certificate for this machine, in place of one of that name; answers its serial number."""
        loopback = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
        names = [x509.DNSName("localhost"), *(x509.IPAddress(each) for each in loopback)]
        return self._issue(name, ExtendedKeyUsageOID.SERVER_AUTH, names, -DAY, 30 * DAY)

    def issue_client(self, name, *, expired=False):
        valid = (-3 * DAY, -DAY) if expired else (-DAY, 30 * DAY)
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, [x509.DNSName(name)], *valid)

    def revoke(self, *names, file="crl.pem"):
        """Writes the list of revoked certificates, with just these names on it."""
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._subject)
            .last_update(now - DAY)
            .next_update(now + 30 * DAY)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        for name in names:
            entry = x509.RevokedCertificateBuilder().serial_number(self._issued[name].serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(now - DAY).build())
        return self._write(file, pem(builder.sign(self._key, hashes.SHA256())))

    def file(self, name):
        return self.directory / name

    def context(self, client=None, *, oldest=ssl.TLSVersion.TLSv1_2, newest=ssl.TLSVersion.TLSv1_3):
        """What a client of this CA's servers needs, and the certificate that it shows."""
        context = ssl.create_default_context(cafile=self.ca)
        context.minimum_version, context.maximum_version = oldest, newest
        if client is not None:
            context.load_cert_chain(self.file(f"{client}.pem"), self.file(f"{client}.key"))
        return context


def key_usage(*, signs):
    """Signatures of handshakes, or of certificates and lists."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def pem(made):
    return made.public_bytes(serialization.Encoding.PEM)


def write_all(directory):
    """A CA with a server, and clients: `client`, `expired`, `revoked`; `stranger` is of another CA."""
    authority = Authority(directory)
    authority.issue_server()
    authority.issue_client("client")
    authority.issue_client("expired", expired=True)
    authority.issue_client("revoked")
    authority.revoke("revoked")
    Authority(directory, "another CA", "another-ca").issue_client("stranger")
    return authority


@functools.cache
def authority():
    """The CA of this process's tests, which don't change its files."""
    directory = tempfile.mkdtemp(prefix="corqtt-test-tls-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return write_all(directory)


if __name__ == "__main__":
    write_all(sys.argv[1])
