"""The games: one file each, with its State, its Level, the thin class, its rules, facts and expert."""
