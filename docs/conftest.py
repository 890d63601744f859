"""``pytest --doctest-glob="*.md" docs`` runs the examples of the pages, not what was built."""

collect_ignore = ["conf.py"]
collect_ignore_glob = ["_build/*", "api/generated/*", "auto_examples/*"]
