"""TLS, proxy and login as they are configured: what is taken, what is refused, and what is warned of."""

from __future__ import annotations

import datetime as dt
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from dlr_buffer.cli import main
from dlr_buffer.config import (
    Configuration,
    ConfigurationError,
    Secret,
    SystemTrust,
    TlsSettings,
    certificate_warnings,
    next_expiry_ms,
    parse,
)

AUTHORITY = trustme.CA()
LEAF = AUTHORITY.issue_cert("supplier.example.com")
OTHER = AUTHORITY.issue_cert("other.example.com")
NOW = dt.datetime(2026, 11, 28, 12, tzinfo=dt.UTC)
NOW_MS = int(NOW.timestamp() * 1000)
ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"


class Files:
    """A folder with what an account may name."""

    def __init__(self, folder: Path) -> None:
        """Write what always has to be there."""
        self.folder = folder
        self.write("default.password", b"s3cr3t-p4ss\n")
        self.ca = self.write("ca.pem", AUTHORITY.cert_pem.bytes(), 0o644)
        self.cert = self.write("client.crt", LEAF.cert_chain_pems[0].bytes(), 0o644)
        self.key = self.write("client.key", LEAF.private_key_pem.bytes())

    def write(self, name: str, content: bytes, mode: int = 0o600) -> Path:
        """Write one, with its mode from the first moment on."""
        path = self.folder / name
        path.touch(mode)
        path.chmod(mode)
        path.write_bytes(content)
        return path

    def text(
        self, *, url: str = "https://h/api/dlr", account: str = "", tls: str = "", login: bool = True
    ) -> str:
        """Write a configuration with further lines for the account, and for its table ``tls``."""
        lines = ["[accounts.default]", f'url = "{url}"', f'password_file = "{self.folder}/default.password"']
        lines += ['login = "supplier"'] * login
        return "\n".join([*lines, account, "[accounts.default.tls]", tls, ""])

    def read(self, **given: str) -> Configuration:
        """Read such a configuration."""
        return parse(self.text(**given), {})  # type: ignore[arg-type] # only the lines are given

    def problems(self, **given: str) -> dict[str, str]:
        """Have it refused, and return what is said by key, less the account's name."""
        with pytest.raises(ConfigurationError) as caught:
            self.read(**given)
        return {path.removeprefix("accounts.default."): detail for path, detail in caught.value.problems}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """The folder."""
    return Files(tmp_path)


def tls_of(configuration: Configuration) -> TlsSettings:
    """The only account's."""
    return configuration.accounts["default"].tls


# --- what is taken


def test_the_system_is_trusted_by_default(files: Files) -> None:
    """Without files nothing is loaded for the account; the context that then serves checks names and certificates."""
    assert tls_of(files.read()) == TlsSettings()
    assert tls_of(files.read()).context is None
    trust = SystemTrust()
    context, fingerprint = trust.context("1.2")
    assert trust.context("1.2") == (context, fingerprint)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    newest, _ = trust.context("1.3")
    assert newest.minimum_version is ssl.TLSVersion.TLSv1_3
    assert len(context.get_ca_certs()) == len(ssl.create_default_context().get_ca_certs())


def test_authorities_are_trusted_instead_of_the_system(files: Files) -> None:
    """A bundle with comments in any language is read, and only what is in it is trusted."""
    files.ca.write_bytes("# vertrauenswürdig\n".encode() + AUTHORITY.cert_pem.bytes())
    context = tls_of(files.read(tls=f'ca_file = "{files.ca}"\nmin_version = "1.3"')).context
    assert context is not None
    assert len(context.get_ca_certs()) == 1
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_renewed_certificate_differs(files: Files) -> None:
    """Settings read again are equal as long as the files are, and differ when one of them does."""
    lines = f'client_cert = "{files.cert}"\nclient_key = "{files.key}"\nca_file = "{files.ca}"'
    first = tls_of(files.read(tls=lines))
    assert tls_of(files.read(tls=lines)) == first
    files.cert.write_bytes(OTHER.cert_chain_pems[0].bytes())
    files.key.write_bytes(OTHER.private_key_pem.bytes())
    renewed = tls_of(files.read(tls=lines))
    assert renewed != first
    files.ca.write_bytes(trustme.CA().cert_pem.bytes())
    assert tls_of(files.read(tls=lines)) not in (first, renewed)


