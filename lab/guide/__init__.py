"""Guides: walkthroughs whose every command is run by the suite, and that lead a learner at a terminal.

A guide is a folder of `guides/`: `guide.md` (what is read), `lab.yaml` (the lab it needs),
`checks/test_N_*.py` (what holds once step N is done), `solution.md` where there is something to solve.
"""
