"""`dlr-buffer reload`: it returns when the configuration holds, or says why it does not."""

from __future__ import annotations

from tests.acceptance.harness import Site


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
