"""The paper's section 2 as commands: Table 1 and Figure 3."""