def test_a_key_in_the_certificates_file_or_in_a_credential(files: Files) -> None:
    """Without client_key systemd's credential is taken, else the key stands in the same file, a secret then."""
    both = files.write("both.pem", LEAF.private_key_and_cert_chain_pem.bytes())
    assert tls_of(files.read(tls=f'client_cert = "{both}"')).context is not None
    both.chmod(0o644)
    assert "may be read by everybody" in files.problems(tls=f'client_cert = "{both}"')["tls.client_cert"]
    files.write("default.client_key", LEAF.private_key_pem.bytes(), 0o400)
    text = files.text(tls=f'client_cert = "{files.cert}"')
    assert (
        parse(text, {"CREDENTIALS_DIRECTORY": str(files.folder)}).accounts["default"].tls.context is not None
    )


def test_the_keys_of_sessions_are_written_nowhere(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSLKEYLOGFILE, with which everybody could read the password on the wire, is not heeded."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(files.folder / "keys"))
    assert ssl.create_default_context().keylog_filename
    own = tls_of(files.read(tls=f'ca_file = "{files.ca}"')).context
    assert own is not None
    assert not own.keylog_filename
    assert not SystemTrust().context("1.2")[0].keylog_filename


# --- what is refused


@pytest.mark.parametrize(
    ("key", "content", "said"),
    [
        ("ca_file", b"nothing", "holds no certificate in PEM"),
        ("ca_file", b"", "holds no certificate in PEM"),
        (
            "ca_file",
            ssl.PEM_cert_to_DER_cert(AUTHORITY.cert_pem.bytes().decode()),
            "openssl x509 -inform der -in",
        ),
        ("ca_file", AUTHORITY.cert_pem.bytes().replace(b"M", b"!"), "holds no certificate"),
        ("ca_file", AUTHORITY.cert_pem.bytes()[:60] + b"\n-----END CERTIFICATE-----", "is damaged"),
        ("ca_file", AUTHORITY.cert_pem.bytes() + b"#" * (4 << 20), "longer than 4 MiB"),
        ("client_cert", LEAF.private_key_pem.bytes(), "holds no certificate in PEM"),
        ("client_key", LEAF.cert_chain_pems[0].bytes(), "holds no private key in PEM"),
        ("client_key", OTHER.private_key_pem.bytes(), "does not belong to the certificate in"),
        ("client_key", ENCRYPTED, "openssl pkey"),
        (
            "client_key",
            b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n",
            "not taken by OpenSSL",
        ),
    ],
    # Certificates are made anew each time, so they can't be part of a test's name.
    ids=[
        "text",
        "empty",
        "der",
        "no-base64",
        "cut",
        "long",
        "key-as-cert",
        "cert-as-key",
        "others-key",
        "encrypted",
        "broken-key",
    ],
)
def test_files_that_hold_something_else(files: Files, key: str, content: bytes, said: str) -> None:
    """Each mistake is said as what it is, at the key whose file it is, and with the way out."""
    paths = {"ca_file": files.ca, "client_cert": files.cert, "client_key": files.key}
    paths[key].write_bytes(content)
    found = files.problems(tls="\n".join(f'{name} = "{path}"' for name, path in paths.items()))
    assert list(found) == [f"tls.{key}"]
    assert said in found[f"tls.{key}"]
    assert str(paths[key]) in found[f"tls.{key}"]


def test_a_real_encrypted_key(files: Files) -> None:
    """As OpenSSL writes it; nobody is asked for a passphrase on the terminal."""
    done = subprocess.run(
        ["openssl", "pkey", "-in", files.key, "-aes256", "-passout", "pass:x"],
        capture_output=True,
        check=True,
    )
    files.key.write_bytes(done.stdout)
    found = files.problems(tls=f'client_cert = "{files.cert}"\nclient_key = "{files.key}"')
    assert "is encrypted with a passphrase" in found["tls.client_key"]


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("client_key", 0o644, "may be read by everybody"),
        ("client_cert", 0o666, "may be written by everybody"),
        ("ca_file", 0o664, "may be written by the group"),
    ],
)
def test_files_that_are_open_to_others(files: Files, name: str, mode: int, said: str) -> None:
    """The key is kept as the password is; certificates may be read, not written."""
    paths = {"ca_file": files.ca, "client_cert": files.cert, "client_key": files.key}
    paths[name].chmod(mode)
    found = files.problems(tls="\n".join(f'{key} = "{path}"' for key, path in paths.items()))
    assert list(found) == [f"tls.{name}"]
    assert said in found[f"tls.{name}"]


