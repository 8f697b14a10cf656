"""`dlr-buffer reload`: it returns when the configuration holds, or says why it does not."""

from __future__ import annotations

from tests.acceptance.harness import Site, eventually


def test_reload_waits_for_the_outcome(site: Site) -> None:
    """A good file holds when the command ends; a bad one is told and changes nothing; without a daemon it is 69."""
    site.configure()
    daemon = site.start()
    done = site.command("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("reloaded: ")
    assert site.ask("GET", "/v1/status")["configuration"]["reloads"] == 1
    good = site.config.read_text("utf-8")
    site.config.write_text("[retention]\nnonsense = 1\n" + good, "utf-8")
    done = site.command("reload", "--pid", str(daemon.pid))
    assert done.returncode == 1
    assert "the configuration before holds: " in done.stderr
    assert "nonsense" in done.stderr
    site.config.write_text(good, "utf-8")
    assert site.command("reload").returncode == 0
    assert site.ask("GET", "/v1/status")["configuration"]["error"] is None
    assert daemon.terminate() == 0
    assert site.command("reload").returncode == 69


def test_a_file_that_is_not_toml_is_told_too(site: Site) -> None:
    """Told by process, as systemd does it: the daemon finds out, the command fails, and `status` has the alarm."""
    site.configure()
    daemon = site.start()
    good = site.config.read_text("utf-8")
    site.config.write_text("[accounts", "utf-8")
    done = site.command("reload", "--pid", str(daemon.pid))
    assert done.returncode == 1
    assert "is not TOML" in done.stderr
    eventually(site.log.read_text, lambda log: "not reloaded" in log)
    assert "is not TOML" in site.log.read_text()
    assert "is not TOML" in site.ask("GET", "/v1/status")["configuration"]["error"]
    site.config.write_text(good, "utf-8")
    assert site.command("reload").returncode == 0
    assert daemon.terminate() == 0
