"""What `make install` and `make deb` put under ``share/`` of the machine: manual pages and shell completion.

``python -m share FOLDER`` writes it all, from the same parsers as ``--help`` and from docs/configuration.md. Nothing of
this is part of the installed program: it needs shtab and markdown-it-py (requirements-build.txt) and the checkout.
"""