@pytest.mark.parametrize(
    ("tls", "key", "said"),
    [
        ('ca_file = "ca.pem"', "ca_file", "absolute path"),
        ("ca_file = 5", "ca_file", "a string in quotes"),
        ('ca_file = "/none/ca.pem"', "ca_file", "is missing"),
        ('client_key = "/none/key"', "client_key", "unless client_cert is given"),
        ('min_version = "1.1"', "min_version", 'one of "1.2", "1.3"'),
        ("min_version = 1.2", "min_version", 'one of "1.2", "1.3"'),
        ('min_tls = "1.2"', "min_tls", "min_version"),
    ],
)
def test_values_that_cannot_be_meant(files: Files, tls: str, key: str, said: str) -> None:
    """Each is answered at its key."""
    found = files.problems(tls=tls)
    assert list(found) == [f"tls.{key}"]
    assert said in found[f"tls.{key}"]


def test_what_is_without_effect_is_refused(files: Files) -> None:
    """With http:// there is no TLS that the settings could be about, and a proxy would read everything."""
    tls = f'ca_file = "{files.ca}"\nclient_cert = "{files.cert}"\nclient_key = "{files.key}"\nmin_version = "1.3"'
    found = files.problems(url="http://localhost/", tls=tls, account='proxy = "http://proxy:3128"')
    assert set(found) == {"tls.ca_file", "tls.client_cert", "tls.client_key", "tls.min_version", "proxy"}
    assert "the proxy would read login and password" in found["proxy"]
    assert (
        files.read(url="http://localhost/", tls='min_version = "1.2"').accounts["default"].tls.context is None
    )


# --- the proxy


@pytest.mark.parametrize(
    "url", ["http://proxy.example.com:3128", "http://10.0.0.1:8080/", "http://[2001:db8::1]:1"]
)
def test_proxies_that_are_taken(files: Files, url: str) -> None:
    """Host and port, by name or address."""
    assert files.read(account=f'proxy = "{url}"').accounts["default"].proxy == url.removesuffix("/")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "with its port"),
        ("proxy:3128", "with its port"),
        ("http://proxy", "with its port"),
        ("http://proxy:0", "with its port"),
        ("http://proxy:99999", "with its port"),
        ("http://:3128", "with its port"),
        ("http://proxy:3128/path", "with its port"),
        ("http://proxy:3128?x", "with its port"),
        ("http://[::1", "with its port"),
        ("http://prö:1", "with its port"),
        ("socks5://proxy:1080", "with its port"),
        ("https://proxy:3128", "without TLS"),
        ("http://user:s3cr3t-p4ss@proxy:3128", "proxy_credentials_file"),
    ],
)
def test_proxies_that_are_refused(files: Files, url: str, said: str) -> None:
    """What it must be is said; it is not repeated, for a password may stand in it."""
    found = files.problems(account=f'proxy = "{url}"')
    assert list(found) == ["proxy"]
    assert said in found["proxy"]
    assert "s3cr3t" not in found["proxy"]


def test_the_login_at_a_proxy(files: Files) -> None:
    """It comes from a file that is kept as a password is, or from a credential, and has a colon in it."""
    proxy = 'proxy = "http://proxy:3128"'
    path = files.write("proxy", b"user:s3cr3t:p4ss\n")
    both = f'{proxy}\nproxy_credentials_file = "{path}"'
    assert files.read(account=both).accounts["default"].proxy_credentials == Secret("user:s3cr3t:p4ss")
    assert files.read(account=proxy).accounts["default"].proxy_credentials is None
    files.write("default.proxy_credentials", b"other:s3cr3t")
    environ = {"CREDENTIALS_DIRECTORY": str(files.folder)}
    assert parse(files.text(account=proxy), environ).accounts["default"].proxy_credentials == Secret(
        "other:s3cr3t"
    )
    path.write_bytes(b"s3cr3t\n")
    assert files.problems(account=both) == {
        "proxy_credentials_file": f"{path} must hold USER:PASSWORD on one line"
    }
    path.chmod(0o644)
    assert "may be read by everybody" in files.problems(account=both)["proxy_credentials_file"]
    alone = files.problems(account=f'proxy_credentials_file = "{path}"')
    assert "without effect unless proxy" in alone["proxy_credentials_file"]


# --- the login


