"""The commands of ``python -m fastemd`` that work on files."""

COMMANDS = ("unifrac", "merge")  # modules of fastemd.commands
