"""Unit tests of the stand-in: no socket here."""
