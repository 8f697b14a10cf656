"""The migrations, in order of their numbers; one that was released never changes again."""
