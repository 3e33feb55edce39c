"""Studies: the runs of an experiment gathered, compared over seeds and tasks, and laid beside the papers' figures."""
