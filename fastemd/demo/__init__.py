"""The demonstration, the commands that reproduce the paper's section 2, and the baselines."""

COMMANDS = ("table1", "figure3")  # modules of fastemd.demo
