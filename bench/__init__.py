"""`python -m bench`: how fast the kernels and the models are, against each other and against their peers.

Everything that is compared runs by turns in one process on one machine, and only ratios of such runs are claimed. What
is compared is listed in conf/bench/, beside the bars it has to meet; what was measured is kept in results/bench/.
"""
