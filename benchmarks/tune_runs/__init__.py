"""Methods and rates of other papers, as `benchmarks/tune_trials.py` tries them."""