def test_the_login_from_a_file_or_a_credential(files: Files) -> None:
    """login_file, else the credential NAME.login; what stands in the configuration wins over the credential."""
    path = files.write("login", b"supplier-2\n")
    named = files.text(account=f'login_file = "{path}"', login=False)
    assert parse(named, {}).accounts["default"].login == Secret("supplier-2")
    files.write("default.login", b"supplier-3\n", 0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(files.folder)}
    assert parse(named, environ).accounts["default"].login == Secret("supplier-2")
    assert parse(files.text(login=False), environ).accounts["default"].login == Secret("supplier-3")
    assert parse(files.text(), environ).accounts["default"].login == Secret("supplier")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"login_file: \S+ may be read by everybody"):
        parse(named, {})


@pytest.mark.parametrize(
    ("account", "login", "key", "said"),
    [
        ("", False, "login", "LoadCredential=default.login:"),
        ('login_file = "/none/login"', False, "login_file", "is missing"),
        ('login_file = "login"', False, "login_file", "absolute"),
        ('login_file = "/none/login"', True, "login_file", "and login too"),
    ],
)
def test_logins_that_are_refused(files: Files, account: str, login: bool, key: str, said: str) -> None:  # noqa: FBT001
    """None at all, one in a file that is not there, and two."""
    with pytest.raises(ConfigurationError) as caught:
        parse(files.text(account=account, login=login), {})
    ((path, detail),) = caught.value.problems
    assert path == f"accounts.default.{key}"
    assert said in detail


# --- dates


def days(number: float) -> dt.datetime:
    """So many days from now."""
    return NOW + dt.timedelta(days=number)


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        (-30, -1, "has expired on 2026-11-27 12:00 UTC; put the renewed one in its place"),
        (-30, 13, "expires on 2026-12-11 12:00 UTC"),
        (1, 30, "is not valid before 2026-11-29 12:00 UTC"),
        (-30, 15, None),
    ],
)
def test_a_client_certificate_is_warned_of(files: Files, begin: int, end: int, said: str | None) -> None:
    """It is taken all the same: only the server can say whether it is good enough."""
    leaf = AUTHORITY.issue_cert("supplier.example.com", not_before=days(begin), not_after=days(end))
    files.write("client.crt", leaf.cert_chain_pems[0].bytes(), 0o644)
    files.write("client.key", leaf.private_key_pem.bytes())
    configuration = files.read(tls=f'client_cert = "{files.cert}"\nclient_key = "{files.key}"')
    found = certificate_warnings(configuration, NOW_MS)
    assert [problem.path for problem in found] == (["accounts.default.tls.client_cert"] if said else [])
    assert all(f"{files.cert} {said}" in problem.detail for problem in found)
    assert next_expiry_ms(configuration) == int(days(end).timestamp() * 1000)
    assert next_expiry_ms(files.read()) is None


def test_a_bundle_is_warned_of_when_all_of_it_has_expired(files: Files) -> None:
    """One old authority among others is usual."""
    old = (
        AUTHORITY.issue_cert("old.example.com", not_before=days(-30), not_after=days(-1))
        .cert_chain_pems[0]
        .bytes()
    )
    files.ca.write_bytes(old + AUTHORITY.cert_pem.bytes())
    lines = f'ca_file = "{files.ca}"'
    assert certificate_warnings(files.read(tls=lines), NOW_MS) == ()
    files.ca.write_bytes(old)
    ((path, detail),) = certificate_warnings(files.read(tls=lines), NOW_MS)
    assert path == "accounts.default.tls.ca_file"
    assert "the last one has expired on 2026-11-27" in detail


def test_check_config_warns(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so on stderr, with the date, and ends with 0: the configuration can be used."""
    long_ago = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    leaf = AUTHORITY.issue_cert(
        "supplier.example.com", not_before=long_ago, not_after=long_ago + dt.timedelta(days=1)
    )
    files.write("client.crt", leaf.private_key_and_cert_chain_pem.bytes())
    config = files.write("config.toml", files.text(tls=f'client_cert = "{files.cert}"').encode())
    assert main(["--config", str(config), "check-config"]) == 0
    shown = capsys.readouterr()
    assert "warning: accounts.default.tls.client_cert: " in shown.err
    assert "has expired on 2001-01-02 00:00 UTC" in shown.err
    assert f'client_cert = "{files.cert}"' in shown.out
    assert 'min_version = "1.2"' in shown.out
