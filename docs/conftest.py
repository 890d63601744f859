"""Exclude generated pages and scripts from ``pytest --doctest-glob="*.md" docs``."""

collect_ignore = ["conf.py", "pictures"]
collect_ignore_glob = ["_build/*", "api/generated/*", "auto_examples/*", "node_modules/*"]
