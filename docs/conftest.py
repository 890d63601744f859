"""Exclude generated pages from ``pytest --doctest-glob="*.md" docs``."""

collect_ignore = ["conf.py"]
collect_ignore_glob = ["_build/*", "api/generated/*", "auto_examples/*", "node_modules/*"]
