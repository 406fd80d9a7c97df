"""The games: one file each, with its State, Level, class, rules, facts and expert."""
